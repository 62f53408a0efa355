"""Decisions of one or several models on a question with two answers, corrected so that their error
rates agree between two groups (equalized odds): Hardt, Price and Srebro 2016, arXiv 1610.02413, and
FairSISA's three ways to do so with an ensemble, Kadhe et al. 2023, arXiv 2312.07420.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from unlearnbench.errors import MetricError
from unlearnbench.metrics.intervals import CONFIDENCE, Bounds, Estimate, Values, draw, mean

Way = Literal["majority", "aggregate-process", "process-aggregate", "ensemble"]
WAYS: tuple[Way, ...] = get_args(Way)
"""The majority as it is; a rule for it; the majority of what a rule for each model says; a rule for
all votes together, which no other rule on them can beat."""
MOST_MODELS = 63

Array = NDArray[np.float64]
Pattern: TypeAlias = tuple[int, ...]
Rule: TypeAlias = Mapping[tuple[Pattern, int], float]
"""P(the decision is 1 | votes, group)."""


@dataclass(frozen=True)
class Votes:
    """What models decided about rows; all 0 or 1."""

    ids: tuple[str, ...]
    votes: NDArray[np.int_]
    """(rows, models)."""
    groups: NDArray[np.int_]
    """(rows,)."""
    labels: NDArray[np.int_]
    """(rows,): what is right."""
    names: tuple[str, str] = ("0", "1")
    """Of the groups, for messages."""

    def cell(self, group: int, label: int) -> NDArray[np.bool_]:
        """Which rows are of a group and have a label."""
        found: NDArray[np.bool_] = (self.groups == group) & (self.labels == label)
        return found

    def take(self, rows: NDArray[np.int_]) -> Votes:
        """Some of the rows."""
        ids = tuple(self.ids[row] for row in rows)
        part = self.votes[rows], self.groups[rows], self.labels[rows]
        return Votes(ids, *part, self.names)

    def halves(self, seed: int) -> tuple[Votes, Votes]:
        """Rows to fit rules on and others to test them on, drawn within each cell. Raises
        MetricError where a cell has fewer than two: its error rate is of nothing.
        """
        parts: tuple[list[int], list[int]] = [], []
        for group in (0, 1):
            for label in (0, 1):
                found = np.flatnonzero(self.cell(group, label)).tolist()
                if len(found) < 2:
                    raise MetricError(
                        f"group {self.names[group]} has {len(found)} rows with label {label}, and "
                        "no rule can be held to error rates of nothing; two are needed, to fit and "
                        "to test"
                    )
                found.sort(key=lambda row: uniform(seed, "half", self.ids[row]))
                parts[0].extend(found[: len(found) // 2])
                parts[1].extend(found[len(found) // 2 :])
        first, second = (self.take(np.array(sorted(part))) for part in parts)
        return first, second


def uniform(*parts: object) -> float:
    """A number in [0, 1) that follows from ``parts`` alone."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def majority(votes: NDArray[np.int_]) -> NDArray[np.int_]:
    """(rows,) of (rows, models): what most say; where as many say the other, the first model."""
    twice = 2 * votes.sum(axis=1)
    return np.where(twice == votes.shape[1], votes[:, 0], twice > votes.shape[1]).astype(np.int_)


def fit(data: Votes, votes: NDArray[np.int_]) -> Rule:
    """The rule on ``votes`` (rows, models) with the fewest errors, of those whose rates of true and
    of false positives are the same for both groups: a linear program.

    Minimize sum over (v, a) of q(v, a) (P(v, a, 0) - P(v, a, 1)) so that for y = 0 and y = 1
    sum_v q(v, 0) P(v | 0, y) = sum_v q(v, 1) P(v | 1, y), 0 <= q <= 1. Raises MetricError where a
    group has no row with a label, or the solver finds no rule.
    """
    from scipy.optimize import linprog

    patterns = [tuple(row) for row in votes.tolist()]
    keys = sorted(set(zip(patterns, data.groups.tolist(), strict=True)))
    place = {key: number for number, key in enumerate(keys)}
    cost, equal = np.zeros(len(keys)), np.zeros((2, len(keys)))
    sizes = {(a, y): int(data.cell(a, y).sum()) for a in (0, 1) for y in (0, 1)}
    for (a, y), size in sizes.items():
        if not size:
            raise MetricError(
                f"group {data.names[a]} has no row with label {y}: no rule can be held to it"
            )
    rows = zip(patterns, data.groups.tolist(), data.labels.tolist(), strict=True)
    for pattern, group, label in rows:
        at = place[pattern, group]
        cost[at] += (1 - 2 * label) / len(patterns)
        equal[label, at] += (1 - 2 * group) / sizes[group, label]
    exact = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(cost, A_eq=equal, b_eq=[0, 0], bounds=(0, 1), method="highs", options=exact)
    if not found.success or not np.isfinite(found.x).all():
        raise MetricError(f"no rule has equal error rates in both groups: {found.message}")
    return {key: float(min(1, max(0, q))) for key, q in zip(keys, found.x, strict=True)}


