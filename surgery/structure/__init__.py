"""What a recipe makes of a model."""
