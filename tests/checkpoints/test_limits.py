"""Numbers at the border of what is refused; what lies far beyond it: tests/hostile."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch
from torch import nn

from unlearnbench.checkpoints.limits import (
    check_config,
    check_numbers,
    check_patterns,
    check_size,
    walk_json,
)
from unlearnbench.errors import CheckpointError


def test_a_walk_sees_every_part_with_its_key() -> None:
    found = list(walk_json({"a": [1, {"b": None}], "c": {}}))
    leaves = [(key, part) for key, part in found if not isinstance(part, (dict, list))]
    assert sorted(leaves, key=str) == [("a", 1), ("b", None)]
    assert ("c", {}) in found


def test_a_walk_does_not_recurse() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert sum(1 for _ in walk_json(deep)) == 100_001


@pytest.mark.parametrize(
    ("key", "most"),
    [("num_experts", 2**16), ("n_layer", 2**16), ("hidden_size", 2**24), ("vocab_size", 2**24)],
)
def test_sizes_up_to_a_limit_are_taken(key: str, most: int) -> None:
    check_numbers({key: most, "nested": {key: -most}}, "it")
    with pytest.raises(CheckpointError, match=f"it has {key} {most + 1}, and more than"):
        check_numbers({"nested": [{key: most + 1}]}, "it")


def test_numbers_of_which_nothing_is_made_are_free() -> None:
    check_numbers({"rope_theta": 10**12, "max_position_embeddings": 10**12, "flag": True}, "it")


@pytest.mark.parametrize(("layers", "fits"), [(1, True), (21, True), (22, False), (0, False)])
def test_no_more_layers_than_tensors(layers: int, fits: bool) -> None:
    for config in ({"num_hidden_layers": layers}, {"text_config": {"n_layer": layers}}):
        if fits:
            check_config(config, 21, "it")
            continue
        with pytest.raises(CheckpointError, match="and 21 tensors are stored"):
            check_config(config, 21, "it")


@pytest.mark.parametrize(
    ("stored", "exact", "said"),
    [
        (5_000_000, True, None),
        (9_999_999, True, None),
        (20_000_001, True, "most would be left out"),
        (20_000_001, False, None),
        (4_000_000, True, "refused before memory is taken"),
    ],
)
def test_a_model_is_held_against_what_is_stored(stored: int, exact: bool, said: str | None) -> None:
    with torch.device("meta"):
        model: Any = nn.Linear(10_000, 1000, bias=False)
    if said is None:
        check_size(model, "it", stored, 4 * stored, exact)
        return
    with pytest.raises(CheckpointError, match=said):
        check_size(model, "it", stored, 4 * stored, exact)


def test_tables_beside_the_weights_have_a_limit() -> None:
    with torch.device("meta"):
        model: Any = nn.Linear(10, 10)
        model.register_buffer("mask", torch.empty(2**28, dtype=torch.uint8))
        check_size(model, "it", 110, 440, exact=True)
        model.register_buffer("more", torch.empty(2**28, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match=r"tables of 0\.5 GiB"):
        check_size(model, "it", 110, 440, exact=True)


NAMES = ["model.layers.0.self_attn.q_proj", "lm_head"]


def test_plain_names_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(subprocess, "run", never)
    check_patterns([None, ["q_proj", "model.layers.0"], {"lm_head": 4}, 7], NAMES, "it")


@pytest.mark.parametrize(
    "facts",
    [
        ["re:.*q_proj"],
        {"+:.*self_attn.*": {}},
        {"targets": [{"-:lm_head|q_proj": 1}]},
        "(q|k)_proj",
    ],
)
def test_patterns_that_end_are_taken(facts: Any) -> None:
    check_patterns(facts, NAMES, "it")


@pytest.mark.parametrize("facts", [["(*"], {"re:[z-a]+": 1}])
def test_a_pattern_that_is_none_is_refused(facts: Any) -> None:
    with pytest.raises(CheckpointError, match="it: .* is no usable regular expression"):
        check_patterns(facts, NAMES, "it")


def test_a_pattern_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearnbench.checkpoints.limits._SECONDS", 0.3)
    with pytest.raises(CheckpointError, match=r"takes longer than 0\.3 s over the model's module"):
        check_patterns({"([a-z._0-9]+)+!": 1}, NAMES, "it")
