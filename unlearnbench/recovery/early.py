"""A gate that stops as soon as it is decided: which samples it needs next, and what they show.

Every rule bets on its claims after every draw (``metrics.sequences``). One that is broken decides
the outcome; for a pass each has to hold. A rule whose samples are used up is judged as without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from unlearnbench.metrics.intervals import Bounds
from unlearnbench.metrics.sequences import log_wealth
from unlearnbench.recovery.claims import Claim, Rule
from unlearnbench.recovery.draws import DrawnScores
from unlearnbench.recovery.policy import Finding, Outcome, Policy
from unlearnbench.results import SampleRecord

FIRST = 4
"""Draws of the first round; each later round has twice as many as the one before."""
_LEAST_WEALTH = math.log(2)  # below it nothing is said of how a bet goes on


@dataclass(frozen=True)
class NextDraws:
    """What to ask next: the first ``n`` draws of a task under a condition."""

    condition: str
    task: str
    n: int


@dataclass
class RuleStanding:
    """A rule, and what its samples have shown."""

    rule: Rule
    outcome: Outcome | None = None
    n: int = 0
    """Draws that it took; those that it has, where it is not decided."""
    message: str = ""
    bounds: Bounds | None = None
    forecast: float = math.inf
    """About how many draws it needs to be broken; infinity where nothing speaks for that."""


@dataclass
class Gate:
    """The state of one early check."""

    entry: str
    policy: Policy
    rules: Sequence[Rule]
    draws: DrawnScores
    judge: Callable[[Rule], Finding]
    """A rule's judgement with all samples."""
    standings: list[RuleStanding] = field(init=False)

    def __post_init__(self) -> None:
        alpha = (1 - self.policy.confidence) / 2
        ways = sum(len(rule.broken) for rule in self.rules)
        # A wrong pass needs one certain rule to be mistaken, a wrong failure any of all.
        self._levels = alpha, alpha / max(1, ways)
        self.standings = [RuleStanding(rule) for rule in self.rules]
        for standing in self.standings:
            self._settle_at_once(standing)

    def _settle_at_once(self, standing: RuleStanding) -> None:
        rule = standing.rule
        most = min((len(self.draws.orders[task]) for _, task in rule.asked), default=0)
        if rule.known:
            standing.outcome, standing.message = "pass", "the retrained model itself"
            standing.bounds = (0.0, 0.0)
        elif most < self.policy.min_samples:
            standing.outcome = "not decided"
            standing.message = f"{most} samples, the policy asks for {self.policy.min_samples}"

    @property
    def failed(self) -> bool:
        """Whether the outcome is decided: a rule is broken."""
        return any(standing.outcome == "fail" for standing in self.standings)

    def next(self, loaded: str | None = None) -> NextDraws | None:
        """What to ask next, None where nothing is: first for a rule that goes towards being broken,
        else round by round. ``loaded``: the condition that costs no loading.
        """
        left = [s for s in self.standings if s.outcome is None]
        if self.failed or not left:
            return None
        near = [s for s in left if s.forecast <= self.draws.most(s.rule)]
        if near:
            best = min(near, key=lambda s: s.forecast * (1 if _meets(s, loaded) else 2))
            if (step := self._towards(best)) is not None:
                return step
        waiting = {pair for standing in left for pair in standing.rule.asked}
        open_ = [
            pair for pair in waiting if self.draws.drawn(*pair) < len(self.draws.orders[pair[1]])
        ]
        if not open_:
            return None
        places = {pair: at for at, pair in enumerate(self._all_asked())}

        def turn(pair: tuple[str, str]) -> tuple[int, bool, int]:
            return _round(self.draws.drawn(*pair)), pair[0] != loaded, places[pair]

        condition, task = min(open_, key=turn)
        n = FIRST * 2 ** _round(self.draws.drawn(condition, task))
        return NextDraws(condition, task, min(n, len(self.draws.orders[task])))

    def _all_asked(self) -> dict[tuple[str, str], None]:
        """In the policy's order."""
        order = {name: at for at, name in enumerate(self.policy.precisions)}
        pairs = [pair for rule in self.rules for pair in sorted(rule.asked)]
        return dict.fromkeys(sorted(pairs, key=lambda pair: order.get(pair[0], -1)))

    def _towards(self, standing: RuleStanding) -> NextDraws | None:
        """The smallest step that brings a rule further, by at most as many draws again."""
        n = standing.n
        goal = min(
            self.draws.most(standing.rule), max(n + 1, min(2 * n, math.ceil(standing.forecast)))
        )
        behind = [pair for pair in sorted(standing.rule.asked) if self.draws.drawn(*pair) < goal]
        return NextDraws(*behind[0], goal) if behind else None

    def add(self, step: NextDraws, records: Sequence[SampleRecord]) -> list[RuleStanding]:
        """Take the records of a step's draws, earlier ones among them, and return the rules that
        are decided by them.
        """
        pair = step.condition, step.task
        self.draws.add(pair, step.n, records)
        touched = [s for s in self.standings if s.outcome is None and pair in s.rule.asked]
        for standing in touched:
            self._look(standing)
        return [standing for standing in touched if standing.outcome is not None]

    def _look(self, standing: RuleStanding) -> None:
        rule = standing.rule
        n = min(self.draws.drawn(*pair) for pair in rule.asked)
        standing.n = n
        if n == 0:
            return
        hold, broken = self._levels
        passed = self._shown(rule.holds, hold, n)[0] if rule.holds else None
        ways = [self._shown(way, broken, n) for way in rule.broken]
        failed = min((at for at, _ in ways if at is not None), default=None)
        standing.forecast = min((ahead for _, ahead in ways), default=math.inf)
        if failed is not None and (passed is None or failed <= passed):
            self._decide(standing, "fail", failed)
        elif passed is not None:
            self._decide(standing, "pass", passed)
        elif self.draws.are_all(rule):
            found = self.judge(rule)
            standing.outcome, standing.message = found.outcome, found.message
            standing.bounds = found.bounds

    def _shown(self, claims: Sequence[Claim], level: float, n: int) -> tuple[int | None, float]:
        """After how many draws all of the claims were shown; and about how many it will take."""
        after, ahead = 0, 0.0
        for claim in claims:
            wealth, least = log_wealth(*self.draws.sum(claim, n)), -math.log(level)
            wealth[: self.policy.min_samples - 1] = -math.inf
            reached = np.flatnonzero(wealth >= least)
            if len(reached):
                after = max(after, int(reached[0]) + 1)
                continue
            after, now = math.inf, float(wealth[-1])  # type: ignore[assignment]
            ahead = max(ahead, n * least / now if now > _LEAST_WEALTH else math.inf)
        return (None, ahead) if math.isinf(after) else (after, math.inf)

    def _decide(self, standing: RuleStanding, outcome: Outcome, n: int) -> None:
        standing.outcome, standing.n = outcome, n
        rule, shown = standing.rule, ""
        most = self.draws.most(rule)
        if rule.figure is not None:
            low, high = self.draws.ends(rule.figure, rule.span, n, self._levels[0])
            standing.bounds = (low, high)
            shown = f"within [{low:.3g}, {high:.3g}], "
        standing.message = f"{shown}shown after {n} of {most} samples"

    def findings(self) -> list[Finding]:
        """What was found of every rule."""
        found = []
        for each in self.standings:
            rule, outcome, message = each.rule, each.outcome or "not decided", each.message
            if each.outcome is None:
                message = f"not needed, {each.n} of {self.draws.most(rule)} samples seen"
            of = max((len(self.draws.orders[task]) for _, task in rule.asked), default=0)
            where = self.entry, rule.task, rule.condition, rule.name
            found.append(Finding(*where, outcome, message, each.bounds, each.n, of))
        return found


def _round(n: int) -> int:
    """The round that the next draw belongs to."""
    return 0 if n < FIRST else int(math.log2(n / FIRST)) + 1


def _meets(standing: RuleStanding, loaded: str | None) -> bool:
    return any(condition == loaded for condition, _ in standing.rule.asked)
