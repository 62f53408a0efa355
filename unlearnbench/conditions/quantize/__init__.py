"""Quantized conditions: every way to store weights in fewer bits, one small file a library."""
