"""Conditions: how a checkpoint is met."""
