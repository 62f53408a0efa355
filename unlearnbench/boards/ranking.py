"""A board's entries compared and ranked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from unlearnbench.boards.entry import Board, BoardEntry, Definition, anchor
from unlearnbench.boards.resampling import MeanShares, comparable_tasks, mean_shares, rank_ranges
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.recovery.compare import Comparison, TaskStanding
from unlearnbench.recovery.controls import leaves_alone, needs_control
from unlearnbench.recovery.reports import share
from unlearnbench.recovery.verdicts import RecoveryRow, mark_significant, target_keeps
from unlearnbench.results import ANCHORS, FULL
from unlearnbench.runs.entries import Entry, join_trainings

TaskStandings = dict[tuple[str, str], TaskStanding]


@dataclass(frozen=True)
class Place:
    """The place of an entry, or of all trainings of one recipe; the target and the retrained model
    have one as references.
    """

    name: str
    entries: tuple[BoardEntry, ...]
    """Of each training."""
    state: str
    """ranked, collapsed, incomplete or control; target or retrained for a reference."""
    standings: TaskStandings
    """By task and precision: the board's, then others that the entry has, which do not count."""
    rows: dict[tuple[str, str], RecoveryRow] = field(default_factory=dict)
    """By task and precision: what came back."""
    worst: Estimate | None = None
    """The largest excess over the retrained model, of every ranking task and precision."""
    worst_at: str = ""
    utility: Estimate | None = None
    """The least utility of every required precision."""
    certain: bool = True
    """Whether the interval of ``utility`` lies on one side of the floor."""
    rank: int | None = None
    """None for what may not be ranked."""
    ranks: tuple[int, int] | None = None
    """From which to which rank its samples allow, its own among them; None where not known."""
    first: float | None = None
    """The share of resamples in which it is first."""

    @property
    def entry(self) -> BoardEntry:
        """The first training's."""
        return self.entries[0]

    @property
    def is_reference(self) -> bool:
        """Whether it is the target or the retrained model."""
        return self.entry.role in ANCHORS

    @property
    def is_control(self) -> bool:
        """Whether it is what others are held against, and no method."""
        return any(entry.role == "control" for entry in self.entries)

    @property
    def position(self) -> str:
        """Its rank, with the ranks that its samples allow; or why it has none."""
        if self.rank is None:
            unsure = self.state == "collapsed" and not self.certain
            return f"{self.state}{' (not certain)' if unsure else ''}"
        reach = "not known" if self.ranks is None else f"{self.ranks[0]} to {self.ranks[1]}"
        return f"{self.rank} ({reach})"

    @property
    def utility_said(self) -> str:
        """The least utility, and whether that of a ranked entry may be below the floor."""
        unsure = self.rank is not None and not self.certain
        return f"{share(self.utility)}{', may be below the floor' if unsure else ''}"

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
    """A whole board: places in order, and the mean shares by precision."""

    board: Board
    places: tuple[Place, ...]
    references: tuple[Place, ...]
    """The target, then the retrained model."""
    shares: dict[str, MeanShares]
    """Of the ranked entries; full precision is ``none``. Empty where there is no cell."""
    cells: tuple[int, int]
    """How many pairs of a ranked entry and a forget task the shares are over, and of how many."""
    entries: tuple[Entry, ...]
    """The runs of every entry, of the target and of the retrained model."""

    @property
    def shown(self) -> list[Place]:
        """Every place, the references last."""
        return [*self.places, *self.references]

    @property
    def held(self) -> str:
        """What holds of all changes together, in a sentence."""
        required = self.board.rules.precisions
        methods = [place for place in self.places if not place.is_control]
        tested = [r for p in methods for at, r in p.rows.items() if at[1] in required]
        tested = [row for row in tested if row.want != "high" and row.p is not None]
        moved = sum(row.significant for row in tested)
        back = sum(row.verdict == "recovers" for row in tested)
        where = " that counts" if self.further else ""
        return (
            f"Of {len(tested)} changes on forget tasks, from full precision to a condition{where}, "
            f"{moved} hold after Holm's correction, and {back} are a recovery."
        )

    @property
    def further(self) -> list[str]:
        """Conditions that some place was met under and the board does not ask for."""
        met = {at for place in self.shown for at in place.precisions}
        return sorted(met - set(self.board.rules.precisions))

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
    rules, given = board.rules, [e for e in entries if e.role in ("unlearned", "control")]
    anchors = anchor(board, entries, "target"), anchor(board, entries, "retrained")
    pairs = [(entry, entry.loaded()) for entry in given]
    made = {id(runs.runs): entry for entry, runs in pairs}
    sides = [[r for e, r in pairs if (e.role == "control") is control] for control in (False, True)]
    loaded = [runs for side in sides for runs in _joined(rules, side)]  # no method with a control
    target, retrained = (each.loaded() for each in anchors)
    comparison = Comparison(loaded, target, retrained, rules.utility_floor)
    places = [
        _place(rules, comparison, tuple(made[id(each.runs)] for each in runs.trainings), runs)
        for runs in loaded
    ]
    fit = [runs for place, runs in zip(places, loaded, strict=True) if place.state == "ranked"]
    asked = rules.precisions if fit else ()  # where a control is missing, none is fit
    ranges = rank_ranges(comparison, fit, rules.ranking, asked)
    if ranges is not None:
        drawn = iter(ranges)
        places = [replace(p, **vars(next(drawn))) if p.state == "ranked" else p for p in places]
    forget = [t for t in rules.ranking if comparison.retrained.full.task(t).want == "low"]
    tasks = comparable_tasks(comparison, forget, asked)
    cells = len(fit) * len(tasks), len(fit) * len(forget)
    at = rules.precisions if cells[0] else ()
    shares = {precision: mean_shares(comparison, fit, tasks, precision) for precision in at}
    references = tuple(
        Place(each.name, (each,), each.role, _standings(rules, comparison, runs))
        for each, runs in zip(anchors, (target, retrained), strict=True)
    )
    marked = tuple(_mark(rules, _ranked(places)))
    return Ranking(board, marked, references, shares, cells, (*loaded, target, retrained))