def chances(rule: Rule, votes: NDArray[np.int_], groups: NDArray[np.int_]) -> Array:
    """(rows,): P(the decision is 1). Votes that the rule was not fitted on are taken as they are,
    by their majority.
    """
    own = majority(votes)
    pairs = zip(map(tuple, votes.tolist()), groups.tolist(), strict=True)
    return np.array([rule.get(key, float(own[row])) for row, key in enumerate(pairs)])


def errors(decided: Array, labels: NDArray[np.int_]) -> float:
    """The expected share of wrong decisions; ``decided``: P(1) of each row."""
    return float(np.where(labels == 1, 1 - decided, decided).mean())


def decide(way: Way, fitted: Votes, data: Votes, seed: int) -> NDArray[np.int_]:
    """What ``way``, fitted on other rows, decides about ``data``, (rows,). A draw goes by seed, row
    and model alone. Raises: as ``fit``.
    """
    if way == "majority":
        return majority(data.votes)

    def drawn(first: NDArray[np.int_], votes: NDArray[np.int_], model: int) -> NDArray[np.int_]:
        p = chances(fit(fitted, first), votes, data.groups)
        return (np.array([uniform(seed, model, row) for row in data.ids]) < p).astype(np.int_)

    if way == "ensemble":
        return drawn(fitted.votes, data.votes, 0)
    if way == "aggregate-process":
        return drawn(majority(fitted.votes)[:, None], majority(data.votes)[:, None], 0)
    count = data.votes.shape[1]
    each = [drawn(fitted.votes[:, [m]], data.votes[:, [m]], m) for m in range(count)]
    return majority(np.stack(each, axis=1))


@dataclass(frozen=True)
class Fairness:
    """How right, and how fair, some decisions are."""

    accuracy: Estimate
    gap: Estimate
    """The equalized-odds gap: the larger of both rates' differences between the groups."""
    mean_gap: float
    """The mean of both."""
    rates: Mapping[str, float]
    """tpr_0, tpr_1, fpr_0, fpr_1: of each group, how often a row with label 1 or 0 is decided 1."""


def judge(decided: NDArray[np.int_], data: Votes, seed: int) -> Fairness:
    """Accuracy and gap with their 95% intervals. Each rate is a mean, whose interval is Clopper and
    Pearson's or the engine's; two differ by MOVER (Zou and Donner 2008), and the larger of two
    differences lies where both lie, each at half the error.
    """
    right = Values((decided == data.labels).astype(np.float64), (0.0, 1.0))
    narrow, rates, apart = 1 - (1 - CONFIDENCE) / 2, dict[str, float](), list[Bounds]()
    for label, name in ((1, "tpr"), (0, "fpr")):
        found = []
        for group in (0, 1):
            values = Values(decided[data.cell(group, label)].astype(np.float64), (0.0, 1.0))
            each = mean(values, draw(len(values.values), seed, confidence=narrow))
            rates[f"{name}_{group}"] = each.value
            found.append((each.value, each.ci or (0.0, 1.0)))
        apart.append(_difference(*found))
    gaps = [abs(rates[f"{name}_0"] - rates[f"{name}_1"]) for name in ("tpr", "fpr")]
    least = max(max(low, -high, 0.0) for low, high in apart)
    most = max(max(abs(low), abs(high)) for low, high in apart)
    accuracy = mean(right, draw(len(decided), seed))
    return Fairness(accuracy, Estimate(max(gaps), (least, most)), sum(gaps) / 2, rates)


def _difference(one: tuple[float, Bounds], other: tuple[float, Bounds]) -> Bounds:
    """The interval of a difference of two independent values, of their intervals."""
    (x, (x_low, x_high)), (y, (y_low, y_high)) = one, other
    low = x - y - math.hypot(x - x_low, y_high - y)
    return max(low, -1.0), min(x - y + math.hypot(x_high - x, y - y_low), 1.0)


def compare_ways(data: Votes, seed: int, ways: Sequence[Way] = WAYS) -> dict[Way, Fairness]:
    """Each way, fitted on one half of the rows and judged on the other. Raises MetricError where
    that cannot be.
    """
    fitted, tested = data.halves(seed)
    return {way: judge(decide(way, fitted, tested, seed), tested, seed) for way in ways}
