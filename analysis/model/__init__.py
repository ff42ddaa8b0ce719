"""How a model is described and run block by block."""
