"""Scores in the order in which samples were drawn, and what sums of them show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unlearnbench.errors import ResultError, one_line
from unlearnbench.metrics.intervals import Array, Bounds, finite
from unlearnbench.metrics.sequences import log_wealth
from unlearnbench.recovery.claims import Claim, Rule, Scores
from unlearnbench.recovery.order import Order
from unlearnbench.results import LikelihoodRecord, SampleRecord
from unlearnbench.runs.entries import LoadedRun

_STEPS = 40


@dataclass
class DrawnScores:
    """Scores by the order in which samples were drawn. ``orders`` and ``anchors`` hold every sample
    of every task; those of the checkpoint come with ``add``.
    """

    orders: Mapping[str, Order]
    anchors: Callable[[Scores], LoadedRun]
    """The run of the target or the retrained model that scores are of."""
    headline: Mapping[str, tuple[str, str | None]]
    """By task its metric, and the attack where it is of pairs of texts."""

    def __post_init__(self) -> None:
        self._known: dict[Scores, Array] = {}
        self._drawn: dict[tuple[str, str], int] = {}
        self._records: dict[tuple[str, str], Mapping[str, SampleRecord]] = {}

    def add(self, pair: tuple[str, str], n: int, records: Sequence[SampleRecord]) -> None:
        """Take the records of the first ``n`` draws of a condition and task."""
        self._records[pair], self._drawn[pair] = {r.id: r for r in records}, n
        for name in [n for n in self._known if n[:3] == ("unlearned", *pair)]:
            del self._known[name]

    def drawn(self, condition: str, task: str) -> int:
        """How many draws of a task there are under a condition."""
        return self._drawn.get((condition, task), 0)

    def most(self, rule: Rule) -> int:
        """How many draws a rule can have."""
        return min(len(self.orders[task]) for _, task in rule.asked)

    def are_all(self, rule: Rule) -> bool:
        """Whether a rule has all samples."""
        return all(self.drawn(c, task) >= len(self.orders[task]) for c, task in rule.asked)

    def asked(self, rules: Sequence[Rule]) -> tuple[int, int]:
        """How many samples (of a membership task texts) were asked under all conditions, and how
        many would be without an early decision.
        """
        pairs = {pair for rule in rules for pair in rule.asked}
        orders = [(self.orders[task], self.drawn(c, task)) for c, task in pairs]
        seen = sum(len(order.first(n)) for order, n in orders if n)
        return seen, sum(len(order.first(len(order))) for order, _ in orders)

    def sum(self, claim: Claim, n: int) -> tuple[Array, float, Bounds]:
        """A claim's weighted sums of the first ``n`` draws, its limit and its scale."""
        found = np.zeros(n)
        for name, weight in claim.terms.items():
            found += weight * self._scores(name)[:n]
        return found, claim.limit, claim.scale

    def _scores(self, name: Scores) -> Array:
        """One score a draw, in the order drawn."""
        if name not in self._known:
            n, pair = len(self.orders[name.task]), (name.condition, name.task)
            if name.role == "unlearned":
                records, n = self._records[pair], self._drawn[pair]
            else:
                run = self.anchors(name)
                records = {record.id: record for record in run.records(name.task)}
            draws = self.orders[name.task].draws[:n]
            self._known[name] = self._read(name, [[records.get(i) for i in d] for d in draws])
        return self._known[name]

    def _read(self, name: Scores, draws: Sequence[Sequence[SampleRecord | None]]) -> Array:
        metric, attack = self.headline[name.task]
        part = None if name.part in (None, metric) else name.part
        columns: list[list[float]] = [[] for _ in (draws[0] if draws else ())]
        for draw in draws:
            for column, record in zip(columns, draw, strict=True):
                figure = attack if isinstance(record, LikelihoodRecord) else part
                if record is None or (figure is not None and figure not in record.scores):
                    what = f"{name.role} at {name.condition}: {name.task}: a sample has no score"
                    raise ResultError(f"{one_line(what)}; evaluate it again")
                if figure is not None:
                    column.append(record.scores[figure])
                elif not isinstance(record, LikelihoodRecord):
                    column.append(record.score)
        if len(columns) == 2:
            member, other = map(finite, columns)
            return np.asarray((member > other) + 0.5 * (member == other))
        return np.array(columns[0] if columns else [])

    def ends(self, figure: Callable[[float], Claim], span: Bounds, n: int, level: float) -> Bounds:
        """The figure's confidence sequence after ``n`` draws, both ends together of the policy's
        confidence.
        """
        least = -math.log(level)

        def shown(claim: Claim) -> bool:
            return float(log_wealth(*self.sum(claim, n)).max()) >= least

        ends = []
        for below in (False, True):
            beaten, other = reversed(span) if below else span
            for _ in range(_STEPS):
                middle = (beaten + other) / 2
                claim = figure(middle)
                if shown(claim.below if below else claim):
                    beaten = middle
                else:
                    other = middle
            ends.append(beaten)
        return ends[0], ends[1]
