"""Training for unlearning and for fine-tuning, on transformers' Trainer and accelerate.

``options``, ``corpus``, ``job`` and ``output`` are light; the others import torch at their top, and
are imported inside functions.
"""
