"""The main job on real MUSE-News rows: a tiny model by default, SmolLM2-135M in the slow tests.

The references are written here: one prompt and one token at a time, through transformers alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from tests.conftest import MakeCheckpoint
from unlearnbench.cli import main

TASKS = ("news_knowmem_f", "news_knowmem_r", "news_privleak", "news_verbmem")
PRECISIONS = ("none", "bnb-int8", "bnb-fp4")
SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schema"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Runs:
    """What one command wrote, and what it printed."""

    blank, more = "", ("--answer-blank", "auto")  # both tokenizers join a blank and its word

    def __init__(self, checkpoint: Path, data: Path, out: Path, limit: int) -> None:
        self.checkpoint, self.data, self.out, self.limit = checkpoint, data, out, limit

    def evaluate(self, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setenv("UNLEARNBENCH_DATA", str(self.data))
        command = ["--model", str(self.checkpoint), "--quant", "none,8bit,4bit", "--tasks", "news"]
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--limit", str(self.limit), "--output", str(self.out), *self.more])
        return int(stopped.value.code or 0)

    @property
    def model_folder(self) -> Path:
        (folder,) = self.out.iterdir()
        return folder

    def records(self, precision: str, task: str) -> list[dict[str, Any]]:
        return read_lines(self.model_folder / precision / "samples" / f"{task}.jsonl")

    def rows(self, subset: str, split: str) -> list[dict[str, Any]]:
        base = self.data / "muse-bench" / "MUSE-News" / subset
        return read_lines(base / f"{split}.jsonl")


class Plain:
    """One prompt at a time, greedy, and one token at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(self, prompt: str, new: int) -> str:
        inputs = self.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = self.model.generate(
            **inputs, max_new_tokens=new, do_sample=False, pad_token_id=self.tokenizer.eos_token_id
        )
        ids = output[0, inputs.input_ids.shape[1] :]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def cut(self, text: str, tokens: int) -> str:
        ids = self.tokenizer(text).input_ids[:tokens]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def logprobs(self, text: str) -> list[float]:
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = self.model(ids).logits[0]
        return [
            float(torch.log_softmax(logits[t - 1], dim=0)[ids[0, t]])
            for t in range(1, ids.shape[1])
        ]


def rouge(target: str, output: str) -> float:
    return float(RougeScorer(["rougeL"]).score(target, output)["rougeL"].fmeasure)


def shots(rows: list[dict[str, Any]]) -> str:
    return "".join(f"Question: {r['question']}\nAnswer: {r['answer']}\n\n" for r in rows)


def cut_at_stop(text: str) -> str:
    for stop in ("\n\n", "\nQuestion", "Question:"):
        text = text.split(stop)[0]
    return text


def check_three_complete_runs(runs: Runs, printed: str) -> None:
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert [line.split()[1] for line in lines] == ["condition", *PRECISIONS]
    schema = json.loads((SCHEMAS / "run.schema.json").read_text(encoding="utf-8"))
    for precision in PRECISIONS:
        folder = runs.model_folder / precision
        assert str(folder) in printed
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        jsonschema.validate(run, schema)
        assert sorted(run["tasks"]) == sorted(TASKS)
        assert all(task["n"] == runs.limit for task in run["tasks"].values())
        assert run["condition"]["name"] == precision
        assert all(len(runs.records(precision, task)) >= runs.limit for task in TASKS)
    assert runs.model_folder.name.startswith(f"{runs.checkpoint.name}-")


def check_against_plain(runs: Runs, plain: Plain) -> None:
    verbmem = runs.rows("verbmem", "forget")[: runs.limit]
    for row, record in zip(verbmem, runs.records("none", "news_verbmem"), strict=True):
        assert record["prompt"] == row["prompt"]
        assert record["output"] == plain.generate(row["prompt"], 128)
        assert record["target"] == plain.cut(row["gt"], 128)
        assert record["score"] == rouge(record["target"], record["output"])
    for side, task in (("forget", "news_knowmem_f"), ("retain", "news_knowmem_r")):
        prefix = shots(runs.rows("knowmem", f"{side}_qa_icl"))
        questions = runs.rows("knowmem", f"{side}_qa")[: runs.limit]
        for row, record in zip(questions, runs.records("none", task), strict=True):
            prompt = f"{prefix}Question: {row['question']}\nAnswer:{runs.blank}"
            assert record["prompt"] == prompt
            assert record["output"] == cut_at_stop(plain.generate(prompt, 32))
            assert record["score"] == rouge(row["answer"], record["output"])
    records = {r["id"]: r for r in runs.records("none", "news_privleak")}
    for split in ("forget", "holdout"):
        for i, row in enumerate(runs.rows("privleak", split)[: runs.limit]):
            values = plain.logprobs(row["text"])
            record = records[f"{split}/{i}"]
            assert record["n_tokens"] == len(values)
            for percent in (5, 10, 20, 30, 40, 50, 60):
                k = int(percent / 100 * len(values))
                expected = -math.fsum(sorted(values)[:k]) / k
                assert record["scores"][f"Min-{percent}%"] == pytest.approx(expected, abs=1e-4)
            loss = -math.fsum(values) / len(values)
            assert record["scores"]["PPL"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("place", ["prompt", "auto"])
def test_tiny_model(
    place: str,
    muse_data: Path,
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = Runs(make_checkpoint("tiny-news"), muse_data, tmp_path / "out", limit=2)
    runs.blank, runs.more = " " if place == "prompt" else "", ("--answer-blank", place)
    assert runs.evaluate(monkeypatch) == 0
    check_three_complete_runs(runs, capsys.readouterr().out)
    check_against_plain(runs, Plain(runs.checkpoint))


@pytest.mark.slow
@pytest.mark.ci
def test_smollm2(
    muse_data: Path,
    smollm2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = Runs(smollm2, muse_data, tmp_path / "out", limit=2)
    assert runs.evaluate(monkeypatch) == 0
    check_three_complete_runs(runs, capsys.readouterr().out)
    check_against_plain(runs, Plain(runs.checkpoint))
