"""Getting a model into memory."""
