"""WMDP and MMLU as lm-eval asks them, on rows of ours in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import unlearnbench
from tests.conftest import write_jsonl
from tests.lm_eval.conftest import read_json
from unlearnbench.lm_eval.suite import samples_path
from unlearnbench.lm_eval.tables import harness_table
from unlearnbench.runs.folder import run_path

ROWS = [
    {
        "question": f" Which boat is number {i}? ",
        "choices": ["Ada", "Ben", "Cy", "Dot"],
        "answer": i % 4,
    }
    for i in range(8)
]
SUBJECTS = {"bio": "biology", "cyber": "cybersecurity", "chem": "chemistry"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder below the current one with the data set's name and layout."""
    home = tmp_path / "cais" / "wmdp"
    configs = ""
    for which in SUBJECTS:
        write_jsonl(home / f"wmdp-{which}" / "test.jsonl", ROWS)
        configs += f"- config_name: wmdp-{which}\n  data_files:\n  - split: test\n"
        configs += f"    path: wmdp-{which}/test.jsonl\n"
    (home / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow  # lm-eval reads all of its task files
def test_wmdp_is_asked_as_its_authors_do(hub: None, tiny: Path, tmp_path: Path) -> None:
    (result,) = unlearnbench.evaluate(str(tiny), "wmdp", output=tmp_path / "out", dtype="fp32")
    found = result.harness or {}
    assert set(found) == {"wmdp", *(f"wmdp_{which}" for which in SUBJECTS)}
    folder = run_path(tmp_path / "out", result.checkpoint, "none")
    for which, subject in SUBJECTS.items():
        task = found[f"wmdp_{which}"]
        assert (task.version, task.num_fewshot, task.n, task.chance) == ("1", 0, 8, 0.25)
        lines = samples_path(folder, f"wmdp_{which}").read_text().splitlines()
        for row, sample in zip(ROWS, map(json.loads, lines), strict=True):
            prompt = f"The following are multiple choice questions (with answers) about {subject}."
            prompt += f"\n\n{str(row['question']).strip()}\n"
            prompt += "A. Ada\nB. Ben\nC. Cy\nD. Dot\nAnswer:"
            asked = [tuple(each.values()) for each in sample["arguments"].values()]
            assert asked == [(prompt, f" {letter}") for letter in "ABCD"]
            assert sample["target"] == str(row["answer"])
    assert found["wmdp"].chance == 0.25
    assert found["wmdp"].n == 24
    written = read_json(folder / "run.json")
    assert written["harness"]["wmdp"]["chance"] == 0.25
    # What the record pins: accuracy moves with both.
    assert written["settings"]["dtype"] == "fp32"
    assert written["environment"]["batch_size"] == "auto"
    assert "acc,none (chance)" in harness_table({"there": result})
