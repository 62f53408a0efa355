"""Masks: which weights a method may change, chosen once before training."""
