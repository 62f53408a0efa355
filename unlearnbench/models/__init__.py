"""Models: the protocol, the scripted fake, and the adapter for checkpoints."""

from __future__ import annotations

from unlearnbench.models.base import Model, ScriptedModel

__all__ = ["Model", "ScriptedModel"]
