"""Figures of an analysis and of a healing."""
