"""What rounding leaves of an unlearned checkpoint's update. No forward pass; tensors are read one
pair at a time.

Update survival is <Q(U) - Q(T), U - T> / |U - T|^2: the share of the update that is still there
when both are quantized, along the update. Bin overlap is the share of weights whose code is the
same (arXiv 2410.16454, section 5); it is high wherever updates are small, and does not tell.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench import conditions
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.quantize.forecast import forecast
from unlearnbench.errors import CheckpointError, OptionError, PrecisionError, one_line
from unlearnbench.util.files import writing

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.weights import Weights


_CHUNK = 2**20  # weights that are held in double precision at a time


@dataclass(frozen=True)
class LayerOverlap:
    """One weight matrix at one precision."""

    name: str
    weights: int
    same: int
    """Weights whose code is the same in both checkpoints."""
    changed: int
    """Weights that differ at all."""
    kept: float
    """<Q(U) - Q(T), U - T>, in double precision."""
    update: float
    """|U - T|^2, in double precision."""
    rounded: float
    """|Q(U) - Q(T)|^2, in double precision."""


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
    def survival(self) -> float | None:
        """Share of the update that is left after rounding, along the update; below 0 or above 1
        where rounding turns it round or enlarges it. None: nothing was updated.
        """
        update = math.fsum(layer.update for layer in self.layers)
        return math.fsum(layer.kept for layer in self.layers) / update if update else None

    @property
    def size(self) -> float | None:
        """|Q(U) - Q(T)| / |U - T|; None: nothing was updated."""
        update = math.fsum(layer.update for layer in self.layers)
        return (math.fsum(x.rounded for x in self.layers) / update) ** 0.5 if update else None

    def by_block(self) -> dict[str, PrecisionOverlap]:
        """By transformer block (``model.layers.3``; a matrix outside of one has its own name), in
        the model's order.
        """
        return self._grouped(lambda name, block: block or name)

    def by_module(self) -> dict[str, PrecisionOverlap]:
        """By a matrix's name inside its block (``mlp.up_proj``), over all blocks."""
        return self._grouped(lambda name, block: name[len(block) :].lstrip("."))

    def _grouped(self, key: Callable[[str, str], str]) -> dict[str, PrecisionOverlap]:
        parts: dict[str, list[LayerOverlap]] = {}
        for layer in self.layers:
            match = re.match(r".*?\.\d+(?=\.)", layer.name)
            parts.setdefault(key(layer.name, match[0] if match else ""), []).append(layer)
        return {name: PrecisionOverlap(self.precision, tuple(p)) for name, p in parts.items()}

    def figures(self) -> dict[str, object]:
        """What ``--json`` writes of these matrices together."""
        return {
            "survival": self.survival,
            "overlap": self.overlap,
            "size": self.size,
            "changed_share": self.changed_share,
            "weights": self.weights,
        }


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
        update = product(ours, theirs, ours, theirs)
        for spec in specs:
            its = conditions.for_matrix(spec, name, unlearned.linear, unlearned.config)
            one, two = conditions.encode(its, ours), conditions.encode(its, theirs)
            same = int((one.codes == two.codes).sum())
            kept = product(one.values, two.values, ours, theirs)
            if not math.isfinite(kept):
                raise CheckpointError(
                    f"{unlearned.path} or {target.path}: {name} has values that {spec.name} cannot "
                    "hold; leave that precision out"
                )
            size = product(one.values, two.values, one.values, two.values)
            found.append(LayerOverlap(name, ours.numel(), same, changed, kept, update, size))
        yield name, found


