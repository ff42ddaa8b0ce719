"""From a recipe to a healed recipe."""
