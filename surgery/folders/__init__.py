"""A checkpoint folder as files: its configuration, and its tensors one at a time."""
