"""Importance methods: scores of blocks, sublayers, heads, neurons and channels. Each method is one registry entry."""
