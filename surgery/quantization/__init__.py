"""Fewer bits for a weight, and low-rank repair."""
