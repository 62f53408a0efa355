"""What a job takes of a node, and whether a node has it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import OptionError
from unlearnbench.sweep.spec import Resources
from unlearnbench.util.validation import YamlFile

_WEIGHTS = (".safetensors", ".bin", ".gguf")
# Python, torch and transformers, before any weights.
PROCESS = 2**30
# Weights as loaded beside those stored: bf16 in fp32, and a second copy that a condition makes.
LOADED, TRAINED = 3, 10
_EIGHTHS = 8


@dataclass(frozen=True)
class Demand:
    """What a job takes of a node: cores, GPUs, bytes."""

    cpus: float
    gpus: float
    memory: int

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus:g} cores{gpus}, {self.memory / 2**30:.1f} GiB"


def estimate(asked: Resources, path: str, factor: int) -> Demand:
    """As the file says; what it leaves out follows from the size of the weights at ``path``. Those
    of a hub are not asked for.
    """
    need = factor * _weights(path) + PROCESS
    gpus = asked.gpus
    if gpus is None:
        share = need / asked.gpu_memory if asked.gpu_memory else 0.0
        gpus = math.ceil(share) if share > 1 else math.ceil(share * _EIGHTHS) / _EIGHTHS
    return Demand(asked.cpus, gpus, asked.memory or need)


def _weights(path: str) -> int:
    """Bytes of the weight files of a folder, or of a file; 0 where none is here."""
    place = Path(path)
    files = [place] if place.is_file() else list(place.glob("*")) if place.is_dir() else []
    return sum(file.stat().st_size for file in files if file.suffix in _WEIGHTS)


def require_room(
    demands: Iterable[Demand], nodes: Sequence[Mapping[str, float]], file: YamlFile
) -> None:
    """Raise OptionError where a job asks for more than any of ``nodes`` has: their ``CPU``,
    ``GPU`` and ``memory``.
    """
    for demand in dict.fromkeys(demands):
        if not any(fits(demand, node) for node in nodes):
            have = "; ".join(dict.fromkeys(str(node_demand(node)) for node in nodes)) or "no node"
            raise OptionError(
                f"{file.where('resources')}: a job takes {demand}, and no node has that (there: "
                f"{have}); ask for less in resources"
            )


def node_demand(node: Mapping[str, float]) -> Demand:
    """What a node has."""
    return Demand(node.get("CPU", 0), node.get("GPU", 0), int(node.get("memory", 0)))


def fits(demand: Demand, node: Mapping[str, float]) -> bool:
    """Whether a node with nothing else to do can do a job."""
    have = node_demand(node)
    return demand.cpus <= have.cpus and demand.gpus <= have.gpus and demand.memory <= have.memory
