"""Measuring an edited model without building it."""
