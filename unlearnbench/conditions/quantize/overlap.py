"""Bin overlap: how many quantized codes an unlearned checkpoint shares with its target. No forward
pass; tensors are read one pair at a time.

Where nearly all codes are the same, the quantized unlearned model is nearly the quantized target,
and what was forgotten comes back (arXiv 2410.16454, section 5).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench import conditions
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.errors import CheckpointError, OptionError, PrecisionError, one_line
from unlearnbench.util.files import writing

if TYPE_CHECKING:
    from unlearnbench.checkpoints.weights import Weights


# What an overlap of at least so much lets expect.
_FORECASTS = (
    (0.999, "expect recovery"),
    (0.99, "recovery is likely, measure it"),
    (0.9, "recovery is possible, measure it"),
    (0.0, "the update outlives quantization"),
)


@dataclass(frozen=True)
class LayerOverlap:
    """One weight matrix at one precision."""

    name: str
    weights: int
    same: int
    """Weights whose code is the same in both checkpoints."""
    changed: int
    """Weights that differ at all."""
    update: float
    """The sum of |difference| / bin width, over ``measured`` weights."""
    measured: int
    """Weights in groups that are not all zero."""


@dataclass(frozen=True)
class PrecisionOverlap:
    """Weight matrices at one precision."""

    precision: str
    layers: tuple[LayerOverlap, ...]

    @property
    def weights(self) -> int:
        """Weights compared."""
        return sum(layer.weights for layer in self.layers)

    @property
    def overlap(self) -> float:
        """Share of weights with the same code in both checkpoints."""
        return sum(layer.same for layer in self.layers) / self.weights

    @property
    def changed_share(self) -> float:
        """Share of weights that differ at all."""
        return sum(layer.changed for layer in self.layers) / self.weights

    @property
    def mean_update(self) -> float:
        """Mean |difference| over the bin width (the distance of two neighbouring levels)."""
        measured = sum(layer.measured for layer in self.layers)
        return sum(layer.update for layer in self.layers) / measured if measured else 0.0

    def by_block(self) -> dict[str, float]:
        """Overlap by transformer block (``model.layers.3``; a matrix outside of one has its own
        name), in the model's order.
        """
        parts: dict[str, list[LayerOverlap]] = {}
        for layer in self.layers:
            match = re.match(r"(.*?\.\d+)(?=\.)", layer.name)
            parts.setdefault(match[1] if match else layer.name, []).append(layer)
        return {n: PrecisionOverlap(self.precision, tuple(p)).overlap for n, p in parts.items()}

    def figures(self) -> dict[str, object]:
        """What ``--json`` writes of these matrices together."""
        return {
            "overlap": self.overlap,
            "changed_share": self.changed_share,
            "mean_update_over_width": self.mean_update,
            "weights": self.weights,
        }


def forecast(found: PrecisionOverlap) -> str:
    """One line on what the overlap lets expect; a heuristic, which a run replaces."""
    if found.changed_share == 0:
        return "the two checkpoints hold the same weights: nothing was unlearned in these layers"
    expected = next(words for least, words in _FORECASTS if found.overlap >= least)
    return f"{_percent(found.overlap)} of {found.precision} codes unchanged: {expected}"


def _percent(share: float) -> str:
    """Never rounded up to 100."""
    return f"{int(share * 1e5) / 1e3:.3f}%" if share > 0.99 else f"{100 * share:.1f}%"


def require_codes(specs: Sequence[ConditionSpec]) -> None:
    """Refuse precisions whose codes do not follow from a weight alone.

    Raises:
        PrecisionError: names it, and what can be had.
    """
    for spec in specs:
        if not conditions.has_codes(spec):
            why = "its codes depend on calibration texts" if spec.calibrated else "it has no codes"
            raise PrecisionError(
                f"inspect cannot tell bins of {spec.name}: {why}; use rtn, bnb, gguf, hqq, quanto "
                "or torchao precisions"
            )


def compare_codes(
    unlearned: Weights, target: Weights, specs: Sequence[ConditionSpec]
) -> Iterator[tuple[str, list[LayerOverlap]]]:
    """Compare two checkpoints, one weight matrix after another; yields its name and, for each spec,
    what was found. Memory: one matrix of each checkpoint in fp32 and its codes.

    Raises:
        CheckpointError: the architectures or shapes differ, or a weight is not finite.
    """
    require_alike(unlearned, target)
    for name in unlearned.linear:
        ours, theirs = unlearned.read(name), target.read(name)
        if ours.shape != theirs.shape:
            raise CheckpointError(
                f"{name} has shape {tuple(ours.shape)} in {unlearned.path} and "
                f"{tuple(theirs.shape)} in {target.path}; they are not the same architecture"
            )
        for path, tensor in ((unlearned.path, ours), (target.path, theirs)):
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(f"{path}: {name} has NaN or infinite values; it is broken")
        found, changed = [], int((ours != theirs).sum())
        for spec in specs:
            one, two = conditions.encode(spec, ours), conditions.encode(spec, theirs)
            same = int((one.codes == two.codes).sum())
            width = two.width.float().expand(theirs.shape)
            steps = (ours - theirs).abs() / width.where(width > 0, 1.0)
            update, measured = float(steps[width > 0].double().sum()), int((width > 0).sum())
            found.append(LayerOverlap(name, ours.numel(), same, changed, update, measured))
        yield name, found


def require_alike(unlearned: Weights, target: Weights) -> None:
    """Raise CheckpointError where the two are not of one architecture."""
    for key in ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size"):
        ours, theirs = (w.config.get(key) for w in (unlearned, target))
        if ours != theirs:
            raise CheckpointError(
                f"{unlearned.path} has {key} {one_line(ours, 40)}, and {target.path} has "
                f"{one_line(theirs, 40)}; bins can be compared within one architecture only"
            )
    odd = sorted(set(unlearned.linear) ^ set(target.linear))
    if odd:
        raise CheckpointError(
            f"only one of {unlearned.path} and {target.path} has {one_line(odd[0], 120)}; bins can "
            "be compared within one architecture only"
        )


def overlap_table(found: Sequence[PrecisionOverlap]) -> str:
    """Two tables: a summary line a precision, and the overlap of every transformer block."""
    from unlearnbench.util.text import text_table

    rows = []
    for p in found:
        changed, same = _percent(p.changed_share), _percent(p.overlap)
        rows.append([p.precision, f"{p.weights:,}", changed, f"{p.mean_update:.4g}", same])
    head = ["precision", "weights", "changed", "mean update / bin", "same code"]
    summary = text_table(rows, head)
    shares = [p.by_block() for p in found]
    lines = [[block, *(_percent(share[block]) for share in shares)] for block in shares[0]]
    layers = text_table(lines, ["same code in", *(p.precision for p in found)])
    return f"{layers}\n\n{summary}\n\n" + "\n".join(forecast(p) for p in found)


def write_json(path: Path, found: Sequence[PrecisionOverlap], facts: Mapping[str, str]) -> None:
    """Write every figure: ``{"model", "target", "precisions": {name: {"overlap", ...}}}``."""
    precisions = {}
    for p in found:
        layers = {x.name: PrecisionOverlap(p.precision, (x,)).figures() for x in p.layers}
        precisions[p.precision] = {**p.figures(), "forecast": forecast(p), "layers": layers}
    content = {**facts, "precisions": precisions}
    _write(path, json.dumps(content, indent=2, allow_nan=False).encode("ascii") + b"\n")


def _write(path: Path, content: bytes) -> None:
    with writing(path, OptionError, "give another path"):
        path.write_bytes(content)


def plot_overlap(path: Path, found: Sequence[PrecisionOverlap]) -> None:
    """Draw the overlap of every transformer block, a line a precision. The suffix says the format.

    Raises:
        OptionError: a suffix that matplotlib does not know, or a file that cannot be written.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    kinds = canvas.get_supported_filetypes()
    kind = path.suffix[1:].lower()
    if kind not in kinds:
        raise OptionError(f"--plot {path}: use a file ending in .png, .svg or .pdf")
    axes = figure.add_subplot()
    for p in found:
        percents = [100 * share for share in p.by_block().values()]
        axes.plot(range(len(percents)), percents, marker=".", label=p.precision)
    axes.set_xlabel("transformer block")
    axes.set_ylabel("weights with the same code in model and target, %")
    axes.set_ylim(top=100.5)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    _write(path, buffer.getvalue())