def _standings(rules: Definition, comparison: Comparison, runs: Entry) -> TaskStandings:
    known = {p for p in runs.runs if not _lacks_control(comparison, p)}
    required = [p for p in rules.precisions if p in known]
    further = set.intersection(*(set(each.runs) & known for each in runs.trainings))
    return {
        (task, precision): comparison.standing(runs, task, precision)
        for task in rules.tasks
        for precision in [*required, *sorted(further - set(required))]
        if not any(leaves_alone(each.at(precision), task) for each in runs.trainings)
    }


def _lacks_control(comparison: Comparison, precision: str) -> bool:
    return needs_control(precision) and precision not in comparison.retrained.runs


def _joined(rules: Definition, entries: Sequence[Entry]) -> list[Entry]:
    """Trainings of one recipe as one entry, where each has every run that the board asks for."""
    whole = [entry for entry in entries if not set(rules.precisions) - set(entry.runs)]
    return [*join_trainings(whole), *(entry for entry in entries if entry not in whole)]


def _place(
    rules: Definition, comparison: Comparison, entries: tuple[BoardEntry, ...], runs: Entry
) -> Place:
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
        if (task, precision) in standings
    }
    state = "ranked"
    uncontrolled = [p for p in rules.precisions if _lacks_control(comparison, p)]
    if uncontrolled:
        state = f"incomplete: no control at {', '.join(uncontrolled)}"
    elif missing:
        state = f"incomplete: no run at {', '.join(missing)}"
    elif utility is None:
        state = "incomplete: utility is not known"
    elif utility.value < rules.utility_floor:
        state = "collapsed"
    elif entries[0].role == "control":
        state = "control"
    ci, floor = None if utility is None else utility.ci, rules.utility_floor
    certain = ci is not None and not ci[0] < floor <= ci[1]
    return Place(runs.name, entries, state, standings, rows, worst, at, utility, certain)


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
    by_excess.sort(key=lambda pair: (pair[0], pair[1].name))
    values = [value for value, _ in by_excess]
    ranked = []
    for value, place in by_excess:
        rank = 1 + values.index(value)
        low, high = place.ranks or (rank, rank)  # a maximum's resamples may all lie above it
        ranks = place.ranks and (min(low, rank), max(high, rank))
        ranked.append(replace(place, rank=rank, ranks=ranks))
    others = [p for p in places if p.state != "ranked"]
    others.sort(key=lambda p: (p.state, p.name))
    return ranked + others


def _mark(rules: Definition, places: Sequence[Place]) -> list[Place]:
    """Holm's correction over all rows that the board asks for, and apart over those that entries
    have beyond them, and over a control's: these must not move the others' limits.
    """
    for asked, control in product((True, False), repeat=2):
        family = [
            [at for at in p.rows if (at[1] in rules.precisions, p.is_control) == (asked, control)]
            for p in places
        ]
        pairs = list(zip(places, family, strict=True))
        marked = iter(mark_significant([p.rows[at] for p, ats in pairs for at in ats]))
        places = [replace(p, rows=p.rows | {at: next(marked) for at in ats}) for p, ats in pairs]
    return list(places)
