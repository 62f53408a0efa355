"""Gaussian noise: every linear layer but the output head gets L percent of the standard deviation
of its own weights, drawn anew for each weight.

Drawn on the CPU by numpy's PCG64, seeded with the seed and the module's name, so that a model is
the same on every device and whatever order its modules are in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    canonical_number,
    dtype_name,
)
from unlearnbench.conditions.proof import load_changed
from unlearnbench.errors import NotInForceError, PrecisionError

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

CONDITIONS = ()
FAMILY = ConditionSpec(
    "noise-L", "noised", "Gaussian noise of L% of each matrix's standard deviation added"
)
_GENERATOR = "numpy PCG64, seed and SHA-256 of the module's name"
# Of what was drawn: standard errors of its figures that still count as chance, and what rounding to
# the compute dtype may add.
_ERRORS, _ROUNDING = 6.0, 0.05


def parse(name: str) -> ConditionSpec | None:
    """``noise-5``, ``noise-0.5``, and with another seed than 0 ``noise-5-seed1``."""
    match = re.fullmatch(r"noise-(\d{1,9}(?:\.\d{1,9})?)(?:-seed(\d{1,9}))?", name, re.ASCII)
    if match is None:
        return None
    percent, seed = canonical_number(match.group(1)), int(match.group(2) or 0)
    level = float(percent)
    if not 0 < level <= 1000:
        raise PrecisionError(f"{name}: use a percentage above 0, and 1000 at most")
    return replace(
        FAMILY,
        name=f"noise-{percent}" + (f"-seed{seed}" if seed else ""),
        scheme=FAMILY.scheme.replace("L%", f"{percent}%"),
        options={"level": level, "seed": seed, "generator": _GENERATOR},
    )


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Raises NotInForceError where the noise in force is of another level or has a mean, as where
    the compute dtype rounds it away.
    """
    level, seed = float(spec.options["level"]) / 100, int(spec.options["seed"])

    def judge(name: str, now: torch.Tensor, own: torch.Tensor) -> Mapping[str, float]:
        deviation = _deviation(own)
        noise = (now.double() - own.double()) / (deviation or 1.0)
        found, mean = float(noise.std(unbiased=False)), float(noise.mean())
        chance = _ERRORS / noise.numel() ** 0.5
        off = abs(found - level) > level * (chance / 2**0.5 + _ROUNDING)
        if not deviation or off or abs(mean) > level * (chance + _ROUNDING):
            raise NotInForceError(
                f"{spec.name}: the noise in force in module {name} is {100 * found:.3g}% with mean "
                f"{100 * mean:.3g}%; {dtype_name(now)} may round it away, use --dtype fp32"
            )
        return {"noise_level": found, "noise_mean": mean}

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        return add_noise(weight, level, seed, name)

    return load_changed(spec, source, plan, change, judge)


def _deviation(weight: torch.Tensor) -> float:
    return float(weight.double().std(unbiased=False))


def add_noise(weight: torch.Tensor, level: float, seed: int, name: str) -> torch.Tensor:
    """``weight`` in fp32 with noise of ``level`` standard deviations of its own; ``name`` is the
    module's.
    """
    import numpy as np
    import torch

    words = [seed, *np.frombuffer(sha256(name.encode()).digest(), dtype="<u4").tolist()]
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
    noise = generator.standard_normal(tuple(weight.shape), dtype=np.float32)
    return weight.detach().float().cpu() + level * _deviation(weight) * torch.from_numpy(noise)
