"""Checkpoints that another tool quantized: opened, read, and held against the one they are of."""
