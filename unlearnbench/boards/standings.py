"""A board's entries compared and ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unlearnbench.boards.definition import Board
from unlearnbench.boards.entry import BoardEntry
from unlearnbench.errors import OptionError, one_line
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

_Standings = dict[tuple[str, str], TaskStanding]


@dataclass(frozen=True)
class Place:
    """One entry's place. ``rank`` is None for what may not be ranked, which ``state`` explains.

    The target and the retrained model have one too, as references: what they score, and no more.
    """

    entry: BoardEntry
    rank: int | None
    state: str
    """ranked, collapsed or incomplete; target or retrained for a reference."""
    worst: Estimate | None
    """The largest excess over the retrained model, of every ranking task and precision."""
    worst_at: str
    utility: Estimate | None
    """The least utility of every required precision."""
    standings: _Standings
    """By task and precision: the board's, then others that the entry has, which do not count."""
    rows: tuple[RecoveryRow, ...]

    @property
    def is_reference(self) -> bool:
        """Whether it is the target or the retrained model."""
        return self.entry.role != "unlearned"

    @property
    def precisions(self) -> list[str]:
        """Those that it has a run at."""
        return list(dict.fromkeys(precision for _, precision in self.standings))

    def forgets(self, task: str, precision: str) -> bool:
        """Of the target: whether it has too little left there for a share of it."""
        full, now = self.standings.get((task, FULL)), self.standings[task, precision]
        if self.state != "target" or full is None:
            return False
        return not target_keeps(now.want, now.value.value, full.value.value)


@dataclass(frozen=True)
class Standings:
    """A whole board: places in order, and the mean retained share by precision."""

    board: Board
    comparison: Comparison
    places: tuple[Place, ...]
    retained: dict[str, Estimate]
    """Of the ranked entries; full precision is ``none``. Empty where none is ranked."""
    references: tuple[Place, ...]
    """The target, then the retrained model."""

    @property
    def shown(self) -> list[Place]:
        """Every place, the references last."""
        return [*self.places, *self.references]

    def everyone(self) -> list[Entry]:
        """The entries, the target and the retrained model."""
        found = self.comparison
        return [*found.entries, found.target, found.retrained]


def rank_entries(board: Board, entries: Sequence[BoardEntry]) -> Standings:
    """Compare and rank.

    Raises:
        OptionError: the target or the retrained model is missing, or runs cannot be compared.
        MetricError, ResultError: a number is missing or not finite.
    """
    comparison = Comparison(
        [entry.loaded() for entry in entries if entry.role == "unlearned"],
        _anchor(board, entries, "target").loaded(),
        _anchor(board, entries, "retrained").loaded(),
        board.rules.utility_floor,
    )
    given = [entry for entry in entries if entry.role == "unlearned"]
    found = [
        _place(board, comparison, entry, loaded)
        for entry, loaded in zip(given, comparison.entries, strict=True)
    ]
    places = _mark(board, _ranked(found))
    ranked = [loaded for p, loaded in zip(found, comparison.entries, strict=True) if _fit(p)]
    retained = {
        precision: share
        for precision in board.rules.precisions
        if (share := _mean_retained(board, comparison, ranked, precision)) is not None
    }
    anchors = (_anchor(board, entries, role) for role in ("target", "retrained"))
    references = tuple(_reference(board, comparison, entry) for entry in anchors)
    return Standings(board, comparison, tuple(places), retained, references)


def _anchor(board: Board, entries: Sequence[BoardEntry], role: str) -> BoardEntry:
    found = [entry for entry in entries if entry.role == role]
    if len(found) != 1:
        raise OptionError(f"{board.name} needs one {role} entry and has {len(found)}")
    return found[0]


def _standings(board: Board, comparison: Comparison, loaded: Entry) -> _Standings:
    required = [p for p in board.rules.precisions if p in loaded.runs]
    return {
        (task, precision): comparison.standing(loaded, task, precision)
        for task in board.rules.tasks
        for precision in [*required, *sorted(set(loaded.runs) - set(required))]
    }


