from __future__ import annotations

from itertools import product

import pytest

from unlearnbench.errors import MetricError
from unlearnbench.metrics.memorized import Memorized, memorized


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_every_pattern_against_the_definition(n: int) -> None:
    """ES = 1 - k / N, k the smallest from which all match, N - 1 at the most; EM the share."""
    for matches in product([False, True], repeat=n):
        k = min((k for k in range(n) if all(matches[k:])), default=n - 1)
        found = memorized(matches)
        assert found.strength == pytest.approx(1 - k / n)
        assert found.exact == pytest.approx(sum(matches) / n)
        assert found.on_floor == (found.strength == pytest.approx(1 / n))
        assert found == Memorized(n, sum(matches), k)


def test_nothing_known_is_on_the_floor_and_not_at_0() -> None:
    assert memorized([False] * 8).strength == pytest.approx(1 / 8)
    assert memorized([False] * 8).on_floor
    assert not memorized([False] * 6 + [True] * 2).on_floor


def test_no_token_raises() -> None:
    with pytest.raises(MetricError, match="0 tokens"):
        memorized([])
    with pytest.raises(MetricError):
        Memorized(4, 5, 0)
