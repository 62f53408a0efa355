"""Repair: an unlearned checkpoint made to survive quantization, from it and its target alone."""
