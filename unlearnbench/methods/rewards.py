"""What a sampled answer earns, and quantiles of what a pool of them earned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import TypeAlias

from unlearnbench.errors import MetricError, OptionError, one_line
from unlearnbench.metrics.rouge import figures
from unlearnbench.metrics.rouge_unicode import words

Reward: TypeAlias = Callable[[str, str, str], float]
"""Of (prompt, answer, what the forget set has as the answer)."""

GROUP = "unlearnbench.rewards"
"""Installed packages offer their own as entry points of this group."""

ROUGE = "rouge"
KEEPS = "of the retain set"


def forgets(prompt: str, answer: str, truth: str) -> float:
    """1 - ROUGE-L recall of the true answer: 1 where the answer has none of its words."""
    return 1 - figures(answer, truth, words)["rougeL_recall"]


def keeps(prompt: str, answer: str, truth: str) -> float:
    """The recall itself."""
    return 1 - forgets(prompt, answer, truth)


def find_reward(name: str) -> Reward:
    """The reward called so: ``rouge``, or an entry point. Raises OptionError where there is none,
    or it cannot be imported.
    """
    if name == ROUGE:
        return forgets
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        offered = ", ".join([ROUGE, *sorted(known)])
        raise OptionError(
            f"--quark-reward {one_line(name, 60)}: known are {offered}; a package offers one as an "
            f"entry point of the group {GROUP}"
        )
    try:
        found: Reward = known[name].load()
    except Exception as error:  # whatever the package does while it is imported
        raise OptionError(
            f"--quark-reward {name}: {one_line(known[name].value, 80)} cannot be imported "
            f"({one_line(error, 150)})"
        ) from error
    return found


def rewarded(name: str, reward: Reward, prompt: str, answer: str, truth: str) -> float:
    """The reward of one answer. Raises MetricError where it fails or is no finite number."""
    try:
        found = float(reward(prompt, answer, truth))
    except Exception as error:  # a function of somebody else's
        raise MetricError(
            f"the reward {name} fails at {one_line(answer, 60)!r} ({one_line(error, 150)})"
        ) from error
    if not math.isfinite(found):
        raise MetricError(
            f"the reward {name} of {one_line(answer, 60)!r} is {found}, which cannot be ranked; it "
            "has to be a finite number"
        )
    return found


def quantiles(rewards: Sequence[float], count: int) -> list[list[int]]:
    """Which rewards are in each of ``count`` quantiles, the best first: of n, n // count each and
    the remainder in the worst; within one by falling reward, then by order. A cut among equal
    rewards moves to the nearer end of them (of two equally near, the better) unless it would meet
    another cut: then equal rewards are told apart by their order. Raises OptionError where there
    are fewer rewards than quantiles.
    """
    total = len(rewards)
    if total < count:
        raise OptionError(
            f"--quark-quantiles {count}: there are {total} answers to sort into them; use fewer"
        )
    order = sorted(range(total), key=lambda at: -rewards[at])
    size, cuts = total // count, [0]
    for number in range(1, count):
        cut = number * size
        equal = rewards[order[cut]]
        first = next(at for at in range(total) if rewards[order[at]] == equal)
        last = next((at for at in range(cut, total) if rewards[order[at]] != equal), total)
        room = range(cuts[-1] + 1, min((number + 1) * size, total))
        ends = [end for end in (first, last) if end in room]
        if first < cut:
            cut = min(ends, key=lambda end: abs(end - cut), default=cut)
        cuts.append(cut)
    return [order[a:b] for a, b in zip(cuts, [*cuts[1:], total], strict=True)]
