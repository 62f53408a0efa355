"""unlearnbench: does forgotten knowledge come back when the model is quantized?

Light to import: torch and transformers load when a model does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from unlearnbench.errors import UnlearnbenchError
from unlearnbench.util.version import __version__

if TYPE_CHECKING:
    from unlearnbench.evaluation.evaluate import evaluate
    from unlearnbench.models import Model, ScriptedModel
    from unlearnbench.results import RunResult, SampleRecord, TaskResult
    from unlearnbench.tasks.spec import TaskSpec

__all__ = [
    "Model",
    "RunResult",
    "SampleRecord",
    "ScriptedModel",
    "TaskResult",
    "TaskSpec",
    "UnlearnbenchError",
    "__version__",
    "evaluate",
]

# Public names that live in modules which cost time to import; loaded on first use (PEP 562).
_HOMES = {
    "Model": "unlearnbench.models",
    "RunResult": "unlearnbench.results",
    "SampleRecord": "unlearnbench.results",
    "ScriptedModel": "unlearnbench.models",
    "TaskResult": "unlearnbench.results",
    "TaskSpec": "unlearnbench.tasks.spec",
    "evaluate": "unlearnbench.evaluation.evaluate",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'unlearnbench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
