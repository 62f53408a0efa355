"""A policy's rules as claims on means of bounded scores, which bets can show after any sample.

Every rule is linear once its limit is known: "recovered at most r" of (quantized - full) over
(target - full) is "(quantized - full) - r (target - full) is not above 0 in the mean".
docs/check.md says what an early decision is about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from unlearnbench.metrics.membership import LEAST_REFERENCE, privleak
from unlearnbench.recovery.compare import Comparison
from unlearnbench.recovery.controls import needs_control
from unlearnbench.recovery.policy import Policy, tasks_named
from unlearnbench.recovery.utility import Retained, retained_of
from unlearnbench.recovery.verdicts import GONE, MIN_GAP, target_keeps
from unlearnbench.results import FULL, Role


class Scores(NamedTuple):
    """Whose scores of what: one a draw, from 0 to 1; of pairs 1 where the member scores above the
    non-member, so that their mean is the AUC.
    """

    role: Role
    condition: str
    task: str
    part: str | None = None
    """A figure beside the task's own."""


Terms: TypeAlias = Mapping[Scores, float]


@dataclass(frozen=True)
class Claim:
    """That the mean of a weighted sum of scores is above ``limit``."""

    terms: Terms
    limit: float

    @property
    def below(self) -> Claim:
        """That it is below."""
        return Claim({name: -weight for name, weight in self.terms.items()}, -self.limit)

    @property
    def scale(self) -> tuple[float, float]:
        """What no sum can leave."""
        weights = self.terms.values()
        return sum(min(w, 0.0) for w in weights), sum(max(w, 0.0) for w in weights)


def total(*parts: tuple[Terms, float]) -> dict[Scores, float]:
    """The weighted sum of sums; what cancels is left out."""
    found: dict[Scores, float] = {}
    for terms, factor in parts:
        for name, weight in terms.items():
            found[name] = found.get(name, 0.0) + factor * weight
    return {name: weight for name, weight in found.items() if abs(weight) > 1e-12}


@dataclass(frozen=True)
class Rule:
    """One rule on one task under one condition: when it holds, and when it is broken."""

    task: str
    """As a finding names it."""
    condition: str
    name: str
    """As a finding names it, ``max_excess 5``."""
    asked: frozenset[tuple[str, str]]
    """The conditions and tasks of the checkpoint that it is judged on."""
    holds: tuple[Claim, ...] = ()
    """It holds where each of these is shown; none: that cannot be shown early."""
    broken: tuple[tuple[Claim, ...], ...] = ()
    """It is broken where, of one of these, each claim is shown."""
    figure: Callable[[float], Claim] | None = None
    """That the figure which is judged, in its own unit, is above a value."""
    span: tuple[float, float] = (-10.0, 10.0)
    """Between which values its interval is looked for."""
    known: bool = False
    """It holds by definition: the checkpoint is the retrained model itself."""

    @property
    def kind(self) -> str:
        """The policy's field."""
        return self.name.split()[0]


