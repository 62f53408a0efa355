"""How far a deployed checkpoint is from the one that it is set against, and whether it was made of
that one.

Rounding puts a weight on the level nearest to it, whatever the grid and however its scales were
found. So of a file made from a checkpoint each weight of that checkpoint lies nearest to the level
that the file has in its place; of a file made from another one, some do not, even where both differ
by a small update. What a file leaves unquantized, as norms, must be the checkpoint's own numbers.
A distance does not tell: a rounding error is larger than an update of unlearning. Nor does the
projection on the way to the target: where knowledge comes back, rounding itself goes that way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from unlearnbench.errors import PrecisionError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

# Constants are stored in fp16, and older quantizers round by the exact ones: of a group's largest.
SLACK = 2.0**-10
# Shares of the right file's weights: measured figures are in docs/deployed.md.
_LEAST_SAME, _LEAST_NEAREST, _LEAST_WITHIN = 0.999, 0.999, 0.9
# The same of each tensor, so that a small one is not lost among the others: a share of few numbers.
_SAME_OF_ONE, _NEAREST_OF_ONE, _WITHIN_OF_ONE = 0.98, 0.98, 0.5

Law: TypeAlias = Literal["all", "first", "column", "none"]
"""Of which weights a quantizer takes the nearest level: of all; if not of all, of the first column
of each matrix, as GPTQ, which moves its errors into the others; of one column, as GPTQ that orders
them; of none for sure."""


@dataclass(frozen=True)
class Grid:
    """How far a weight may lie below and above a value in force and still be nearest to it, each of
    its shape; infinite at an end of the grid.
    """

    below: torch.Tensor
    above: torch.Tensor
    law: Law = "all"


def near_codes(
    values: NDArray[np.float32], codes: NDArray[Any], group: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of values on an even grid: half a step, which codes give, and some slack. group: columns of a
    row that share constants.
    """
    import numpy as np

    parts, whole = values.reshape(-1, group), codes.reshape(-1, group).astype(np.float32)
    low, high = parts.min(1, keepdims=True), parts.max(1, keepdims=True)
    steps = np.ptp(whole, axis=1, keepdims=True)
    half = np.where(steps > 0, (high - low) / np.maximum(steps, 1) / 2, np.inf)
    half = (half + SLACK * np.abs(parts).max(1, keepdims=True)).astype(np.float32)
    below = np.where(parts == low, np.float32(np.inf), half)
    above = np.where(parts == high, np.float32(np.inf), half)
    return below.reshape(values.shape), above.reshape(values.shape)


