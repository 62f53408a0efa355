"""A board's entries compared and ranked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from unlearnbench.boards.entry import Board, BoardEntry, Definition
from unlearnbench.errors import OptionError
from unlearnbench.metrics.intervals import Estimate, draw, mean_share
from unlearnbench.recovery.compare import Comparison, TaskStanding
from unlearnbench.recovery.statistics import (
    MIN_GAP,
    RecoveryRow,
    mark_significant,
    target_keeps,
)
from unlearnbench.results import FULL
from unlearnbench.runs.entries import Entry

TaskStandings = dict[tuple[str, str], TaskStanding]


@dataclass(frozen=True)
class Place:
    """One entry's place; the target and the retrained model have one as references."""

    entry: BoardEntry
    state: str
    """ranked, collapsed or incomplete; target or retrained for a reference."""
    standings: TaskStandings
    """By task and precision: the board's, then others that the entry has, which do not count."""
    rows: dict[tuple[str, str], RecoveryRow] = field(default_factory=dict)
    """By task and precision: what came back."""
    worst: Estimate | None = None
    """The largest excess over the retrained model, of every ranking task and precision."""
    worst_at: str = ""
    utility: Estimate | None = None
    """The least utility of every required precision."""
    rank: int | None = None
    """None for what may not be ranked."""

    @property
    def is_reference(self) -> bool:
        """Whether it is the target or the retrained model."""
        return self.entry.role != "unlearned"

    @property
    def precisions(self) -> list[str]:
        """Those that it has a run at."""
        return list(dict.fromkeys(precision for _, precision in self.standings))

    def verdict(self, task: str, precision: str) -> str:
        """The verdict of a row; of the target, whether it has too little left for a share of it."""
        if (task, precision) in self.rows:
            return self.rows[task, precision].verdict
        full, now = self.standings.get((task, FULL)), self.standings[task, precision]
        if self.state != "target" or full is None:
            return ""
        keeps = target_keeps(now.want, now.value.value, full.value.value)
        return "" if keeps else "target forgets"


@dataclass(frozen=True)
class Line:
    """What a board says of one entry, task and precision."""

    place: Place
    task: str
    precision: str
    required: bool
    """Whether the board asks for that precision; else it does not count."""
    standing: TaskStanding
    row: RecoveryRow | None
    verdict: str

    def came_back(self, name: str) -> Estimate | None:
        """A figure of the recovery row."""
        return None if self.row is None else self.row.estimate(name)


@dataclass(frozen=True)
class Ranking:
    """A whole board: places in order, and the mean retained share by precision."""

    board: Board
    places: tuple[Place, ...]
    references: tuple[Place, ...]
    """The target, then the retrained model."""
    retained: dict[str, Estimate]
    """Of the ranked entries; full precision is ``none``. Empty where none is ranked."""
    entries: tuple[Entry, ...]
    """The runs of every entry, of the target and of the retrained model."""

    @property
    def shown(self) -> list[Place]:
        """Every place, the references last."""
        return [*self.places, *self.references]

    def lines(self) -> Iterator[Line]:
        """Every place's tasks and precisions."""
        for place in self.shown:
            for (task, at), standing in place.standings.items():
                row, verdict = place.rows.get((task, at)), place.verdict(task, at)
                required = at in self.board.rules.precisions
                yield Line(place, task, at, required, standing, row, verdict)


def rank_entries(board: Board, entries: Sequence[BoardEntry]) -> Ranking:
    """Compare and rank.

    Raises:
        OptionError: the target or the retrained model is missing, or runs cannot be compared.
        MetricError, ResultError: a number is missing or not finite.
    """
    rules, given = board.rules, [entry for entry in entries if entry.role == "unlearned"]
    anchors = list[BoardEntry]()
    for role in ("target", "retrained"):
        found = [entry for entry in entries if entry.role == role]
        if len(found) != 1:
            raise OptionError(f"{board.name} needs one {role} entry and has {len(found)}")
        anchors += found
    loaded = [entry.loaded() for entry in given]
    target, retrained = (anchor.loaded() for anchor in anchors)
    comparison = Comparison(loaded, target, retrained, rules.utility_floor)
    places = [_place(rules, comparison, *pair) for pair in zip(given, loaded, strict=True)]
    fit = [runs for place, runs in zip(places, loaded, strict=True) if place.state == "ranked"]
    shares = {p: _mean_retained(rules, comparison, fit, p) for p in rules.precisions}
    references = tuple(
        Place(anchor, anchor.role, _standings(rules, comparison, runs))
        for anchor, runs in zip(anchors, (target, retrained), strict=True)
    )
    retained = {precision: share for precision, share in shares.items() if share is not None}
    marked = tuple(_mark(rules, _ranked(places)))
    return Ranking(board, marked, references, retained, (*loaded, target, retrained))


