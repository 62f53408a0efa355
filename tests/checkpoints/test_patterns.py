from __future__ import annotations

import subprocess
from typing import Any

import pytest

from unlearnbench.checkpoints.patterns import check_patterns
from unlearnbench.errors import CheckpointError

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
    monkeypatch.setattr("unlearnbench.checkpoints.patterns._SECONDS", 0.3)
    with pytest.raises(CheckpointError, match=r"takes longer than 0\.3 s over the model's module"):
        check_patterns({"([a-z._0-9]+)+!": 1}, NAMES, "it")
