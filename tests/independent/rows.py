"""A comparison's rows, and what differs in a recovery.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.independent.engine import Figure, Sum, leak_interval, mean_of, of, shared, summed
from tests.independent.files import Model

GAP = 5.0  # points, below which there is nothing to recover
SHARE = 0.2


FIGURES = (
    *("full", "quantized", "target", "target_full", "retrained", "excess", "change", "forgotten"),
    *("gap", "gone", "recovered", "retained", "retained_full", "utility"),
)


@dataclass
class Row:
    """One task of one entry at one precision."""

    entry: str
    task: str
    precision: str
    want: str
    n: int
    seeds: int
    figures: dict[str, Figure]
    empty: int | None
    lost: bool  # does the target itself forget at this precision?
    significant: bool = False
    verdict: str = ""

    @property
    def turned(self) -> float:
        """-1 for PrivLeak, which falls as knowledge comes back."""
        return -1.0 if self.want == "zero" else 1.0

    def _above(self, name: str, bound: float = 0.0) -> bool:
        """Does a figure's whole interval lie above, turned round where PrivLeak's is?"""
        ends = self.figures[name].ends if name in self.figures else None
        if ends is None:
            return False
        by = 1.0 if name == "recovered" else self.turned
        return min(by * ends[0], by * ends[1]) > bound

    def judge(self, floor: float) -> str:
        utility = self.figures.get("utility")
        if utility is not None and utility.value < floor:
            return "collapsed"
        if self.want == "high":
            return "holds"
        forgotten = self.turned * self.figures["forgotten"].value
        little = self.want == "zero" and self.figures["gone"].value < SHARE
        if "recovered" not in self.figures:
            return "had not forgotten" if forgotten < GAP or little else "target forgets"
        share = self.figures["recovered"]
        sure = all(self._above(name) for name in ("change", "gap", "recovered"))
        if self.want == "zero":
            ends = self.figures["quantized"].ends
            sure = sure and ends is not None and ends[1] < 0
        if share.value >= SHARE and sure and self.significant:
            return "recovers"
        if share.ends is not None and share.ends[1] < SHARE:
            return "forgets" if utility is not None else "forgets (utility not measured)"
        return "not decided"

    @property
    def samples_needed(self) -> float | None:
        """How many samples would bring all intervals to their bounds; NaN where Holm decides."""
        share = self.figures["recovered"]
        if share.ends is None or self.seeds > 1:
            return None
        pairs = [(share.ends[1] - share.value, SHARE - share.value)]
        if share.value >= SHARE:
            pairs = []
            for name in ("change", "gap", "recovered"):
                figure, by = self.figures[name], 1.0 if name == "recovered" else self.turned
                if figure.ends is None or by * figure.value <= 0:
                    return None
                low = min(by * end for end in figure.ends)
                pairs.append((by * figure.value - low, by * figure.value))
        times = max(distance / room for distance, room in pairs)
        return float(self.n * times**2) if times > 1 else math.nan


def _less(left: Sequence[Sum], right: Sequence[Sum]) -> list[Sum]:
    return [a - b for a, b in zip(left, right, strict=True)]


def row(models: Sequence[Model], target: Model, retrained: Model, precision: str, task: str) -> Row:
    """``models`` are the trainings of one recipe, or one model."""
    k = len(models)
    here = [of(model.cells[precision, task]) for model in models]
    full = [of(model.cells["none", task]) for model in models]
    there = [of(target.cells[precision, task])] * k
    knew = [of(target.cells["none", task])] * k
    never = [of(retrained.cells["none", task])] * k
    first = models[0].cells[precision, task]
    zero = first.want == "zero"

    itself = precision == "none" and models[0].weights == retrained.weights

    def points(sums: Sequence[Sum], shift: float = 0.0) -> Figure:
        if not zero:
            return summed(sums)
        found = shared(sums, never, 100.0, shift)
        if shift and not itself:  # PrivLeak, no difference
            found.interval = leak_interval(mean_of(sums), never[0])
        return found

    shift = -100.0 if zero else 0.0
    figures = {
        "full": points(full, shift),
        "quantized": points(here, shift),
        "target": points(there, shift),
        "target_full": points(knew, shift),
        "retrained": Figure(0.0, None) if zero else points(never),
        "excess": points(here, shift) if zero else points(_less(here, never)),
        "change": points(_less(here, full)),
        "forgotten": points(_less(knew, full)),
        "gap": points(_less(there, full)),
    }
    if zero and itself:  # 0 by definition
        figures["quantized"] = Figure(0.0, None)
    if zero:
        figures["gone"] = shared(_less(full, knew), _less(never, knew))
    lost = first.want == "low" and there[0].mean < knew[0].mean / 2
    by = -1.0 if zero else 1.0
    there_is = by * figures["gap"].value >= GAP and not (zero and figures["gone"].value < SHARE)
    if first.want != "high" and there_is and not lost:
        figures["recovered"] = shared(_less(here, full), _less(there, full))
    base = never if zero else [Sum(())] * k
    if not lost and abs(figures["target"].value) >= GAP:
        figures["retained"] = shared(_less(here, base), _less(there, base))
    if abs(figures["target_full"].value) >= GAP:
        figures["retained_full"] = shared(_less(here, base), _less(knew, base))
    utility = utility_of(models, target, precision, task)
    if utility is not None:
        figures["utility"] = utility
    empty = (
        None if first.empty is None else sum(m.cells[precision, task].empty or 0 for m in models)
    )
    return Row(label(models), task, precision, first.want, first.n, k, figures, empty, lost)


def label(models: Sequence[Model]) -> str:
    """What the trainings' names begin with."""
    if len(models) == 1:
        return models[0].name
    same = 0
    for letters in zip(*(model.name for model in models), strict=False):
        if len(set(letters)) > 1:
            break
        same += 1
    return models[0].name[:same].rstrip("_-")


