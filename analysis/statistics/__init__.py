"""Statistics of activations and attention, collected in one pass over token windows."""
