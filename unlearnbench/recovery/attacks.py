"""What brings it back, and how cheaply: the conditions of one checkpoint beside the control, as a
table and as a plot.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import OptionError
from unlearnbench.recovery.compare import Comparison
from unlearnbench.recovery.reports import points, share
from unlearnbench.recovery.verdicts import RecoveryRow
from unlearnbench.results import TaskResult
from unlearnbench.runs.entries import LoadedRun
from unlearnbench.util.text import fitted_table

SUITES = {
    "quick": "rtn-int4,bnb-nf4,prune-magnitude-30,noise-5,prefix-1,hints-3,sample-8,suffix-10",
    "full": "rtn-int8,rtn-int4,bnb-int8,bnb-fp4,bnb-nf4,prune-magnitude-30,prune-magnitude-50,"
    "prune-wanda-50,noise-5,noise-10,prune-wanda-30+bnb-nf4,noise-2+bnb-nf4,prefix-1,prefix-2,"
    "prefix-3,hints-1,hints-3,hints-5,sample-16,sample-64,suffix-250,suffix-250-target,embedding-100,merge-0.5,"
    "relearn-5,relearn-10,relearn-20",
}
"""The conditions of each suite; ``none`` comes before them."""
_HEAD = ["condition", "cost", "after", "control", "share", "verdict"]


@dataclass(frozen=True)
class Attack:
    """One condition on one task: what it does to the checkpoint, and to the retrained model."""

    row: RecoveryRow
    cost: str
    control: tuple[float, float] | None
    """The retrained model's value before and after; None where it was not measured."""


def cost_of(run: LoadedRun, task: str) -> str:
    """What a condition took, in words: a search, steps of training, several answers."""
    result: TaskResult = run.task(task)
    if result.searches:
        passes = sum(found.forward_passes + found.backward_passes for found in result.searches)
        return _spent(passes, sum(found.seconds for found in result.searches))
    if result.leak is not None:
        return f"{result.leak.draws} answers each"
    condition = run.result.condition.first or run.result.condition
    steps = condition.options.further.get("steps")
    if condition.kind == "relearned" and steps is not None:
        known = (condition.proof and condition.proof.figures) or {}
        rows = int(known.get("forward_passes", 0) + known.get("backward_passes", 0))
        return f"{steps} steps" + (f", {_spent(rows, known.get('seconds', 0))}" if rows else "")
    return "one answer each" if condition.kind == "asked" else "no search"


def _spent(passes: int, seconds: float) -> str:
    return f"{passes:,} passes, {seconds:.0f} s"


def attacks(comparison: Comparison, rows: Sequence[RecoveryRow]) -> list[Attack]:
    """The rows of forget tasks with cost and control, the largest gain first."""
    found = []
    (entry,) = comparison.entries
    for row in rows:
        if row.want == "high":
            continue
        control = None
        if row.precision in comparison.retrained.runs:
            runs = comparison.retrained.full, comparison.retrained.at(row.precision)
            values = [run.task(row.task).value for run in runs]
            if values[0] is not None and values[1] is not None:
                control = values[0], values[1]
        cost = cost_of(entry.at(row.precision), row.task)
        found.append(Attack(row, cost, control))
    return sorted(found, key=lambda each: (each.row.task, -each.row.leakage("change").value))


def attack_table(found: Sequence[Attack], width: int = 0) -> str:
    """What brings it back, one table for each task, in ``width`` columns (0: the terminal's)."""
    parts = []
    for task in dict.fromkeys(each.row.task for each in found):
        own = [each for each in found if each.row.task == task]
        rows = [
            [
                each.row.precision,
                each.cost,
                points(each.row.estimate("quantized")),
                " to ".join(f"{value:.1f}" for value in each.control) if each.control else "-",
                share(each.row.estimate("recovered")),
                each.row.verdict,
            ]
            for each in own
        ]
        row = own[0].row
        known = f"the target {row.target_full:.1f}, the retrained {row.retrained:.1f}"
        title = f"{task}: before {row.full:.1f}; {known}"
        parts.append(f"{title}\n{fitted_table(rows, _HEAD, width)}")
    return "\n\n".join(parts)


def plot_attacks(path: Path, found: Sequence[Attack]) -> None:
    """Draw each condition's way from before to after, with the control's. The suffix says the
    format.

    Raises:
        OptionError: a suffix that matplotlib does not know, or a file that cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 + 0.35 * len(found)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    kind = path.suffix[1:].lower()
    if kind not in canvas.get_supported_filetypes():
        raise OptionError(f"--plot {path}: use a file ending in .png, .svg or .pdf")
    axes = figure.subplots()
    for y, each in enumerate(reversed(found)):
        row = each.row
        if each.control is not None:
            axes.plot(each.control, [y - 0.2] * 2, color="#2a9d62", marker="|")
        axes.plot([row.full, row.quantized], [y, y], color="#808080", linewidth=2)
        axes.plot([row.full], [y], "o", color="#2f7fc1")
        axes.plot([row.quantized], [y], "D", color="#d1741f")
    labels = [f"{each.row.precision}, {each.row.task} ({each.cost})" for each in reversed(found)]
    axes.set_yticks(range(len(found)), labels)
    axes.set_xlabel("points\ncircle: before; diamond: after\ngreen: the retrained model")
    buffer = io.BytesIO()
    with rc_context({"text.parse_math": False}):
        figure.savefig(buffer, format=kind)
    try:
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise OptionError(f"--plot {path}: cannot be written ({error.strerror})") from None
