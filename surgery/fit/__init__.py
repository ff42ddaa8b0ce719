"""Memory and speed of a model on a device, by arithmetic."""