def utility_of(models: Sequence[Model], target: Model, precision: str, task: str) -> Figure | None:
    kept = [
        name
        for p, name in target.cells
        if p == "none" and target.cells[p, name].want == "high"
        if name.split("_")[0] == task.split("_")[0]
    ]
    if not kept:
        return None
    (name,) = kept
    top = [of(model.cells[precision, name]) for model in models]
    return shared(top, [of(target.cells["none", name])] * len(models))


def mark(rows: Sequence[Row], level: float = 0.05) -> None:
    """Holm's stars, over all forget rows."""
    tested = sorted((r for r in rows if r.want != "high"), key=lambda r: r.figures["change"].p)
    for done, one in enumerate(tested):
        if one.figures["change"].p > level / (len(tested) - done):
            break
        one.significant = True


def judged(rows: list[Row], floor: float) -> list[Row]:
    mark(rows)
    for one in rows:
        one.verdict = one.judge(floor)
    return rows


def grouped(models: Iterable[Model]) -> list[list[Model]]:
    """Trainings of one recipe together."""
    groups: dict[str, list[Model]] = {}
    for model in models:
        groups.setdefault(model.recipe or model.weights, []).append(model)
    return list(groups.values())


def comparison(
    models: Iterable[Model], target: Model, retrained: Model, floor: float = 0.5
) -> list[Row]:
    rows = []
    for group in grouped(models):
        for precision, task in group[0].cells:
            if precision != "none":
                rows.append(row(group, target, retrained, precision, task))
    return judged(rows, floor)


def differences(stated: Sequence[dict[str, Any]], rows: Sequence[Row]) -> list[str]:
    """A line for everything in which recovery.json differs."""
    ours = {(r.entry, r.task, r.precision): r for r in rows}
    lines = [] if len(stated) == len(rows) else [f"{len(stated)} rows, ours {len(rows)}"]
    for found in stated:
        where = f"{found['entry']}, {found['task']} at {found['precision']}"
        mine = ours.get((found["entry"], found["task"], found["precision"]))
        if mine is None:
            lines.append(f"{where}: no such row of ours")
            continue
        lines += [f"{where}: {line}" for line in _row_differences(found, mine)]
    return lines


def _row_differences(found: dict[str, Any], mine: Row) -> Iterable[str]:
    for name in FIGURES:
        figure = mine.figures.get(name)
        if (name in found) != (figure is not None):
            yield f"{name} {found.get(name)}, ours {figure and figure.value}"
        elif figure is not None:
            if abs(found[name] - figure.value) > 1e-9 * max(1.0, abs(figure.value)):
                yield f"{name} {found[name]}, ours {figure.value}"
            if name not in ("target_full", "retained_full"):
                line = figure.differs(found.get(f"{name}_ci"), 1e-9)
                if line:
                    yield f"{name}: {line}"
    ours = mine.figures["change"].p
    if "p" not in found:
        yield f"p absent, ours {ours:.4g}"
    else:
        factor = 1.3 if ours > 0.02 else 3.0
        if not ours / factor <= found["p"] <= ours * factor and max(ours, found["p"]) > 1e-9:
            yield f"p {found['p']}, ours {ours}"
    plain = {
        "want": mine.want,
        "n": mine.n,
        "seeds": mine.seeds,
        "significant": mine.significant,
        "verdict": mine.verdict,
        "empty_outputs": mine.empty,
    }
    for name, value in plain.items():
        if found.get(name) != value:
            yield f"{name} {found.get(name)}, ours {value}"
    needed = mine.samples_needed if mine.verdict == "not decided" else None
    stated = found.get("samples_needed")
    if needed is not None and math.isnan(needed):
        return
    if needed is None or stated is None:
        if needed is not stated:
            yield f"samples_needed {stated}, ours {needed}"
    elif abs(stated - needed) > 2 + needed / 4:
        yield f"samples_needed {stated}, ours {needed}"
