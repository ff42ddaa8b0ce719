"""Refits of weights without training."""
