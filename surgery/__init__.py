"""Headless model surgery: recipes, structure, loading, live evaluation, memory and fit, jobs, command line."""
