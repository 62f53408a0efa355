from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.architectures import make_kind
from unlearnbench.models.batches import (
    Budget,
    generation_budget,
    padded,
    run_in_batches,
    texts_budget,
)
from unlearnbench.requests import Score, Scored


def lengths(budget: Budget, sizes: list[int]) -> list[list[int]]:
    found = []

    def run(batch: Any) -> list[Scored]:
        found.append([len(ids) for _, ids in batch])
        return []

    items = [(Score(str(i), ""), [0] * n) for i, n in enumerate(sizes)]
    assert not [*run_in_batches(items, run, budget, (), "none", False)]
    return found


def test_batches_keep_to_their_budget_and_grow() -> None:
    assert lengths(Budget(10, 10, padded), [4, 12, 5, 2, 2, 1]) == [[12], [5, 4], [2, 2, 1]]
    assert lengths(Budget(2, 8), [2] * 8) == [[2], [2, 2], [2, 2, 2, 2], [2]]
    assert lengths(texts_budget(2), [1, 2, 3]) == [[3, 2], [1]]


def test_a_budget_that_was_too_large_stays_halved() -> None:
    budget = Budget(8, 64)
    budget.shrink([4, 4])
    budget.grow()
    assert (budget.tokens, budget.rows) == (4, 1)


def test_the_budget_on_a_gpu_does_not_depend_on_what_torch_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task after others is to form the batches that it forms first in a run that goes on."""

    def found(free: int, reserved: int) -> Budget:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 2**34))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**30)
        return generation_budget(make_kind("llama"), "cuda:0")

    fresh = found(2**33, 2**30)
    assert found(2**31, 2**30 + 2**33 - 2**31) == fresh != found(2**31, 2**30)
