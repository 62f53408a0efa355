"""Checkpoints one after another: their order, their scores, and what is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_main import call
from tests.toy_runs import Bench, Skill, few_draws
from unlearnbench.runs.folder import read_run


@pytest.fixture(autouse=True)
def _few_draws() -> Iterator[None]:
    with few_draws():
        yield


def test_a_curve_over_checkpoints_in_the_order_of_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, n=12)
    for i, forget in ((10, 0.1), (2, 0.4), (1, 0.8)):
        bench.model(f"request-{i}", none=Skill.of(forget, 0.9 - i / 20, 1.0, n=12))
    bench.model("retrained", none=Skill.of(0.1, 0.9, 0.1, n=12))
    first, second, last = (next(bench.out.glob(f"request-{i}-*")) for i in (1, 2, 10))
    bench.out.rename(tmp_path / "all")
    steps, table = tmp_path / "steps", tmp_path / "curve.json"
    steps.mkdir()
    for folder in (first, second, last):
        (tmp_path / "all" / folder.name).rename(steps / folder.name)
    assert call("curve", str(steps), "--json", str(table)) == 0
    said = capsys.readouterr().out
    assert "made_privleak: give --retrained RUN" in said
    by_task = {row["task"]: row for row in json.loads(table.read_text())}
    assert set(by_task) == {"made_knowmem_f", "made_knowmem_r"}
    kept = by_task["made_knowmem_r"]
    assert [point["entry"] for point in kept["points"]] == ["request-1", "request-2", "request-10"]
    runs = [read_run(steps / f.name / "none").tasks["made_knowmem_r"] for f in (first, last)]
    values = [run.value for run in runs]
    assert [kept["points"][i]["value"] for i in (0, 2)] == pytest.approx(values)
    assert kept["points"][0]["ci"] is not None
    scores = [
        [
            json.loads(line)["score"]
            for line in (steps / f.name / "none" / "samples" / "made_knowmem_r.jsonl")
            .read_text()
            .splitlines()
        ]
        for f in (first, last)
    ]
    assert kept["change"]["value"] == pytest.approx(100 * (np.mean(scores[1]) - np.mean(scores[0])))
    assert kept["change"]["ci"][0] < kept["change"]["value"] < kept["change"]["ci"][1]
    # The order given wins over names; with the retrained model PrivLeak has its curve.
    (retrained,) = (tmp_path / "all").glob("retrained-*")
    line = [str(steps / last.name), str(steps / first.name), "--retrained", str(retrained)]
    assert call("curve", *line, "--json", str(table)) == 0
    rows = {row["task"]: row for row in json.loads(table.read_text())}
    assert [point["entry"] for point in rows["made_privleak"]["points"]] == [
        "request-10",
        "request-1",
    ]
    assert rows["made_privleak"]["points"][0]["value"] < 0
    assert call("curve", str(steps / first.name)) == 2
    assert "two checkpoints or more" in capsys.readouterr().err
    line = [str(steps), "--retrained", str(steps)]
    assert call("curve", *line) == 2
    assert "holds several checkpoints" in capsys.readouterr().err
