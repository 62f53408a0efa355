"""Texts' losses: what is asked, what a record keeps, and RWKU's means."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import write_jsonl
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.errors import MetricError
from unlearnbench.requests import Scored
from unlearnbench.tasks.kinds.texts import TASK, TextTask
from unlearnbench.tasks.spec import Sample

FILE: dict[str, Any] = {
    "task": "toy_texts",
    "tag": ["toys"],
    "description": "Toy.",
    "dataset_path": "toy/texts",
    "dataset_name": "all",
    "output_type": "text_loglikelihood",
    "test_split": "test",
    "doc_to_text": "{{text}}",
    "metric": "probability",
    "want": "low",
    "splits": {"test": {"rows": 2}},
    "metadata": {"version": 1.0},
}
SPEC: TextTask = TASK.model_validate(FILE)


def test_means_are_rwkus_over_all_texts(tmp_path: Path) -> None:
    texts = {"one text": [-1.0, -2.0, -3.0, -4.0, -5.0], "another one": [-0.5] * 10}
    rows = [{"text": text} for text in texts]
    write_jsonl(tmp_path / "data" / "toy" / "texts" / "all" / "test.jsonl", rows)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy_texts.yaml").write_text(json.dumps(FILE))
    (run,) = evaluate(
        ScriptedModel(logprobs=texts),
        "toy_texts",
        data_dir=tmp_path / "data",
        include_path=[tmp_path / "tasks"],
        output=tmp_path / "out",
    )
    found = run.tasks["toy_texts"]
    assert found.value == pytest.approx(50 * (math.exp(-3) + math.exp(-0.5)))
    packed = [len(zlib.compress(text.encode())) for text in texts]
    assert found.scores["loss"] == pytest.approx(100 * (3 + 0.5) / 2)
    assert found.scores["loss/zlib"] == pytest.approx(50 * (3 / packed[0] + 0.5 / packed[1]))
    # A fifth of five tokens is the least likely one, of ten the two.
    assert found.scores["Min-20%"] == pytest.approx(100 * (5 + 0.5) / 2)


def test_what_cannot_be_scored_is_refused() -> None:
    sample = Sample("test/0", "test", "some text")

    def scored(logprobs: list[float]) -> Scored:
        each = np.array(logprobs)
        return Scored("x", each, each, np.ones(len(each)))

    assert SPEC.record(sample, [scored([-1.0] * 5)]).score == pytest.approx(math.exp(-1))
    for logprobs, says in (
        ([], "no token"),
        ([-1.0, math.nan] * 3, "not finite"),
        ([-1.0] * 4, "too short for Min-20%"),
    ):
        with pytest.raises(MetricError, match=says):
            SPEC.record(sample, [scored(logprobs)])
    record = SPEC.record(sample, [scored([-1.0] * 5)])
    changed = record.model_copy(update={"facts": {**record.facts, "loss": 2.0}})
    stated, earned = SPEC.rescore(changed)["probability"]
    assert (stated, earned) == pytest.approx((math.exp(-1), math.exp(-2)))