def near_levels(
    values: NDArray[np.float32], group: int | None, room: float = SLACK
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of values on any grid: half way to the next level that their group uses, and some slack. For
    few bits; None: a group is a row. room: the slack, as a share of a group's largest.
    """
    import numpy as np
    import torch

    parts = torch.from_numpy(np.ascontiguousarray(values.reshape(-1, group or values.shape[-1])))
    ordered = parts.sort(dim=1).values
    last = ordered.shape[1] - 1
    up = torch.searchsorted(ordered, parts, right=True)
    down = torch.searchsorted(ordered, parts) - 1
    slack = room * parts.abs().amax(1, keepdim=True)
    above = (ordered.gather(1, up.clamp(max=last)) - parts) / 2 + slack
    below = (parts - ordered.gather(1, down.clamp(min=0))) / 2 + slack
    above, below = above.masked_fill(up > last, np.inf), below.masked_fill(down < 0, np.inf)
    return below.numpy().reshape(values.shape), above.numpy().reshape(values.shape)


@dataclass
class _Count:
    """Sums over matrices, for one way in which the checkpoint may have been rounded first."""

    nearest: int = 0
    judged: int = 0
    within: int = 0
    quantized: int = 0
    worst_nearest: tuple[float, str] = (2.0, "")
    """The smallest share of one matrix, and which."""
    worst_within: tuple[float, str] = (2.0, "")

    @property
    def shares(self) -> tuple[float, float]:
        return self.nearest / max(1, self.judged), self.within / max(1, self.quantized)


@dataclass
class Distance:
    """What was met so far. A checkpoint in fp32 may have been rounded to 16 bits on its way into
    the file; of matrices whichever way fits best counts, and llama.cpp rounds no norm.
    """

    counts: dict[str, _Count] = field(default_factory=dict)
    same: int = 0
    numbers: int = 0
    worst_same: tuple[float, str] = (2.0, "")
    """The smallest share of one tensor of plain numbers, and which."""
    worst_error: tuple[float, str] = (0.0, "")
    """The largest relative error of one matrix, and which."""
    signal: float = 0.0
    noise: float = 0.0
    toward: float = 0.0
    update: float = 0.0

    def plain(self, name: str, own: torch.Tensor, now: torch.Tensor) -> None:
        """A tensor that is not quantized in the file, though it may be narrower there."""
        import torch

        same = torch.zeros(now.shape, dtype=torch.bool)
        for _, exact in _ways(own):
            same |= (now == exact) | (now == exact.half()) | (now == exact.bfloat16())
        self.same += (found := int(same.sum()))
        self.numbers += now.numel()
        self.worst_same = min(self.worst_same, (found / max(1, now.numel()), name))

    def quantized(
        self,
        name: str,
        own: torch.Tensor,
        now: torch.Tensor,
        grid: Grid,
        target: torch.Tensor | None = None,
    ) -> None:
        """A matrix that is quantized in the file. target: the same of the model before
        unlearning.
        """
        import torch

        rounding = torch.finfo(now.dtype).eps * now.abs().float()  # of what unpacked it
        now = now.float()
        for way, exact in _ways(own):
            count = self.counts.setdefault(way, _Count())
            off = exact - now
            above, below = grid.above + rounding, grid.below + rounding
            near = (off <= above) & (-off <= below)
            # Of a group of one value, as of zeros, no step is known: at most the value itself.
            single = above.isinf() & below.isinf()
            close = (off <= 2 * above) & (-off <= 2 * below)
            close &= ~single | (off.abs() <= now.abs() + rounding)
            count.within += (kept := int(close.sum()))
            count.quantized += now.numel()
            count.worst_within = min(count.worst_within, (kept / max(1, now.numel()), name))
            found, judged = int((near & ~single).sum()), int((~single).sum())
            if grid.law == "none" or not judged:
                continue
            rows = near.reshape(-1, near.shape[-1])
            if grid.law != "all" and found < _LEAST_NEAREST * judged:
                right = rows.sum(0)
                found = int(right.max() if grid.law == "column" else right[0])
                judged = rows.shape[0]
            count.nearest += found
            count.judged += judged
            count.worst_nearest = min(count.worst_nearest, (found / judged, name))
        exact, wide = own.double(), now.double()
        self.signal += (signal := float(exact.square().sum()))
        self.noise += (noise := float((wide - exact).square().sum()))
        error = (noise / signal) ** 0.5 if signal else float(noise > 0)
        self.worst_error = max(self.worst_error, (error, name))
        if target is not None:
            way_there = target.double() - exact
            self.toward += float(((wide - exact) * way_there).sum())
            self.update += float(way_there.square().sum())

    @property
    def best(self) -> _Count:
        """Of the way that fits best; of several that fit alike the plain one."""
        return max(self.counts.values(), key=lambda count: count.shares, default=_Count())

    def figures(self) -> dict[str, float]:
        """What results record; a share is of what could be judged, and absent where nothing could.

        ``within_step``: quantized weights that lie within one step (or level) of the file's.
        ``nearest``: those that lie nearest to the file's level. ``same_plain``: numbers that the
        file does not quantize and that are the checkpoint's. ``toward_target``: how much of the way
        to the target rounding goes, which is 1 - update survival.
        """
        best, found = self.best, dict[str, float]()
        if best.quantized:
            found["within_step"] = best.within / best.quantized
        if best.judged:
            found["nearest"] = best.nearest / best.judged
        if self.numbers:
            found["same_plain"] = self.same / self.numbers
        if self.update:
            found["toward_target"] = self.toward / self.update
        return found

    @property
    def relative_error(self) -> float:
        """RMS of the differences over that of the checkpoint's weights."""
        return float((self.noise / self.signal) ** 0.5) if self.signal else 0.0

    def require(self, path: str, model: str) -> None:
        """Raise PrecisionError, with the figure, where the file was not made from the model."""
        best, figures = self.best, self.figures()
        told = f"--deployed {path} was not made from {model}: "
        remedy = "; give the checkpoint that it was made from as --model"
        (same, odd), (nearest, far), (within, off) = (
            *(self.worst_same, best.worst_nearest, best.worst_within),
        )
        if figures.get("same_plain", 1.0) < _LEAST_SAME or same < _SAME_OF_ONE:
            raise PrecisionError(
                f"{told}of the numbers that it does not quantize {_percent(figures['same_plain'])} "
                f"are the model's, and all must be (fewest in {odd}: {_percent(same)}; "
                f"{_rest(figures)}){remedy}"
            )
        if figures.get("nearest", 1.0) < _LEAST_NEAREST or nearest < _NEAREST_OF_ONE:
            raise PrecisionError(
                f"{told}{_percent(figures['nearest'])} of the model's weights lie nearest to the "
                f"level that stands in their place, and {_percent(_LEAST_NEAREST)} must (fewest in "
                f"{far}: {_percent(nearest)}; {_rest(figures)}){remedy}"
            )
        if figures.get("within_step", 1.0) < _LEAST_WITHIN or within < _WITHIN_OF_ONE:
            raise PrecisionError(
                f"{told}{_rest(figures)}, and {_percent(_LEAST_WITHIN)} must (fewest in {off}: "
                f"{_percent(within)}){remedy}"
            )
        if self.worst_error[0] >= 1:  # scales that are divided out fit anything within a step
            raise PrecisionError(
                f"{told}{self.worst_error[1]} is as far from the model's as zeros would be{remedy}"
            )


def _rest(figures: Mapping[str, float]) -> str:
    return f"{_percent(figures.get('within_step', 0.0))} within one step"


def _percent(share: float) -> str:
    """Never rounded up to 100."""
    return f"{int(share * 1e4) / 1e2:g}%"


def _ways(own: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    import torch

    exact = own.float()
    found = [("as stored", exact)]
    if own.dtype == torch.float32:
        found += [("fp16", exact.half().float()), ("bf16", exact.bfloat16().float())]
    return found
