"""Losses on the forget set: ``loss(part, options)``, which falls as the texts are forgotten."""
