"""A method, a mask and a method of three models, each by one file in a folder of its own: nothing
else of the package knows of them, and the command line shows and checks their options.
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest
from safetensors.torch import load_file

from tests.cli.test_main import call
from tests.conftest import CORPUS, Toy, write_jsonl
from unlearnbench import methods

TOY = """
    from dataclasses import dataclass
    from typing import Literal
    from unlearnbench.methods.base import About
    from unlearnbench.methods.options import option
    from unlearnbench.methods.rows import token_logprobs

    @dataclass(frozen=True)
    class Options:
        toy_strength: float = option(2.0, "How strongly it forgets.", above=0, most=9)
        toy_way: Literal["up", "down"] = option("up", "Which way it goes.")

    ABOUT = About("toy", "A toy", "L = s x mean log p", "nobody", Options)

    def loss(part, options):
        sign = 1 if options.toy_way == "up" else -1
        logprobs = token_logprobs(part.logits, part.labels).sum()
        return sign * options.toy_strength * logprobs / part.all_tokens
"""
BLOCK = """
    from dataclasses import dataclass
    import torch
    from unlearnbench.methods.base import About, inner_linears
    from unlearnbench.methods.options import option

    @dataclass(frozen=True)
    class Options:
        block: int = option(0, "The decoder block that learns.", least=0)

    ABOUT = About("block", "Whole modules of one block", "", "nobody", Options)

    def choose(context, options):
        return {
            f"{name}.weight": torch.full((len(layer.weight),), f"layers.{options.block}." in name)
            for name, layer in inner_linears(context.model).items()
        }
"""
THREE = """
    from unlearnbench.methods.base import About, Ensemble

    ABOUT = About("three", "Three models", "", "nobody")

    def combine(logits, numbers):
        return sum(logits) * numbers["share"]

    def train(context, options):
        models = {f"part{n}": context.copy_of_target() for n in range(3)}
        return Ensemble(models, {"share": 1 / 3})
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the three files, which the package looks into too."""
    root = tmp_path / "more"
    for kind, name, text in (
        ("forget", "toy", TOY),
        ("masks", "block", BLOCK),
        ("whole", "three", THREE),
    ):
        (root / kind).mkdir(parents=True)
        (root / kind / f"{name}.py").write_text(dedent(text), encoding="utf-8")
    monkeypatch.setattr(methods, "FOLDERS", [*methods.FOLDERS, root])
    return root


def test_the_command_line_shows_and_lists_what_the_file_says(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("unlearn", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--toy-strength FLOAT How strongly it forgets. [toy 2.0]" in shown
    assert "--toy-way [up|down] Which way it goes. [toy up]" in shown
    assert "--block INTEGER" in shown
    assert call("methods") == 0
    out = capsys.readouterr().out
    assert "toy (forget): A toy" in out
    assert "block (mask): Whole modules of one block" in out
    assert call("methods", "--json") == 0
    assert "toy_gdr_block" in json.loads(capsys.readouterr().out)["methods"]
    assert call("methods", "toy_klr_block") == 0
    assert "options: --toy-strength 2.0, --toy-way up" in capsys.readouterr().out


def test_a_method_of_both_files_trains_and_its_record_has_its_numbers(
    folder: Path, quick: list[str], tiny: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "retain.jsonl", [{"text": t} for t in CORPUS[20:24]])
    config = tmp_path / "run.yaml"
    config.write_text("toy_strength: 3\nblock: 1\n", encoding="utf-8")
    more = ["--method", "toy_gdr_block", "--retain", str(tmp_path / "retain.jsonl")]
    more += ["--config", str(config), "--toy-way", "down", "--max-steps", "1", "--lr", "1e-3"]
    assert call(*quick, *more) == 0
    out = tmp_path / "out"
    record = json.loads((out / "unlearning.json").read_bytes())
    assert record["knobs"] == {
        "block": 1,
        "retain_weight": 1.0,
        "toy_strength": 3.0,
        "toy_way": "down",
    }
    before, after = load_file(tiny / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {n for n in before if "layers.1." in n and "proj" in n}, "a whole block"
    assert record["mask"]["chosen_weights"] * 2 == record["mask"]["weights"]
    assert len(load_file(out / "masks/block_mask.safetensors")) == 14


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--toy-strength", "10"], "--toy-strength 10.0: use a number above 0, at most 9"),
        (["--toy-way", "out"], "--toy-way"),
        (["--beta", "1"], "--beta means nothing to toy; its own options: toy-strength, toy-way"),
    ],
)
def test_its_options_are_checked(
    folder: Path, quick: list[str], capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert call(*quick, "--method", "toy", *more) == 2
    assert says in capsys.readouterr().err


def test_an_output_of_three_models_is_written_and_answers_as_one(
    folder: Path, quick: list[str], tiny: Path, tmp_path: Path, toy: Toy
) -> None:
    assert call(*quick, "--method", "three") == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        *("ensemble.json", "part0", "part1", "part2", "unlearning.json")
    ]
    assert not (out / "config.json").exists(), "nothing may take one of them for the whole"
    for model in (out, tiny):  # the mean of three times the target's logits
        assert call("--model", str(model), "--tasks", "toy", *toy.arguments) == 0
    answers = [
        [json.loads(line)["output"] for line in file.read_bytes().splitlines()]
        for file in sorted(toy.out.glob("*/none/samples/toy_verbmem.jsonl"))
    ]
    assert len(answers) == 2
    assert answers[0] == answers[1]


def test_an_output_of_a_method_that_is_not_known_is_refused(
    folder: Path,
    quick: list[str],
    tmp_path: Path,
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(*quick, "--method", "three") == 0
    monkeypatch.setattr(methods, "FOLDERS", methods.FOLDERS[:1])
    assert call("--model", str(tmp_path / "out"), "--tasks", "toy", *toy.arguments) == 2
    assert "as the method 'three' says, which is not known here" in capsys.readouterr().err
