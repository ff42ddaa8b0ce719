"""Choosing which parts go."""
