from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.test_main import call, imported
from tests.conftest import CORPUS, MakeCheckpoint, write_jsonl
from unlearnbench.conditions.quantize.movable import COMMON
from unlearnbench.training.options import TrainOptions


@pytest.mark.parametrize(
    "arguments", [["methods"], ["unlearn", "--help"], ["finetune", "--help"], ["methods", "npo"]]
)
def test_no_heavy_library_is_imported(arguments: list[str]) -> None:
    heavy = ("torch", "transformers", "datasets", "scipy", "accelerate", "numpy")
    assert imported(arguments, heavy) == "[]"


def test_every_training_option_is_on_the_command_line() -> None:
    from unlearnbench.cli.unlearn import finetune, unlearn

    shown = {parameter.name for parameter in [*unlearn.params, *finetune.params]}
    assert set(TrainOptions.model_fields) <= shown


def test_methods_are_listed_with_source_equation_and_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("methods") == 0
    out = capsys.readouterr().out
    for name in ("npo", "klr", "sure", "simnpo", "tv", "whp", "whp_ft", "rmu"):
        assert re.search(rf"^{name} \(", out, re.MULTILINE), name
    assert "arXiv 2404.05868" in out
    assert "--beta 0.1" in out
    assert call("methods", "npo_klr_sure") == 0
    out = capsys.readouterr().out
    assert [line.split(" ")[0] for line in out.splitlines() if line[:1].strip()] == [
        "npo",
        "klr",
        "sure",
    ]


