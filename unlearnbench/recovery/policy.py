"""What a policy demands of a checkpoint, and how what is found of it is said."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unlearnbench.errors import OptionError, one_line
from unlearnbench.metrics.intervals import CONFIDENCE, Bounds
from unlearnbench.results import FULL

Outcome = Literal["pass", "fail", "not decided"]
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
Share = Annotated[float, Field(ge=0)]


FITS = {
    "max_recovered": "it is of forget tasks and PrivLeak under conditions but none",
    "max_excess": "it is of tasks where low is good",
    "max_privleak": "it is of PrivLeak tasks",
    "min_utility": "it is of every task",
    "min_survival": "it is of quantized conditions",
}
"""The rules, and what each is of."""


class Policy(BaseModel):
    """What a checkpoint must keep to; a rule that is absent is not checked."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    tasks: Names
    """Names or globs; each must match a task of the runs."""
    precisions: Names
    """At which every rule must hold; ``none`` is full precision."""
    max_recovered: Share | dict[str, Share] | None = None
    """Largest recovered share, under every condition but ``none``; or by condition, and then under
    those that are named."""
    max_excess: float | None = Field(default=None, ge=0)
    """Epsilon: most points above the retrained model, on tasks where low is good."""
    max_privleak: float | None = Field(default=None, ge=0)
    """Largest PrivLeak on either side of 0."""
    min_utility: float | None = Field(default=None, ge=0)
    """Least share of the full-precision target's retained knowledge."""
    min_survival: float | None = Field(default=None, ge=0, le=1)
    """Least share of the update that rounding leaves, at every quantized precision; read from the
    checkpoints themselves, exactly."""
    confidence: float = Field(default=CONFIDENCE, ge=0.5, le=0.999)
    """Of the two-sided intervals whose bounds decide."""
    min_samples: int = Field(default=1, ge=1)
    """With fewer, nothing is decided."""

    def most_recovered(self, precision: str) -> float | None:
        """The largest recovered share at ``precision``; None where none is stated."""
        if isinstance(self.max_recovered, dict):
            return self.max_recovered.get(precision)
        return None if precision == FULL else self.max_recovered

    @property
    def rules(self) -> set[str]:
        """The names of those that are there."""
        return {name for name in FITS if getattr(self, name) is not None}

    @model_validator(mode="after")
    def _has_a_rule(self) -> Policy:
        if not self.rules:
            raise ValueError(f"no rule: no {', '.join(FITS)}")
        return self


@dataclass(frozen=True)
class Finding:
    """One rule on one task at one precision. ``bounds`` is None where there is no interval."""

    entry: str
    task: str
    precision: str
    rule: str
    outcome: Outcome
    message: str
    bounds: Bounds | None = None
    n: int | None = None
    """Samples that it took; None where it is of none, as a rule on weights."""
    of: int | None = None
    """All that there are, where an early decision may have taken fewer."""

    @property
    def name(self) -> str:
        """What was checked, in one line."""
        return f"{self.entry} {self.task} at {self.precision}: {self.rule}"


def exit_status(findings: Sequence[Finding]) -> int:
    """0 all pass, 1 one fails, 2 none fails and one is not decided."""
    outcomes = {finding.outcome for finding in findings}
    return 1 if "fail" in outcomes else 2 if "not decided" in outcomes else 0


def tasks_named(policy: Policy, tasks: Sequence[str], name: str) -> list[str]:
    """Those of ``tasks`` that a policy names. Raises OptionError where a pattern fits none of what
    ``name`` has.
    """
    chosen: dict[str, None] = {}
    for pattern in policy.tasks:
        matches = fnmatch.filter(tasks, pattern)
        if not matches:
            what = one_line(pattern)
            raise OptionError(f"{one_line(name)} has no task {what}; evaluate it first")
        chosen.update(dict.fromkeys(matches))
    return list(chosen)


def require_sense(policy: Policy, tasks: Sequence[str], alone: Collection[tuple[str, str]]) -> None:
    """Raise OptionError where ``max_recovered`` names a condition that is not checked, or a
    condition is put to none of the ``tasks``. ``alone``: those that it leaves as they are.
    """
    bounds = policy.max_recovered if isinstance(policy.max_recovered, dict) else {}
    odd = [name for name in bounds if name == FULL or name not in policy.precisions]
    if odd:
        raise OptionError(
            f"the policy's max_recovered names {one_line(odd[0], 80)}, which is not among its "
            f"precisions, or is {FULL} itself"
        )
    for precision in policy.precisions:
        if all((precision, task) in alone for task in tasks):
            raise OptionError(
                f"{one_line(precision, 80)} changes how none of {', '.join(tasks)} is asked: "
                "nothing would be checked there; add a task that it is put to, or leave it out"
            )


def require_no_idle(
    policy: Policy, judged: Collection[str], name: str, tasks: Sequence[str]
) -> None:
    """Raise OptionError where a rule of the policy is none of those that fitted, ``judged``."""
    idle = sorted(policy.rules - set(judged))
    if idle:
        where = f"{', '.join(tasks)} at {', '.join(policy.precisions)}"
        raise OptionError(
            f"the policy's {idle[0]} fits nothing of {one_line(name)}, "
            f"{one_line(where)}, so it was not checked ({FITS[idle[0]]}); add what it fits, "
            "or leave it out"
        )
