"""llama.cpp's file format: plan, write, read."""
