"""Candidates that meet a target."""
