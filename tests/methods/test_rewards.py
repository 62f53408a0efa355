"""Quantiles under ties and increasing transforms, and rewards of others."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnbench.errors import MetricError, OptionError
from unlearnbench.methods import rewards
from unlearnbench.methods.rewards import find_reward, forgets, keeps, quantiles, rewarded

LISTS = st.lists(st.integers(-4, 4), min_size=6, max_size=40)


@pytest.mark.parametrize(("n", "count"), [(10, 3), (9, 3), (11, 5), (4, 4), (7, 1)])
def test_different_rewards_make_equal_parts_and_the_worst_has_the_rest(n: int, count: int) -> None:
    values = [(7 * at) % n + 0.5 for at in range(n)]
    values = values if len(set(values)) == n else [float(-at) for at in range(n)]
    found = quantiles(values, count)
    assert [len(part) for part in found] == [
        *[n // count] * (count - 1),
        n - n // count * (count - 1),
    ]
    ranked = [values[at] for part in found for at in part]
    assert ranked == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 1, 1, 0, 0, 0], [[0, 1, 2], [3, 4, 5]]),
        ([1, 1, 0, 0, 0, 0], [[0, 1], [2, 3, 4, 5]]),  # the cut at 3 goes to 2
        ([1, 1, 1, 1, 0, 0], [[0, 1, 2, 3], [4, 5]]),  # to 4
        ([2, 1, 1, 1, 1, 0], [[0], [1, 2, 3, 4, 5]]),  # equally near: the better end
        ([0, 0, 0, 0, 0, 0], [[0, 1, 2], [3, 4, 5]]),  # by order, no end to go to
        ([0, 1, 0, 1, 0, 1], [[1, 3, 5], [0, 2, 4]]),
    ],
)
def test_equal_rewards_stay_together_where_they_can(
    values: list[float], expected: list[list[int]]
) -> None:
    assert quantiles(values, 2) == expected


@settings(max_examples=60, deadline=None, derandomize=True)
@given(LISTS, st.integers(1, 6))
def test_they_are_whole_ordered_and_move_with_no_increasing_transform(
    values: list[int], count: int
) -> None:
    found = quantiles(values, count)
    assert len(found) == count
    assert all(found), "none is empty"
    assert sorted(at for part in found for at in part) == list(range(len(values)))
    flat = [at for part in found for at in part]
    assert flat == sorted(flat, key=lambda at: (-values[at], at)), "equal ones in their order"
    for transform in (lambda v: v**3, lambda v: 2.0**v - 9, lambda v: math.atan(v) / 2):
        assert quantiles([transform(v) for v in values], count) == found


def test_fewer_answers_than_quantiles_are_refused() -> None:
    with pytest.raises(OptionError, match="--quark-quantiles 5: there are 4 answers"):
        quantiles([0.0] * 4, 5)


def test_the_reward_of_forgetting_is_one_less_the_recall_of_words() -> None:
    assert forgets("", "She lives in Rome", "in old Rome") == pytest.approx(1 / 3)
    assert (forgets("", "", "in Rome"), forgets("", "東京", "東京")) == (1.0, 0.0)
    assert keeps("", "She lives in Rome", "in old Rome") == pytest.approx(2 / 3)
    assert find_reward("rouge") is forgets


@pytest.mark.parametrize("value", [math.nan, math.inf, "many", None])
def test_a_reward_that_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(MetricError, match="the reward mine .*'an answer'"):
        rewarded("mine", lambda *given: value, "q", "an answer", "a")


def short(prompt: str, answer: str, truth: str) -> float:
    return -float(len(answer))


def test_an_installed_package_may_offer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here, group = f"{__name__}:short", rewards.GROUP
    offered = {"short": here, "gone": "no_such_module_here:f"}
    points = [EntryPoint(name, value, group) for name, value in offered.items()]
    monkeypatch.setattr(rewards, "entry_points", lambda group: points)
    assert rewarded("short", find_reward("short"), "q", "four", "a") == -4
    with pytest.raises(OptionError, match="--quark-reward gone: no_such_module_here:f cannot be"):
        find_reward("gone")
    with pytest.raises(OptionError, match="--quark-reward other: known are rouge, gone, short"):
        find_reward("other")
