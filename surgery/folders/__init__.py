"""What a checkpoint folder holds: its configuration, its tensors one at a time, and the code that travels with it."""
