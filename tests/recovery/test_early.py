"""An early check: how often it is wrong, and what it takes of stored runs.

The default run simulates 25 gates of each kind, the slow one 2,000; both allow for their chance.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from tests.benchmarks.replays import replay
from unlearnbench.boards.entry import read_board
from unlearnbench.boards.verify import sound_entries
from unlearnbench.recovery.claims import Claim, Rule, Scores, total
from unlearnbench.recovery.compare import Comparison
from unlearnbench.recovery.draws import DrawnScores
from unlearnbench.recovery.early import Gate, NextDraws
from unlearnbench.recovery.order import Order, draw_order
from unlearnbench.recovery.policy import Finding, Policy, exit_status

BOARD = Path(__file__).parents[2] / "leaderboards" / "smollm2-news"
N, TASKS, CONDITIONS, MOST = 60, ("a", "b", "c"), ("none", "rtn-int8", "rtn-int4"), 0.1
POLICY = Policy(tasks=TASKS, precisions=CONDITIONS, max_excess=100 * MOST)
STRICT = Policy(
    tasks=("news_*",),
    precisions=("none", "bnb-int8", "bnb-fp4"),
    max_recovered=0.2,
    max_excess=5.0,
    max_privleak=20.0,
    min_utility=0.8,
)
"""That of docs/check.md."""


class Simulated(DrawnScores):
    """Scores that are drawn on the spot."""

    def __init__(self, orders: dict[str, Order], values: dict[Scores, np.ndarray]) -> None:
        super().__init__(orders, lambda name: None, {})  # type: ignore[arg-type,return-value]
        self.values = values

    def _scores(self, name: Scores) -> Any:
        return self.values[name]


def simulate(rng: np.random.Generator, excess: dict[tuple[str, str], float], kind: str) -> int:
    """The exit status of a gate of nine rules on one set; a true excess for every rule. What is not
    decided by a bet stays so.
    """
    rules, values = [], {}
    for task in TASKS:
        base = Scores("retrained", "none", task)
        values[base] = rng.beta(1, 9, N) if kind == "smooth" else (rng.random(N) < 0.1) * 1.0
        for condition in CONDITIONS:
            own = Scores("unlearned", condition, task)
            mean = 0.1 + excess[condition, task]
            draws = rng.beta(10 * mean, 10 * (1 - mean), N)
            values[own] = draws if kind == "smooth" else (rng.random(N) < mean) * 1.0
            claim = Claim(total(({own: 1.0}, 1), ({base: 1.0}, -1)), MOST)
            asked = frozenset({(condition, task)})
            held, broken = (claim.below,), ((claim,),)
            rules.append(Rule(task, condition, "max_excess 10", asked, held, broken))
    orders = {task: draw_order(task, [[str(i) for i in range(N)]], 0) for task in TASKS}

    def judge(rule: Rule) -> Finding:
        return Finding("m", rule.task, rule.condition, rule.name, "not decided", "")

    gate = Gate("m", POLICY, rules, Simulated(orders, values), judge)
    while (step := gate.next()) is not None:
        for n in range(gate.draws.drawn(step.condition, step.task) + 1, step.n + 1):
            gate.add(NextDraws(step.condition, step.task, n), [])  # looks after every sample
            if gate.failed:
                break
    return exit_status(gate.findings())


def hold(kind: str, sets: int) -> None:
    most = int(binom.ppf(0.999, sets, 0.05))
    edge = {(c, t): MOST for c in CONDITIONS for t in TASKS}
    rng = np.random.default_rng(3)
    failed = sum(simulate(rng, edge, kind) == 1 for _ in range(sets))
    assert failed <= most, "all rules hold, by nothing, and one was called broken"
    low = dict.fromkeys(edge, -0.09) | {("rtn-int4", "b"): MOST}
    passed = sum(simulate(rng, low, kind) == 0 for _ in range(sets))
    assert passed <= most, "one rule is broken, by nothing, and all were said to hold"


@pytest.mark.parametrize("kind", ["smooth", "coins"])
def test_a_gate_is_seldom_wrong(kind: str) -> None:
    hold(kind, 25)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["smooth", "coins"])
def test_a_gate_is_seldom_wrong_in_2000_sets(kind: str) -> None:
    hold(kind, 2000)


def test_what_is_clear_is_decided_with_few_samples() -> None:
    rng = np.random.default_rng(5)
    clear = dict.fromkeys([(c, t) for c in CONDITIONS for t in TASKS], 0.0)
    assert simulate(rng, clear | {("rtn-int4", "b"): 0.8}, "smooth") == 1


def test_an_order_is_of_ids_alone() -> None:
    ids = [f"forget/{i}" for i in range(30)]
    order = draw_order("t", [ids], 0)
    assert draw_order("t", [ids[::-1]], 0) == order != draw_order("t", [ids], 1)
    assert order.first(30) == set(ids)
    assert len(order.first(7)) == 7
    pairs = draw_order("t", [ids, [f"holdout/{i}" for i in range(20)]], 0)
    assert len(pairs) == 20
    assert len(pairs.first(19)) == 38
    assert len(pairs.first(20)) == 50, "the ten without a partner come with the last"


@pytest.mark.slow
def test_the_board_is_judged_alike_with_a_third_of_its_samples() -> None:
    """docs/check.md states the figures."""
    entries = {entry.name: entry.loaded() for entry in sound_entries(read_board(BOARD))}
    found = []
    for entry in entries.values():
        comparison = Comparison([entry], entries["target"], entries["retrained"])
        found += [replay(comparison, entry, STRICT, seed) for seed in range(3)]
    assert len(found) == 30
    assert [each.entry for each in found if each.early != each.whole] == []
    assert statistics.median(each.share for each in found) <= 1 / 3
