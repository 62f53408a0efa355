"""A checkpoint that another tool quantized, measured as a condition of the one that it was made
from: ``--deployed FILE|FOLDER|ID`` is ``deployed:SCHEME``.

Asked is as the entry's own checkpoint is, by its tokenizer; in force are the file's weights, all of
them, embeddings and head too. Shown first is that it was made from that checkpoint; see
``elsewhere/distance.py``. Its inside is a stranger's: nothing in it runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    Materials,
    ModelWithProof,
    Option,
)
from unlearnbench.conditions.elsewhere.files import Deployed, open_all
from unlearnbench.errors import PrecisionError
from unlearnbench.results import DEPLOYED

if TYPE_CHECKING:
    from unlearnbench.checkpoints.checkpoint import CheckpointSource
    from unlearnbench.checkpoints.source import Source
    from unlearnbench.conditions.options import KernelOptions

CONDITIONS = ()
FAMILY = ConditionSpec(
    f"{DEPLOYED}SCHEME", "deployed", "as another tool quantized it (--deployed)", "elsewhere"
)


def parse(name: str) -> ConditionSpec | None:
    """``deployed:gguf-q4_k_m``: what a run of it is called; the checkpoint is named apart."""
    if not re.fullmatch(DEPLOYED + r"[A-Za-z0-9][A-Za-z0-9._-]*", name, re.ASCII):
        return None
    return replace(FAMILY, name=name, scheme=f"{name.removeprefix(DEPLOYED)}, by another tool")


def specs(names: Sequence[str], options: LoadOptions) -> tuple[ConditionSpec, ...]:
    """The conditions that the checkpoints of ``--deployed`` are. Raises as ``open_all``."""
    return tuple(_spec(one) for one in open_all(names, options).values())


def beside(others: Sequence[ConditionSpec], options: KernelOptions) -> tuple[ConditionSpec, ...]:
    """The others and those of ``--deployed``, each once. Raises as ``open_all``."""
    every = (*others, *specs(options.deployed, options))
    return tuple({spec.name: spec for spec in every}.values())


def _spec(one: Deployed) -> ConditionSpec:
    scheme = one.scheme
    return replace(
        FAMILY,
        name=one.condition,
        scheme=f"by another tool: {scheme.text}",
        backend="gguf" if one.gguf is not None else scheme.package[0],
        bits=scheme.bits,
        kernels=("dequantized",) if one.gguf is not None else (),
        libraries=("gguf",) if one.gguf is not None else (scheme.package[0],),
    )


def settle(spec: ConditionSpec, source: Source, materials: Materials) -> Mapping[str, Option]:
    """Nothing beside the scheme. Raises CheckpointError where the file has another vocabulary or
    other shapes, PrecisionError where the checkpoint is of a kind that no file is made from.
    """
    from unlearnbench.conditions.elsewhere.fit import require_alike

    one = materials.deployed[spec.name]
    what = f"{spec.name} of {source.files.path}"
    if source.ensemble is not None:
        raise PrecisionError(f"{what}: it holds several models, and a file is of one")
    if source.adapter_kept:
        raise PrecisionError(f"{what}: a file holds whole weights; use --adapter merge")
    require_alike(one, source)
    return {}


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Raises PrecisionError, with the figure, where the file was not made from ``source``;
    CheckpointError where it cannot be read; NotInForceError where what it states is not in it.
    """
    from unlearnbench.conditions.elsewhere import build

    one = plan.materials.deployed[spec.name]
    return (build.from_folder if one.gguf is None else build.from_gguf)(one, source, plan)