def _reference(board: Board, comparison: Comparison, entry: BoardEntry) -> Place:
    standings = _standings(board, comparison, entry.loaded())
    return Place(entry, None, entry.role, None, "", None, standings, ())


def _place(board: Board, comparison: Comparison, entry: BoardEntry, loaded: Entry) -> Place:
    rules = board.rules
    missing = [p for p in rules.precisions if p not in loaded.runs]
    standings = _standings(board, comparison, loaded)
    counting = {at: standing for at, standing in standings.items() if at[1] in rules.precisions}
    worst, at = _worst(rules.ranking, counting)
    known = [s.utility for s in counting.values() if s.utility is not None]
    utility = min(known, key=lambda share: share.value, default=None)
    rows = tuple(
        comparison.row(loaded, task, precision)
        for precision in dict.fromkeys(precision for _, precision in standings)
        if precision != FULL and FULL in loaded.runs and precision in comparison.target.runs
        for task in rules.tasks
    )
    state = "ranked"
    if missing:
        state = f"incomplete: no run at {', '.join(missing)}"
    elif utility is None:
        state = "incomplete: utility is not known"
    elif utility.value < rules.utility_floor:
        state = "collapsed"
    return Place(entry, None, state, worst, at, utility, standings, rows)


def _worst(ranking: Sequence[str], standings: _Standings) -> tuple[Estimate | None, str]:
    """The largest excess and where it is; PrivLeak counts on either side of 0."""
    worst, at = None, ""
    for (task, precision), standing in standings.items():
        if task not in ranking:
            continue
        figure = standing.excess
        if standing.want == "zero" and figure.value < 0:
            ci = None if figure.ci is None else (-figure.ci[1], -figure.ci[0])
            figure = Estimate(-figure.value, ci)
        if worst is None or figure.value > worst.value:
            worst, at = figure, f"{task} at {precision}"
    return worst, at


def _fit(place: Place) -> bool:
    return place.state == "ranked"


def _ranked(places: Sequence[Place]) -> list[Place]:
    """Ranked entries by their worst excess, equal ones at one rank; then the others by name."""
    fit = sorted((p for p in places if _fit(p)), key=lambda p: (_excess(p), p.entry.name))
    others = sorted((p for p in places if not _fit(p)), key=lambda p: (p.state, p.entry.name))
    ordered = []
    for place in fit:
        rank = 1 + sum(_excess(other) < _excess(place) for other in fit)
        ordered.append(_with(place, rank, place.rows))
    return ordered + others


def _excess(place: Place) -> float:
    if place.worst is None:
        raise OptionError(f"{one_line(place.entry.name)} has no ranking task")
    return place.worst.value


def _with(place: Place, rank: int | None, rows: tuple[RecoveryRow, ...]) -> Place:
    from dataclasses import replace

    return replace(place, rank=rank, rows=rows)


def _mark(board: Board, places: Sequence[Place]) -> list[Place]:
    """Holm's correction over all rows that the board asks for: what an entry has beyond them must
    not move the others' limits.
    """
    required = board.rules.precisions
    family = [row for place in places for row in place.rows if row.precision in required]
    marked = iter(mark_significant(family))
    return [
        _with(p, p.rank, tuple(next(marked) if r.precision in required else r for r in p.rows))
        for p in places
    ]


def _mean_retained(
    board: Board, comparison: Comparison, entries: Sequence[Entry], precision: str
) -> Estimate | None:
    """The mean over entries and forget tasks (low is good) of what the entry scores over what the
    target scores at that precision, with a percentile bootstrap interval over samples: the entries
    are those of the board, not a sample of methods.
    """
    tasks = [t for t in board.rules.ranking if comparison.retrained.full.task(t).want == "low"]
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
