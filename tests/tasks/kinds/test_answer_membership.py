"""PrivLeak of answers: what is asked, what a record holds, and where its rows come from."""

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
from unlearnbench.errors import DataError, MetricError
from unlearnbench.requests import Score, Scored
from unlearnbench.results import Settings
from unlearnbench.tasks.kinds.answer_membership import TASK, AnswerMembershipTask
from unlearnbench.tasks.spec import Sample, SplitRows

FILE: dict[str, Any] = {
    "task": "toy_membership",
    "tag": ["toys"],
    "description": "Toy.",
    "dataset_path": "toy/qa",
    "dataset_name": "seen",
    "output_type": "answer_membership",
    "member_split": "in",
    "nonmember_split": "out",
    "places": {"in": ["seen", "train"], "out": ["unseen", "train"]},
    "doc_to_text": "Q: {{q}}",
    "doc_to_target": "{{a}}",
    "attack": "Min-40%",
    "metric": "privleak",
    "want": "zero",
    "splits": {"in": {"rows": 3}, "out": {"rows": 3}},
    "metadata": {"version": 1.0},
}
SPEC: AnswerMembershipTask = TASK.model_validate(FILE)
SAMPLE = Sample("in/0", "in", "Q: who?", "Ada Lovelace", ("Ada Lovelace",), " ")
SETTINGS = Settings(protocol="muse", dtype="fp32", device="cpu", seed=0, ppl_lower=False)


def scored(logprobs: list[float]) -> Scored:
    values = np.array(logprobs)
    return Scored("x", values, np.linspace(-2.0, -4.0, len(values)), np.full(len(values), 0.5))


def test_the_end_token_counts_in_the_loss_and_not_in_min_k() -> None:
    """As open-unlearning has both; 0.4 of five tokens are two."""
    ((asked,),) = SPEC.requests(SAMPLE, SETTINGS)
    assert asked == Score("toy_membership:in/0", " Ada Lovelace", "Q: who?", end=True)
    found = SPEC.record(SAMPLE, [scored([-1.0, -5.0, -3.0, -0.5, -0.5, -20.0])])
    assert (found.split, found.n_tokens) == ("in", 6)
    assert found.scores["PPL"] == pytest.approx(30 / 6)
    assert found.scores["PPL/zlib"] == pytest.approx(5 / len(zlib.compress(b"Ada Lovelace")))
    assert found.scores["Min-40%"] == pytest.approx((5 + 3) / 2)
    assert found.scores["Min-40%++"] == pytest.approx((2.6 + 0.2) / 0.5 / 2)
    with pytest.raises(MetricError, match="too short for Min-40%"):
        SPEC.record(SAMPLE, [scored([-1.0, -1.0, -20.0])])
    with pytest.raises(MetricError, match="not finite"):
        SPEC.record(SAMPLE, [scored([-1.0, -1.0, -1.0, math.nan])])


def test_an_answer_that_is_missing_is_refused() -> None:
    rows = {s: SplitRows(s, ({"q": "who?", "a": ""},), "here", "0") for s in ("in", "out")}
    with pytest.raises(DataError, match="in/0: the answer is empty"):
        SPEC.make_samples(rows, None)


def test_groups_of_two_subsets_and_their_auc(tmp_path: Path) -> None:
    """Two of three members are likelier than every other answer: AUC 1/9."""
    home = tmp_path / "data" / "toy" / "qa"
    loss = {"seen": [0.1, 0.2, 2.5], "unseen": [2.0, 3.0, 4.0]}
    logprobs: dict[str, list[float]] = {}
    for subset, each in loss.items():
        rows = [{"q": f"{subset} {i}?", "a": f"a{i}"} for i in range(3)]
        write_jsonl(home / subset / "train.jsonl", rows)
        logprobs |= {f"Q: {subset} {i}? a{i}": [-p] * 5 for i, p in enumerate(each)}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy_membership.yaml").write_text(json.dumps(FILE))
    (run,) = evaluate(
        ScriptedModel(logprobs=logprobs),
        "toy_membership",
        data_dir=tmp_path / "data",
        include_path=[tmp_path / "tasks"],
        output=tmp_path / "out",
    )
    result = run.tasks["toy_membership"]
    assert result.auc == pytest.approx(1 / 9)
    assert result.value is None, "without a retrained model there is no PrivLeak"
    assert {d.split for d in result.data} == {"in", "out"}