def _standings(rules: Definition, comparison: Comparison, runs: Entry) -> TaskStandings:
    required = [p for p in rules.precisions if p in runs.runs]
    return {
        (task, precision): comparison.standing(runs, task, precision)
        for task in rules.tasks
        for precision in [*required, *sorted(set(runs.runs) - set(required))]
    }


def _place(rules: Definition, comparison: Comparison, entry: BoardEntry, runs: Entry) -> Place:
    missing = [p for p in rules.precisions if p not in runs.runs]
    standings = _standings(rules, comparison, runs)
    counting = {at: standing for at, standing in standings.items() if at[1] in rules.precisions}
    worst, at = _worst(rules.ranking, counting)
    known = [s.utility for s in counting.values() if s.utility is not None]
    utility = min(known, key=lambda share: share.value, default=None)
    rows = {
        (task, precision): comparison.row(runs, task, precision)
        for precision in dict.fromkeys(precision for _, precision in standings)
        if precision != FULL and FULL in runs.runs and precision in comparison.target.runs
        for task in rules.tasks
    }
    state = "ranked"
    if missing:
        state = f"incomplete: no run at {', '.join(missing)}"
    elif utility is None:
        state = "incomplete: utility is not known"
    elif utility.value < rules.utility_floor:
        state = "collapsed"
    return Place(entry, state, standings, rows, worst, at, utility)


def _worst(ranking: Sequence[str], standings: TaskStandings) -> tuple[Estimate | None, str]:
    """The largest excess and where it is; PrivLeak counts on either side of 0."""
    worst, at = None, ""
    for (task, precision), standing in standings.items():
        figure = standing.excess
        if standing.want == "zero" and figure.value < 0:
            ci = figure.ci and (-figure.ci[1], -figure.ci[0])
            figure = Estimate(-figure.value, ci)
        if task in ranking and (worst is None or figure.value > worst.value):
            worst, at = figure, f"{task} at {precision}"
    return worst, at


def _ranked(places: Sequence[Place]) -> list[Place]:
    """Ranked entries by their worst excess, equal ones at one rank; then the others by name."""
    by_excess = [(p.worst.value, p) for p in places if p.state == "ranked" and p.worst]
    by_excess.sort(key=lambda pair: (pair[0], pair[1].entry.name))
    values = [value for value, _ in by_excess]
    others = [p for p in places if p.state != "ranked"]
    others.sort(key=lambda p: (p.state, p.entry.name))
    return [replace(p, rank=1 + values.index(value)) for value, p in by_excess] + others


def _mark(rules: Definition, places: Sequence[Place]) -> list[Place]:
    """Holm's correction over all rows that the board asks for: what an entry has beyond them must
    not move the others' limits.
    """
    family = [[at for at in place.rows if at[1] in rules.precisions] for place in places]
    pairs = list(zip(places, family, strict=True))
    marked = iter(mark_significant([place.rows[at] for place, ats in pairs for at in ats]))
    return [replace(p, rows=p.rows | {at: next(marked) for at in ats}) for p, ats in pairs]


def _mean_retained(
    rules: Definition, comparison: Comparison, entries: Sequence[Entry], precision: str
) -> Estimate | None:
    """The mean over entries and forget tasks (low is good) of what the entry scores over what the
    target scores at that precision: the entries are those of the board, not a sample of methods.
    """
    tasks = [t for t in rules.ranking if comparison.retrained.full.task(t).want == "low"]
    shares = []
    for number, task in enumerate(tasks):
        theirs = comparison.scores(comparison.target.at(precision), task)
        draws = draw(theirs.n, 1 + number)
        known = comparison.scores(comparison.target.full, task).mean
        if not target_keeps("low", theirs.mean, known) or theirs.mean < MIN_GAP:
            continue  # the target itself has forgotten: a share of nothing
        if not (draws.rows @ theirs.values).all():
            continue
        for entry in entries:
            ours = comparison.scores(entry.at(precision), task)
            shares.append((ours.values, theirs.values, draws))
    return mean_share(shares) if shares else None
