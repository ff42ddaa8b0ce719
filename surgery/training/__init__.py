"""The training machine that healing uses."""
