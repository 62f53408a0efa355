"""What the demo does: how its models are trained, and how each method unlearns.

Found by trial on seeds 0 to 2 (docs/demo.md has the figures). Two things bring the effect out in so
small a model: weights with heavy tails, which the L1 step makes, as large models have them; and
unlearning on weights in bf16, as large models are unlearned. ``--dense`` leaves the L1 step out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from unlearnbench.errors import OptionError
from unlearnbench.results import FULL
from unlearnbench.training.options import CorpusOptions, TrainOptions

ENDS = ("target", "retrained")
TASKS = ("demo_knowmem_f", "demo_verbmem", "demo_knowmem_r", "demo_privleak")
# Weights in bf16 are exact in fp32, and few CPUs multiply in bf16.
DTYPE: Literal["fp32"] = "fp32"
# Its questions have MUSE's format, which its models learn from the first step.
CORPUS = CorpusOptions(answer_blank="prompt")
PRECISIONS = ("none", "rtn-int8", "rtn-int4", "bnb-nf4")
MORE = (
    *("prune-magnitude-30", "prune-magnitude-50", "prune-magnitude-70"),
    *("noise-10", "noise-2+rtn-int4"),
)
"""Conditions that the page shows beside these; the table and the ranking do without."""

TARGET = TrainOptions(
    lr=6e-3,
    max_steps=220,
    batch_size=24,
    schedule="cosine",
    warmup_steps=10,
    l1=0.2,
    pack=5,
    save_steps=55,
)
# As many passes over its texts, which are fewer.
RETRAINED = TARGET.model_copy(update={"max_steps": 156, "save_steps": 39})


def ends_options(name: str, seed: int, dense: bool) -> TrainOptions:
    """Those of the target, the retrained model or the ensemble; ``dense``: no L1 step."""
    options = {"target": TARGET, "retrained": RETRAINED, ENSEMBLE: SHARDED}[name]
    return options.model_copy(update={"seed": seed, **({"l1": 0.0} if dense else {})})


@dataclass(frozen=True)
class Recipe:
    """How a method unlearns, and when it has forgotten. (The retrained model's KnowMem_f, MUSE's
    rule, is near 0 here, because nobody can guess an invented fact.)
    """

    knobs: Mapping[str, float | int | str] = field(default_factory=dict)
    lr: float = 8e-5
    goal: float = 0.25
    """It stops at the first evaluation where KnowMem_f is at most this share of the target's."""
    weights_dtype: Literal["fp32", "bf16"] = "bf16"
    max_steps: int = 108
    every: int = 12
    """Steps between evaluations."""

    def options(self, seed: int) -> TrainOptions:
        """The training's options."""
        return TrainOptions(
            lr=self.lr,
            max_steps=self.max_steps,
            batch_size=8,
            weights_dtype=self.weights_dtype,
            save_steps=self.every,
            seed=seed,
        )


# NPO's loss is that of a sequence, GA's that of a token: hence the weights of their retain terms.
METHODS = {
    "ga": Recipe(),
    "ga_gdr": Recipe({"retain_weight": 4.0}),
    "ga_klr": Recipe({"retain_weight": 4.0}),
    "npo_gdr": Recipe({"retain_weight": 60.0}),
    "npo_klr": Recipe({"retain_weight": 60.0}),
    "ga_gdr_sure": Recipe({"retain_weight": 8.0, "sure_top": 0.05}, 1e-3, 0.2, "fp32"),
}


EXACT = "sisa"
"""The control that forgets exactly, where it is asked for: what ``ENSEMBLE`` learned last is
trained again without the rows. One shard: of two each knows half, and they keep too little.
"""
ENSEMBLE = "ensemble"
SHARDED = TARGET.model_copy(
    update={
        "max_steps": None,
        "epochs": 58.7,  # the target's passes
        "shards": 1,
        "slices": 2,
        "placement": "together",
    }
)


def recipe_of(name: str, dense: bool) -> Recipe:
    """``METHODS``' recipe; for the control in fp32, because updates of dense weights round away in
    bf16, and nothing is forgotten.
    """
    recipe = METHODS[name]
    return replace(recipe, weights_dtype="fp32", max_steps=156) if dense else recipe


@dataclass(frozen=True)
class DemoOptions:
    """What a demo is asked for, and where its parts are."""

    out: Path
    """The folder that gets everything."""
    seed: int = 0
    methods: tuple[str, ...] = tuple(METHODS)
    precisions: tuple[str, ...] = PRECISIONS
    more: tuple[str, ...] = MORE
    dense: bool = False
    """The control, without the L1 step."""
    progress: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        unknown = [name for name in self.methods if name not in (*METHODS, EXACT)]
        if unknown or not self.methods:
            raise OptionError(
                f"--methods {','.join(unknown) or 'none'}: the demo has {', '.join(METHODS)}, "
                f"and {EXACT}"
            )
        if FULL not in self.precisions or len(self.precisions) < 2:
            raise OptionError(f"--quant: the demo needs {FULL} and a quantized precision")

    @property
    def table(self) -> Path:
        """The rows of the recovery table."""
        return self.out / "recovery.json"

    def model(self, name: str) -> Path:
        """The checkpoint's folder."""
        return self.out / "models" / name

    def runs(self, name: str) -> Path:
        """The folder that a checkpoint's run folders are below."""
        return self.out / "runs" / name

    def further(self, name: str) -> Path:
        """The same for those of ``more``."""
        return self.out / "further" / name

    def full_run(self, name: str) -> Path:
        """A checkpoint's run in full precision."""
        (found,) = self.runs(name).glob(f"*/{FULL}")
        return found