def test_a_config_file_gives_options_and_the_command_line_wins(
    quick: list[str], tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("lr: 3.0e-4\nmax-steps: 2\nseed: 5\n", encoding="utf-8")
    assert call(*quick, "--config", str(config), "--seed", "6") == 0
    options = json.loads((tmp_path / "out/unlearning.json").read_bytes())["options"]
    assert (options["lr"], options["max_steps"], options["seed"]) == (3e-4, 2, 6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lrr: 1\n", "run.yaml:1: no option is called 'lrr'"),
        ("allow_pickle: true\n", "no option is called 'allow_pickle'"),
        ("lr: many\n", "'--lr': 'many' is not a valid float"),
        ("lr: .inf\n", "--lr inf"),
        ("max_length: 1\n", "--max-length 1"),
        ("beta: x\n", "'--beta': 'x' is not a valid float"),
        ("beta: -1\n", "--beta -1.0: use a number above 0"),
        ("- 1\n", "run.yaml:1: expected `key: value` lines"),
    ],
)
def test_a_bad_config_file_is_one_line(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text, encoding="utf-8")
    assert call(*quick, "--method", "npo", "--config", str(config)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lr", "0"], "--lr 0"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "1e308", "--weights-dtype", "bf16"], "--lr 1e+308: use at most 1e+37"),
        (["--lora-rank", "2", "--weight-noise", "1"], "--weight-noise: it moves the weights"),
        (["--batch-size", "4", "--micro-batch-size", "3"], "no multiple"),
        (["--keep-adapter"], "only with --lora-rank"),
        (["--beta", "0.1"], "--beta means nothing to ga"),
        (["--method", "npo", "--beta", "0"], "--beta 0.0: use a number above 0"),
        (["--method", "ga_gdr_sure", "--sure-top", "2"], "--sure-top 2.0"),
        (["--method", "gaa"], "unknown method 'gaa'"),
        (["--method", "ga_gdr"], "give --retain"),
        (["--retrained", "20"], "--retrained is for --eval-tasks"),
        (["--eval-tasks", "demo"], "--retrained is missing"),
        (["--forget", "task:demo_knowmem_r"], "use it with --retain"),
        (["--forget", "task:nothing"], "unknown task"),
        (["--forget", "nothing.jsonl"], "cannot be read"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(
    quick: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert call(*quick, "--max-steps", "1", *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.splitlines()[-1].startswith("unlearnbench: error: ")


@pytest.mark.parametrize("command", ["unlearn", "finetune"])
def test_what_is_missing_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command) == 2
    assert "is missing" in capsys.readouterr().err


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [600_000, 200_000])
def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_finished(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """The weights take 450 kB, the optimizer's state 900 kB."""
    arguments, out = [*quick, "--max-steps", "3", "--save-steps", "2"], tmp_path / "out"
    with files_up_to(size):
        assert call(*arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("unlearnbench: error: a checkpoint cannot be written below")
    assert "--resume" in last
    assert not (out / "unlearning.json").exists()
    assert not (out / "model.safetensors").exists()
    assert call(*arguments, "--resume") == 0
    assert call(*arguments, "--out", str(tmp_path / "whole")) == 0
    ours, theirs = (folder / "model.safetensors" for folder in (out, tmp_path / "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_full_disk_at_the_end_is_one_line_too(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_up_to(200_000):
        assert call(*quick, "--max-steps", "1") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("unlearnbench: error: the checkpoint cannot be written to")
    assert "--resume" in last
    assert not (tmp_path / "out/model.safetensors").exists()


def test_a_loss_that_is_not_finite_is_one_line_and_keeps_the_last_checkpoint(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(*quick, "--max-steps", "30", "--lr", "1e37", "--save-steps", "1")
    last = capsys.readouterr().err.splitlines()[-1]
    found = re.fullmatch(
        r"unlearnbench: error: the \w+ of step (\d+) \(unlearn\) is not finite; training stopped, "
        r"the last good checkpoint is .*/checkpoint-(\d+); use a smaller --lr.*",
        last,
    )
    assert found, last
    kept = load_file(tmp_path / f"out/.training/unlearn/checkpoint-{found[2]}/model.safetensors")
    assert int(found[2]) == int(found[1]) - 1
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())


def test_an_empty_forget_file_is_one_line(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "forget.jsonl").write_text("", encoding="utf-8")
    assert call(*quick) == 2
    error = capsys.readouterr().err
    assert "forget.jsonl has no rows; there is nothing to learn from" in error
    assert error.count("\n") == 1


def test_texts_longer_than_the_context_are_cut_and_that_is_said(
    make_checkpoint: MakeCheckpoint,
    quick: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = str(make_checkpoint("context16", max_position_embeddings=16))
    assert call(*quick, "--model", short, "--max-steps", "1") == 0
    assert "forget: 4 of 4 texts are longer than 16 tokens and were cut" in capsys.readouterr().err
    record = json.loads((tmp_path / "out/unlearning.json").read_bytes())
    assert record["max_length"] == 16
    assert record["sequences"]["forget"] > 4
    assert call(*quick, "--model", short, "--max-length", "17", "--out", str(tmp_path / "b")) == 2
    assert "--max-length 17 is beyond the model's context of 16" in capsys.readouterr().err


def test_what_can_move_is_said_before_the_first_step(
    quick: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*quick, "--weights-dtype", "bf16", "--lr", "1e-6") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("weights in bf16 at --lr 1e-06, 1 step: ")
    for line, precision in zip(lines[1:5], COMMON, strict=True):
        says = r"\S+% can move, \S+ of these can leave their bin; in 1 step, made up: survival "
        assert re.match(f"{precision}: {says}", line)
    assert lines[-1].endswith("1 steps")


@pytest.mark.parametrize(
    ("method", "asked", "says"),
    [
        ("ga", ["--survive", "nf4"], "bnb-nf4: .*; --survive takes the loss there too"),
        ("ga", ["--survive", "nf4"], "rtn-int4: .* in 2 steps, made up without --survive: "),
        ("ga", ["--survive", "nf4"], "rtn-int4: .* by --survive bnb-nf4,rtn-int4 --survive-fo"),
        ("ga", ["--survive", "nf4", "--survive-weight", "0"], "bnb-nf4: .* 2 steps, made up: "),
        ("ga", ["--chunk", "2"], "rtn-int4: .* in 2 steps on the first chunk, made up: "),
        ("ga_gdr_ilu", [], "rtn-int4: (?!.*--survive)"),
    ],
)
def test_what_is_made_up_is_said(
    quick: list[str], capsys: pytest.CaptureFixture[str], method: str, asked: list[str], says: str
) -> None:
    shared = ["--method", method, "--weights-dtype", "bf16", "--lr", "2e-5", "--max-steps", "2"]
    if method == "ga_gdr_ilu":
        forget = quick[quick.index("--forget") + 1]
        shared += ["--retain", forget, "--auxiliary", forget]
    assert call(*quick, *shared, *asked) == 0
    out = capsys.readouterr().out
    assert re.search(f"^{says}", out, re.MULTILINE), out


def test_a_training_that_may_stop_earlier_makes_at_most_so_many_steps(
    quick: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = quick[quick.index("--forget") + 1]
    words = ["--stop-el", "2", "--unseen", unseen, "--max-steps", "2", "--chunk", "4"]
    assert call(*quick, *words) == 0
    assert "at --lr 1e-05, at most 2 steps on the first chunk: " in capsys.readouterr().out


def test_what_the_target_was_made_from_is_no_adapters_base(
    quick: list[str], tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    base = make_checkpoint("base", seed=1)
    more = tmp_path / "more.jsonl"
    write_jsonl(more, [{"text": text} for text in CORPUS[4:8]])
    words = ["--method", "kga", "--base", str(base), "--unseen", str(more), "--retain", str(more)]
    assert call(*quick, *words, "--max-steps", "1", "--specialist-epochs", "1") == 0
    record = json.loads((tmp_path / "out/unlearning.json").read_bytes())
    assert record["base"]["path"] == str(base)
    assert record["target"]["path"] != str(base)
