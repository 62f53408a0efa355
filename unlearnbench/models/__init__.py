"""Models: the protocol, the scripted fake, and the adapter for checkpoints."""

from __future__ import annotations

from unlearnbench.models.base import Model
from unlearnbench.models.scripted import ScriptedModel

__all__ = ["Model", "ScriptedModel"]
