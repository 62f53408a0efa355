"""What rounding will leave of a training, told before its first step from dtype, learning rates and
the target's weights.

A number of bf16 with |w| in [2^e, 2^(e+1)) has neighbours 2^(e-7) away (fp16: 2^(e-10), fp32:
2^(e-23)). A step of AdamW is lr x u with u at most about 1, and one below half that distance rounds
away. So weights of ``limit`` and above stand still, and those below freeze when they have grown to
it. Where a quantizer's zero bin is wider than that, no weight that can move ever leaves its bin.
How much of an update is left is found by making one up: every sampled weight drifts, as measured
weights do on average, and is rounded after each step; then both ends are quantized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from unlearnbench import conditions
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.quantize.forecast import forecast
from unlearnbench.conditions.quantize.overlap import product

if TYPE_CHECKING:
    import torch

    Made: TypeAlias = Callable[[str, int], list[torch.Tensor]]

# Significant bits of the weights that a step is added to; bf16-sr holds and adds in fp32.
SIGNIFICANT = {"bf16": 8, "fp16": 11, "fp32": 24, "bf16-sr": 24}
COMMON = ("rtn-int8", "rtn-int4", "bnb-nf4", "bnb-fp4")
_ROWS, _WEIGHTS = 16, 2**18  # at most so many rows of a matrix, about so many weights in all
_STEPS = 500  # made up at most
# Of u: the spread of its mean over a training, and that of a step about it. Weights of the demo's
# models went 0.11 to 0.15 of the sum of learning rates (docs/why.md).
_DRIFT, _SPREAD = 0.15, 0.3
_KEPT = 0.7  # survival below which help is named
_ALL = (0.9, 1.1)  # what help has to give
_FINER = ("fp32", "bf16-sr")
_RATES = (2, 4, 8)


class Planned(NamedTuple):
    """A training before its first step."""

    dtype: str
    """fp32, bf16, fp16, bf16-rounded or bf16-sr."""
    rates: Sequence[float]
    """The learning rate of each step."""
    most: bool = False
    """Whether it may stop earlier."""
    chunked: bool = False
    """Whether others of as many steps follow on other chunks of the texts."""
    survived: Sequence[str] = ()
    """The precisions of --survive."""
    can_survive: bool = True
    """Whether the method takes that option."""

    @property
    def steps(self) -> str:
        """How many, in words."""
        count = f"{len(self.rates)} step{'s' * (len(self.rates) != 1)}"
        most, where = "at most " * self.most, " on the first chunk" * self.chunked
        return f"{most}{count}{where}"

    @property
    def made(self) -> Sequence[float]:
        """The rates of the steps that are made up: all, or some from one end to the other. Not
        fewer and larger ones, which would not be rounded away.
        """
        count = min(_STEPS, len(self.rates))
        return [self.rates[i * len(self.rates) // count] for i in range(count)]


def limit(lr: float, dtype: str) -> float:
    """The magnitude that no weight of ``dtype`` grows beyond in steps of less than ``lr``, and from
    which on weights stand still; at it, a weight can still shrink. A power of two.
    """
    return float(2.0 ** math.ceil(math.log2(lr) + SIGNIFICANT[dtype]))


def rows_of(matrices: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Some rows of matrices (out, in), evenly spread, in float32: bins are those of a row or less.
    Of a large model not every matrix is read.
    """
    every = list(matrices)
    columns = sum(w.shape[1] for w in every)
    count = max(1, min(_ROWS, _WEIGHTS // columns))
    chosen = every[:: -(-columns // _WEIGHTS)]
    return [w.detach()[:: -(-len(w) // count)].float().cpu() for w in chosen]


def imagined(
    weights: Sequence[torch.Tensor], dtype: str, rates: Sequence[float]
) -> list[torch.Tensor]:
    """The weights after a made-up training: one step for each learning rate."""
    import torch

    from unlearnbench.util.bf16 import round_nearest, round_stochastic

    generator = torch.Generator().manual_seed(0)
    moved = []
    for weight in weights:
        now = round_nearest(weight) if dtype.startswith("bf16") else weight.clone()
        drift = torch.empty_like(now).normal_(0, _DRIFT, generator=generator)
        for lr in rates:
            step = torch.empty_like(now).normal_(0, _SPREAD, generator=generator)
            now -= lr * (step + drift).clamp_(-1, 1)
            if dtype == "bf16-sr":
                now = round_stochastic(now, generator)
            elif dtype != "fp32":
                now = now.to(torch.float16 if dtype == "fp16" else torch.bfloat16).float()
        moved.append(now)
    return moved


def survival(
    ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], spec: ConditionSpec
) -> float | None:
    """Update survival over some rows; None where nothing was updated."""
    kept = update = 0.0
    for one, two in zip(ours, theirs, strict=True):
        ends = [conditions.encode(spec, weight).values for weight in (one, two)]
        kept += product(ends[0], ends[1], one, two)
        update += product(one, two, one, two)
    return kept / update if update else None


def leaving(weights: Sequence[torch.Tensor], spec: ConditionSpec, highest: float) -> int:
    """How many weights up to ``highest`` can leave their bin, since it ends below that. One that
    its grid hangs on takes the grid along.
    """
    count = 0
    for weight in weights:
        own = conditions.levels(spec, weight)
        up, down = (own.values + own.above) / 2, (own.values + own.below) / 2
        hangs = own.above.isnan() & own.below.isnan()
        moves = weight.abs() <= highest
        count += int((moves & ((up < highest) | (down > -highest) | hangs)).sum())
    return count


def tell(weights: Sequence[torch.Tensor], planned: Planned, precisions: Sequence[str]) -> list[str]:
    """A line on what a training can move, and one a precision on what can leave its bin there, on
    what is left of a made-up training, and on what helps.
    """
    dtype, peak = planned.dtype, max(planned.rates)
    highest = limit(peak, dtype.removesuffix("-rounded"))
    total = sum(w.numel() for w in weights)
    moving = sum(int((w.abs() <= highest).sum()) for w in weights)
    share = f"{_share(moving, total)} of the inner weights can move"
    head = f"weights in {dtype} at --lr {peak:g}, {planned.steps}: {share}"
    head += "" if moving == total else f", those up to {highest:.3g}"

    @cache
    def made(dtype: str, times: int) -> list[torch.Tensor]:
        return imagined(weights, dtype, [times * lr for lr in planned.made])

    if not all(bool(weight.isfinite().all()) for weight in made(dtype, 1)):
        return [head, "made-up steps end beyond all numbers; use a smaller --lr"]
    lines = [head]
    for spec in conditions.resolve(precisions):
        line = f"{spec.name}: {_share(moving, total)} can move"
        if moving:
            left = leaving(weights, spec, highest)
            line += f", {_share(left, moving)} of these can leave their bin"
        if spec.name in planned.survived:
            lines.append(f"{line}; --survive takes the loss there too, which is not made up")
            continue
        found = survival(made(dtype, 1), weights, spec)
        if found is None:
            help = " or ".join(_helps(weights, planned, spec, made)) or "a larger --lr"
            return [head, f"no sampled weight moves in {planned.steps}; use {help}"]
        line += f"; {_how(planned)}: {forecast(found, spec.name)}"
        helps = _helps(weights, planned, spec, made) if found < _KEPT else []
        if found < _KEPT and planned.can_survive:
            worst = ",".join([*planned.survived, spec.name])
            helps.append(f"--survive {worst} --survive-forget worst")
        lines.append(line + (f"; more is kept by {' or '.join(helps)}" if helps else ""))
    return lines


def _share(part: int, whole: int) -> str:
    """In percent, and never rounded up to all or down to none."""
    if part in (0, whole):
        return "all" if part else "none"
    return f"{min(99.9, 100 * part / whole):.3g}%"


def _how(planned: Planned) -> str:
    """What was made up."""
    some = f"{_STEPS} of " if len(planned.rates) > _STEPS else ""
    return f"in {some}{planned.steps}, made up{' without --survive' * bool(planned.survived)}"


def _helps(
    weights: Sequence[torch.Tensor], planned: Planned, spec: ConditionSpec, made: Made
) -> list[str]:
    """Dtypes that round away less, and the least of some larger learning rates, each only where a
    made-up training keeps nearly all with it.
    """

    def keeps(dtype: str, times: int) -> bool:
        found = survival(made(dtype, times), weights, spec)
        return found is not None and _ALL[0] <= found < _ALL[1]

    dtypes = () if planned.dtype in _FINER else _FINER
    found = [f"--weights-dtype {dtype}" for dtype in dtypes if keeps(dtype, 1)]
    larger = next((times for times in _RATES if keeps(planned.dtype, times)), None)
    return found if larger is None else [*found, f"--lr {larger * max(planned.rates):g}"]
