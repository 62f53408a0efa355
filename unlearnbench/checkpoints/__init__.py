"""Checkpoints: files, checked and opened."""
