"""transformers' checkpoint folders: build, save, read."""
