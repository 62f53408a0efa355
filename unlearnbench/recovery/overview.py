"""The recovery table as a terminal shows it: an entry a row, a condition a column, then the answer.

It fits the width that it is given: intervals are shown where there is room for all of them, and
more conditions than fit side by side stand in parts below each other. ``reports.recovery_table``
has every figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from textwrap import TextWrapper

from unlearnbench.errors import one_line
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.recovery.reports import counted, points
from unlearnbench.recovery.verdicts import RecoveryRow, Verdict
from unlearnbench.results import FULL
from unlearnbench.util.text import in_parts, plain_table, shortened, table_width

MARKS: dict[Verdict, tuple[str, str]] = {
    "recovers": ("BACK", "it comes back there"),
    "forgets": ("ok", "it stays forgotten"),
    "forgets (utility not measured)": ("ok*", "it stays forgotten; utility was not measured"),
    "not decided": ("?", "too few samples to tell"),
    "had not forgotten": ("never", "it was not forgotten in full precision"),
    "target forgets": ("n/a", "the target itself forgets there"),
    "the attack teaches": ("taught", "the retrained model, which never knew, gains most of it too"),
    "collapsed": ("broken", "utility below the floor"),
    "holds": ("", ""),
}
"""What stands behind a score for each verdict, and what it means."""
_COLOURS = {"BACK": "red", "ok": "green", "ok*": "green", "broken": "magenta", "?": "yellow"}
_NAME = 28

Paint = Callable[[str, str], str]
"""(text, colour) -> the text as the terminal shows it in that colour."""


def no_paint(text: str, colour: str) -> str:
    """The text as it is."""
    return text


def overview(
    rows: Sequence[RecoveryRow], floor: float, width: int = 100, paint: Paint = no_paint
) -> str:
    """A table and a line of conclusion for each task, then what the marks mean.

    floor: the share of the target's retained knowledge below which a model has collapsed.
    """
    wrap = TextWrapper(width, break_on_hyphens=False).fill
    parts: list[str] = []
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task]
        counts = " or ".join(map(str, sorted({row.n for row in own})))
        title = f"{one_line(task)}: want {own[0].want}, {counts} samples"
        tables = _tables(_Figures(own, floor), width, paint)
        parts.append("\n".join([title, *tables, wrap(conclusion(own))]))
    seen = {verdict for verdict in MARKS if any(row.verdict == verdict for row in rows)}
    if any(_lost(row, floor) for row in rows):
        seen.add("collapsed")
    known = (MARKS[verdict] for verdict in MARKS if verdict in seen)
    legend = wrap("; ".join(f"{mark}: {said}" for mark, said in known if mark))
    return "\n\n".join(filter(None, [*parts, legend]))


def _lost(row: RecoveryRow, floor: float) -> bool:
    """Whether the unlearned model lacks, in full precision, too much of what should stay."""
    return row.want == "high" and row.full < floor * row.target_full


def conclusion(rows: Sequence[RecoveryRow]) -> str:
    """What the rows of one task say, in a line: ``4 of 6 recover at rtn-int4; 0 of 6 at rtn-int8``.
    For a task whose knowledge should stay: where least of it does.
    """
    if rows[0].want == "high":
        known = [(row.utility, row) for row in rows if row.utility is not None]
        if not known:
            return "how much is kept of the target's was not measured"
        least, row = min(known, key=lambda pair: pair[0])
        where = f"{one_line(row.entry, 60)} at {row.precision}"
        return f"least is kept by {where}: {100 * least:.0f}% of the target's"
    found: dict[str, list[str]] = {}
    for condition in dict.fromkeys(row.precision for row in rows):
        own = Counter(row.verdict for row in rows if row.precision == condition)
        n, back = own.total(), own.pop("recovers", 0)
        del own["forgets"], own["forgets (utility not measured)"]
        others = ", ".join(f"{count} {verdict}" for verdict, count in sorted(own.items()))
        said = f"{back} of {n}", f" ({others})" if others else ""
        found.setdefault("\0".join(said), []).append(condition)
    lines: list[str] = []
    for key, conditions in found.items():
        share, others = key.split("\0")
        verb = "" if lines else " recovers" if share.startswith("1 ") else " recover"
        lines.append(f"{share}{verb} at {', '.join(conditions)}{others}")
    return "; ".join(lines)


class _Figures:
    """The cells of one task's table."""

    def __init__(self, rows: Sequence[RecoveryRow], floor: float) -> None:
        self.rows = rows
        self.floor = floor
        self.conditions = list(dict.fromkeys(row.precision for row in rows))

    def plain(self, conditions: Sequence[str]) -> list[list[str]]:
        """Without intervals."""
        return self.lines(conditions, intervals=False)

    def lines(self, conditions: Sequence[str], intervals: bool) -> list[list[str]]:
        """Head, the target, the retrained model, and each entry; a cell is a score and a mark."""
        rows = self.rows
        first = {row.precision: row for row in reversed(rows)}

        def cell(figure: Estimate | None, mark: str = "") -> str:
            shown = figure if intervals or figure is None else Estimate(figure.value)
            return f"{points(shown)} {mark}".rstrip()

        target = [cell(first[name].estimate("target")) for name in conditions]
        made = [
            ["", FULL, *(shortened(name, _NAME) for name in conditions)],
            ["target", cell(Estimate(rows[0].target_full)), *target],
            ["retrained", cell(rows[0].estimate("retrained")), *("" for _ in conditions)],
        ]
        for entry in dict.fromkeys(row.entry for row in rows):
            own = {row.precision: row for row in rows if row.entry == entry}
            one = next(iter(own.values()))
            seeds = f" ({counted(one.seeds)})" if one.seeds > 1 else ""
            lost = MARKS["collapsed"][0] if _lost(one, self.floor) else ""
            cells = [cell(one.estimate("full"), lost)]
            for name in conditions:
                row = own.get(name)
                mark = MARKS[row.verdict][0] if row else ""
                cells.append(cell(row.estimate("quantized") if row else None, mark))
            made.append([shortened(entry, _NAME - len(seeds)) + seeds, *cells])
        return made


def _tables(figures: _Figures, width: int, paint: Paint) -> list[str]:
    """With intervals, else without, else in as many parts as it takes."""
    conditions = figures.conditions
    whole = figures.lines(conditions, intervals=True)
    if table_width(whole) <= width:
        return [_painted(whole, paint)]
    return [_painted(part, paint) for part in in_parts(conditions, figures.plain, width)]


def _painted(lines: list[list[str]], paint: Paint) -> str:
    """The table, each cell in the colour of its mark."""

    def painted(cell: str) -> str:
        colour = _COLOURS.get(cell.rpartition(" ")[2])
        return paint(cell, colour) if colour else cell

    body = [[line[0], *map(painted, line[1:])] for line in lines[1:]]
    return plain_table(body, lines[0])