@dataclass(frozen=True)
class Anchors:
    """What the rules are measured against, all of it known before the first sample."""

    comparison: Comparison
    """Of the target and the retrained model; it needs no entries."""
    policy: Policy
    alone: Collection[tuple[str, str]] = ()
    """Conditions and tasks that they leave as they are: nothing is judged there."""
    is_retrained: bool = False
    """The checkpoint is the retrained model."""

    def rules(self) -> list[Rule]:
        """The policy's, each once, but those on the weights.

        Raises:
            OptionError: a task pattern fits nothing, or a condition needs a control and has none.
            ResultError: a run of the target's is missing.
        """
        base = self.comparison.retrained.full
        have = self.comparison.tasks_of(base)
        found = [
            rule
            for task in tasks_named(self.policy, have, "--retrained")
            for condition in self.policy.precisions
            if (condition, task) not in self.alone
            for rule in self._of(task, condition)
        ]
        return list({(rule.task, rule.condition, rule.name): rule for rule in found}.values())

    def tasks(self) -> list[str]:
        """All that the policy needs: its own, and the retain tasks behind utility."""
        have = self.comparison.retrained.full.result.tasks
        found = dict.fromkeys(tasks_named(self.policy, [*have], "--retrained"))
        if self.policy.min_utility is not None:
            for task in list(found):
                retained = self._retained(task)
                found |= dict.fromkeys(name for name, _ in (retained.parts if retained else ()))
        return list(found)

    def _retained(self, task: str) -> Retained | None:
        return retained_of(self.comparison.retrained.full.result.tasks, task)

    def _of(self, task: str, condition: str) -> Iterator[Rule]:
        policy = self.policy
        want = self.comparison.retrained.full.task(task).want
        if want == "low" and policy.max_excess is not None:
            yield self._excess(task, condition, policy.max_excess)
        if want == "zero" and policy.max_privleak is not None:
            yield self._privleak(task, condition, policy.max_privleak)
        if policy.min_utility is not None:
            yield self._utility(task, condition, policy.min_utility)
        most = policy.most_recovered(condition)
        if most is not None and want != "high":
            yield self._recovered(task, condition, most, want)

    def _base(self, task: str, condition: str) -> Terms:
        return {Scores("retrained", self.comparison.base(condition).condition, task): 1.0}

    def _itself(self, condition: str) -> bool:
        return self.is_retrained and self.comparison.base(condition).condition == condition

    def _excess(self, task: str, condition: str, most: float) -> Rule:
        rule = _plain(task, condition, f"max_excess {most:g}")
        if self._itself(condition):
            return replace(rule, known=True)
        above = total((_ours(task, condition), 1), (self._base(task, condition), -1))

        def figure(points: float) -> Claim:
            return Claim(above, points / 100)

        limit = figure(most)
        rule = replace(rule, holds=(limit.below,), broken=((limit,),))
        return replace(rule, figure=figure, span=(-100.0, 100.0))

    def _privleak(self, task: str, condition: str, most: float) -> Rule:
        rule = _plain(task, condition, f"max_privleak {most:g}")
        base = self.comparison.base(condition)
        if self._itself(condition):
            return replace(rule, known=True)
        if self.comparison.scores(base, task).mean < LEAST_REFERENCE:
            return rule  # PrivLeak explodes: it has a value, and nothing bounds it

        def figure(value: float) -> Claim:
            terms = (_ours(task, condition), 1), (self._base(task, condition), -(1 + value / 100))
            return Claim(total(*terms), 0.0)

        low, high = figure(-most), figure(most).below
        holds = (high,) if most >= 100 else (low, high)  # no AUC is below 0
        broken = tuple((claim.below,) for claim in holds)
        span = -100.0, 1000.0
        return replace(rule, holds=holds, broken=broken, figure=figure, span=span)

    def _utility(self, task: str, condition: str, least: float) -> Rule:
        """Of several figures the ratio of harmonic means is above the limit where every figure's
        own share is, and below it where every one is.
        """
        retained, name = self._retained(task), f"min_utility {least:g}"
        if retained is None:
            return _plain(task, condition, name)
        tasks = {(condition, part) for part, _ in retained.parts}
        rule = _plain(retained.name, condition, name, *tasks)

        every = tuple(_share(condition, part, least) for part in retained.parts)
        rule = replace(rule, holds=every, broken=(tuple(claim.below for claim in every),))
        if len(retained.parts) > 1:
            return rule
        return replace(
            rule, figure=lambda value: _share(condition, retained.parts[0], value), span=(0.0, 10.0)
        )

    def _recovered(self, task: str, condition: str, most: float, want: str) -> Rule:
        """The branches of the judgement with all samples (``policy._recovered``): those on the
        target's scores alone are known, and those on the checkpoint's have to be shown too.
        """
        asked = (condition, task), (FULL, task)
        rule = _plain(task, condition, f"max_recovered {most:g}", *asked)
        sign = -1.0 if want == "zero" else 1.0  # a lower AUC is the target's
        ours, full = _ours(task, condition), _ours(task, FULL)
        theirs, theirs_full = _theirs(task, condition), _theirs(task, FULL)
        base = {Scores("retrained", FULL, task): 1.0}
        net = total((ours, sign), (full, -sign))
        if needs_control(condition):
            net = total((net, 1), (self._base(task, condition), -sign), (base, sign))
        gap, forgotten = (total((t, sign), (full, -sign)) for t in (theirs, theirs_full))
        zero = base if want == "zero" else {}
        step, limit = MIN_GAP / 100, 0.0 if zero else MIN_GAP / 100
        room, gone_far = (Claim(total((t, 1), (zero, -step)), limit) for t in (gap, forgotten))
        known = self.comparison.scores(self.comparison.target.at(condition), task).mean
        known_full = self.comparison.scores(self.comparison.target.full, task).mean
        least, never = [room], [room.below, gone_far.below]
        if zero:
            auc = self.comparison.scores(self.comparison.retrained.full, task).mean
            if auc < LEAST_REFERENCE:
                return rule
            if privleak(known_full, auc) <= -MIN_GAP:  # leaks: the way from there is known
                far = total((forgotten, 1), (base, -GONE), (theirs_full, GONE))
                gone = Claim(far, 0.0)
                least, never = [room, gone], [gone.below]
            elif privleak(known_full, auc) >= MIN_GAP:
                return rule  # a target that leaks less than nothing: left to all samples
        elif not target_keeps("low", known, known_full):
            return replace(rule, broken=((gone_far.below,),))

        def figure(share: float) -> Claim:
            return Claim(total((net, 1), (gap, -share)), 0.0)

        over = figure(most)
        broken = ((*least, over), tuple(never))
        return replace(rule, holds=(*least, over.below), broken=broken, figure=figure)


def _plain(task: str, condition: str, name: str, *asked: tuple[str, str]) -> Rule:
    return Rule(task, condition, name, frozenset(asked or {(condition, task)}))


def _share(condition: str, part: tuple[str, str], value: float) -> Claim:
    """That a figure's share of the target's is above ``value``."""
    own, theirs = (Scores("unlearned", condition, *part), Scores("target", FULL, *part))
    return Claim(total(({own: 1.0}, 1), ({theirs: 1.0}, -value)), 0.0)


def _ours(task: str, condition: str) -> Terms:
    return {Scores("unlearned", condition, task): 1.0}


def _theirs(task: str, condition: str) -> Terms:
    return {Scores("target", condition, task): 1.0}
