"""LLMU: its three terms, and the methods that it becomes where a weight is 0."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cli.test_main import call
from tests.conftest import write_jsonl
from tests.methods.forget.helpers import drawn, gradient, loss, part
from tests.training.helpers import go, same, weights
from unlearnbench.errors import OptionError
from unlearnbench.methods import find_method, method_names
from unlearnbench.methods.rows import Part
from unlearnbench.training.job import Job, unlearn


def both() -> Part:
    return replace(part(drawn(1)), alternatives=part(drawn(2), seed=5))


def test_it_is_the_sum_of_its_terms() -> None:
    given, weights = both(), {"ascent_weight": 0.7, "mismatch_weight": 1.9}
    found = loss("llmu", given, **weights).item()
    parts = 0.7 * loss("ga", given) + 1.9 * loss("mismatch", given)
    assert found == pytest.approx(parts.item(), abs=1e-12)
    alone = gradient("llmu", given, **weights)
    assert torch.allclose(alone, 0.7 * gradient("ga", given), rtol=0, atol=1e-15)


def test_its_name_stands_for_its_retain_term_too() -> None:
    assert [piece.about.name for piece in find_method("llmu_sure").pieces] == [
        "llmu",
        "klr",
        "sure",
    ]
    assert not {"llmu_klr", "llmu_gdr"} & set(method_names())
    assert {"mismatch_klr", "mismatch_gdr_sure"} <= set(method_names())
    assert find_method("llmu").with_options({"retain_weight": 3.0}).pieces[1].options == (
        find_method("ga_klr").with_options({"retain_weight": 3.0}).pieces[1].options
    )


def test_without_other_answers_it_is_ascent_with_kl_to_the_bit(job: Job, tmp_path: Path) -> None:
    knobs = {"ascent_weight": 1.0, "mismatch_weight": 0.0, "retain_weight": 2.0}
    ours = unlearn(replace(job, out=tmp_path / "llmu"), "llmu", knobs)
    theirs = go(job, tmp_path / "ga", "ga_klr", knobs={"retain_weight": 2.0})
    assert [r.loss for r in ours.losses] == [r.loss for r in theirs.losses]
    assert same(weights(tmp_path / "llmu"), weights(tmp_path / "ga"))


def test_it_trains_from_the_command_line_with_k_answers_beside_each_row(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "forget.jsonl", [{"question": "Who?", "answer": "Bo"}] * 4)
    rows = [{"question": f"Where {n}?", "answer": f"at {n}"} for n in range(3)]
    write_jsonl(tmp_path / "retain.jsonl", rows)
    more = ["--method", "llmu", "--retain", str(tmp_path / "retain.jsonl"), "--max-steps", "1"]
    assert call(*quick, *more) == 2
    assert "llmu reads other answers to what is forgotten; give" in capsys.readouterr().err
    more += ["--alternative", "retain"]
    assert call(*quick, *more) == 2
    assert "llmu reads 5 other answers beside each text, and a forget text has fewer" in (
        capsys.readouterr().err
    )
    assert call(*quick, *more, "--mismatches", "3") == 0
    record = json.loads((tmp_path / "out/unlearning.json").read_bytes())
    assert record["knobs"]["mismatches"] == 3
    assert record["losses"][0]["retain"] == pytest.approx(0.0, abs=1e-6), "KL at the target"
    with pytest.raises(OptionError, match="--mismatches 0: use a whole number of at least 1"):
        find_method("llmu").with_options({"mismatches": 0})