def product(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> float:
    """<a - b, c - d> of tensors of one shape, in double precision, piece by piece, in an order that
    threads do not change.
    """
    pieces = zip(*(t.reshape(-1).split(_CHUNK) for t in (a, b, c, d)), strict=True)
    return math.fsum(
        float(((w.double() - x.double()) * (y.double() - z.double())).numpy().sum())
        for w, x, y, z in pieces
    )


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
    """Survival and overlap of every transformer block, of every module over all blocks, and of all
    together with a forecast, a table each.
    """
    from unlearnbench.util.text import fitted_table, in_parts, plain_table, terminal_width

    tables = []
    for what, parts in (
        ("block", {p.precision: p.by_block() for p in found}),
        ("module", {p.precision: p.by_module() for p in found}),
    ):
        tables += [
            plain_table(lines[1:], lines[0])
            for lines in in_parts([*parts], partial(_lines, what, parts), terminal_width())
        ]
    rows = [
        [
            p.precision,
            f"{p.weights:,}",
            _percent(p.changed_share),
            _survival(p),
            _percent(p.overlap),
        ]
        for p in found
    ]
    head = ["precision", "weights", "changed", "update survival", "same code"]
    tables += [
        fitted_table(rows, head),
        "\n".join(forecast(p.survival, p.precision) for p in found),
    ]
    return "\n\n".join(tables)


def _lines(
    what: str, parts: Mapping[str, Mapping[str, PrecisionOverlap]], precisions: Sequence[str]
) -> list[list[str]]:
    head = [f"survival, same code: {what}", *precisions]
    names = next(iter(parts.values()))
    return [head, *([n, *(_shown(parts[p][n]) for p in precisions)] for n in names)]


def _survival(found: PrecisionOverlap) -> str:
    return "no update" if found.survival is None else f"{found.survival:.3f}"


def _shown(found: PrecisionOverlap) -> str:
    return f"{_survival(found)}, {_percent(found.overlap)}"


def write_json(path: Path, found: Sequence[PrecisionOverlap], facts: Mapping[str, str]) -> None:
    """Write every figure: ``{"model", "target", "precisions": {name: {"survival", ...}}}``; a
    survival of null says that nothing was updated.
    """
    precisions = {}
    for p in found:
        layers = {x.name: PrecisionOverlap(p.precision, (x,)).figures() for x in p.layers}
        parts = {
            "blocks": {name: part.figures() for name, part in p.by_block().items()},
            "modules": {name: part.figures() for name, part in p.by_module().items()},
            "layers": layers,
        }
        precisions[p.precision] = {
            **p.figures(),
            "forecast": forecast(p.survival, p.precision),
            **parts,
        }
    content = {**facts, "precisions": precisions}
    _write(path, json.dumps(content, indent=2, allow_nan=False).encode("ascii") + b"\n")


def _write(path: Path, content: bytes) -> None:
    with writing(path, OptionError, "give another path"):
        path.write_bytes(content)


def plot_kind(path: Path) -> str:
    """The format that its suffix names; OptionError for one that matplotlib does not know."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    kind = path.suffix[1:].lower()
    if kind not in FigureCanvasAgg.get_supported_filetypes():
        raise OptionError(f"--plot {path}: use a file ending in .png, .svg or .pdf")
    return kind


def plot_overlap(path: Path, found: Sequence[PrecisionOverlap]) -> None:
    """Draw survival and overlap of every transformer block, a line a precision. The suffix says the
    format.

    Raises:
        OptionError: a suffix that matplotlib does not know, or a file that cannot be written.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind, figure = plot_kind(path), Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, sharex=True)
    for p in found:
        parts = list(p.by_block().values())
        survivals = [math.nan if x.survival is None else x.survival for x in parts]
        upper.plot(range(len(parts)), survivals, marker=".", label=p.precision)
        shares = [100 * x.overlap for x in parts]
        lower.plot(range(len(parts)), shares, marker=".", label=p.precision)
    upper.set_ylabel("update survival")
    upper.axhline(1, color="grey", linewidth=0.8)
    upper.axhline(0, color="grey", linewidth=0.8)
    lower.set_xlabel("transformer block")
    lower.set_ylabel("same code in model and target, %")
    lower.set_ylim(top=100.5)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    upper.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    _write(path, buffer.getvalue())
