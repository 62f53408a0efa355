from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import unlearnbench
from tests.conftest import MakeCheckpoint, Toy, write_jsonl
from unlearnbench.cli import main


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )


def imported(arguments: list[str], heavy: tuple[str, ...]) -> str:
    """Which of the heavy libraries a command line imports, as a printed list."""
    code = f"""
import sys
from unlearnbench.cli import main
try:
    main({arguments!r})
except SystemExit as stopped:
    assert stopped.code == 0, stopped.code
print([m for m in {heavy!r} if m in sys.modules])
"""
    return python(code).stdout.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--help"], ["tasks"], ["tasks", "--help"]])
def test_help_and_tasks_import_no_heavy_library(arguments: list[str]) -> None:
    heavy = ("torch", "transformers", "datasets", "scipy", "sklearn", "bitsandbytes", "numpy")
    assert imported(arguments, heavy) == "[]"


def test_importing_the_package_is_light() -> None:
    code = "import sys, unlearnbench; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    assert python(code).stdout.split() == ["False", "False"]


def test_other_libraries_lines_stay_out_of_ours() -> None:
    code = """
import logging
from unlearnbench.util.process import quiet_imports
quiet_imports()
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == done.stdout == ""


# What a run says on stderr: how a condition is met, a bar for each task, and where its samples are.
_OURS = re.compile(r"\S+ on cpu, compute dtype .*|toy_verbmem( \[\S+\])?: .*|")


@pytest.mark.slow  # GPTQ and AWQ take a minute
def test_no_library_of_any_precision_speaks_among_our_lines(
    make_checkpoint: MakeCheckpoint, toy: Toy, tmp_path: Path
) -> None:
    conditions = "none,4bit,8bit,rtn-int4,gguf-q4_0,hqq-int4-g64,quanto-int8,torchao-int8"
    words = ["--model", str(make_checkpoint(num_key_value_heads=4)), "--tasks", "toy_verbmem"]
    words += ["--quant", f"{conditions},gptq-int4-g64,awq-int4-g64", "--limit", "1"]
    words += ["--data-dir", str(toy.data), "--include-path", str(toy.tasks)]
    command = [sys.executable, "-m", "unlearnbench", *words, "--output", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    lines = done.stderr.replace("\r", "\n").splitlines()
    assert len(lines) >= 20, "two of each condition; those of progress go by the clock"
    assert [line for line in lines if not _OURS.fullmatch(line)] == []


@pytest.mark.slow  # GPTQModel, which PEFT imports, takes seconds
def test_no_library_speaks_where_an_adapter_is_trained(tiny: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "Once a dog saw a cat."}])
    words = ["finetune", "--model", str(tiny), "--data", str(tmp_path / "texts.jsonl")]
    words += ["--lora-rank", "2", "--max-steps", "1", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "unlearnbench", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout == f"{tmp_path / 'out'}: finetune, 1 steps\n"
    assert "GPT" not in done.stderr


def test_quieting_needs_no_other_import() -> None:
    python("from unlearnbench.util.process import quiet_hub; quiet_hub()")


def test_public_names() -> None:
    for name in unlearnbench.__all__:
        assert getattr(unlearnbench, name) is not None
    assert set(unlearnbench._HOMES) <= set(unlearnbench.__all__)
    assert callable(unlearnbench.evaluate)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unlearnbench.nothing


def test_underscores_are_dashes(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("tasks", "--include_path", str(toy.tasks)) == 0
    assert "toy_verbmem" in capsys.readouterr().out


def test_tasks_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("tasks") == 0
    out = capsys.readouterr().out
    for name in ("news", "books", "demo"):
        for kind in ("verbmem", "knowmem_f", "knowmem_r", "privleak"):
            assert f"{name}_{kind}" in out


def test_tasks_shows_one_with_its_first_prompt(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--include-path", str(toy.tasks), "--data-dir", str(toy.data)]
    assert call("tasks", "toy_knowmem_f", *where) == 0
    out = capsys.readouterr().out
    assert "dataset_path: toy/set" in out
    shots = (
        "Question: Which gate is 3?\nAnswer: gate 3\n\nQuestion: Which gate is 4?\nAnswer: gate 4"
    )
    assert f"{shots}\n\nQuestion: Which gate is 0?\nAnswer: \n" in out


def test_the_command_line_writes_what_evaluate_returns(
    toy: Toy, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny), "--tasks", "toy", "--quant", "none,8bit,4bit"]
    assert call(*options, *toy.arguments, "--limit", "2") == 0
    captured = capsys.readouterr()
    runs = sorted(toy.out.glob("tiny-*/*/run.json"))
    assert [p.parent.name for p in runs] == ["bnb-fp4", "bnb-int8", "none"]
    for path in runs:
        assert str(path.parent) in captured.out
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        assert set(content["tasks"]) == {"toy_verbmem", "toy_knowmem_f", "toy_privleak"}
        assert all(t["n"] == 2 for t in content["tasks"].values())
        assert "null" not in path.read_text(encoding="utf-8")
        samples = path.parent / "samples"
        assert sorted(p.stem for p in samples.iterdir()) == sorted(content["tasks"])
    assert "toy_verbmem (low)" in captured.out
    assert "compute dtype fp32" in captured.err
    assert "--reference" in captured.err, "one line says why there is no PrivLeak and what to do"
    again = unlearnbench.evaluate(
        tiny, "toy", "none,8bit,4bit", limit=2, **toy.options | {"output": toy.out.parent / "api"}
    )
    for result in again:
        other = json.loads(
            (toy.out.glob(f"tiny-*/{result.condition.name}/run.json")).__next__().read_text()
        )
        ours = json.loads(result.model_dump_json(exclude_none=True))
        assert ours["tasks"] == other["tasks"]
        assert ours["condition"] == other["condition"]


def test_repeated_options_add_up(toy: Toy, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ["--tasks", "toy_verbmem", "--tasks", "toy_knowmem_f"]
    precisions = ["--quant", "none", "--quant", "4bit"]
    assert call("--model", str(tiny), *tasks, *precisions, *toy.arguments) == 0
    out = capsys.readouterr().out
    assert "toy_verbmem (low)" in out
    assert "toy_knowmem_f (low)" in out
    assert len(list(toy.out.glob("tiny-*/*/run.json"))) == 2


def test_the_table_shows_what_was_asked_for(
    toy: Toy, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ["--model", str(tiny), *toy.arguments, "--tasks"]
    assert call(*first, "toy_verbmem") == 0
    capsys.readouterr()
    assert call(*first, "toy_knowmem_f") == 0
    assert "toy_verbmem" not in capsys.readouterr().out


def test_an_option_before_a_command_is_not_left_out_in_silence(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--include-path", str(toy.tasks), "tasks") == 2
    assert "--include-path stands before tasks" in capsys.readouterr().err


def test_a_number_changed_in_run_json_is_not_believed(toy: Toy, tiny: Path) -> None:
    options = {"model": tiny, "tasks": "toy", **toy.options}
    (honest,) = unlearnbench.evaluate(**options)
    (path,) = toy.out.glob("tiny-*/none/run.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    content["tasks"]["toy_verbmem"] |= {"value": 0.123, "n": 1}
    content["tasks"]["toy_privleak"]["auc"] = 0.5001
    path.write_text(json.dumps(content), encoding="utf-8")
    (again,) = unlearnbench.evaluate(**options)
    assert again.tasks == honest.tasks


def test_protocol_changes_decoding_and_stays_apart(toy: Toy, tiny: Path) -> None:
    greedy = unlearnbench.evaluate(tiny, "toy_verbmem", **toy.options)
    sampled = unlearnbench.evaluate(
        tiny, "toy_verbmem", protocol="zhang2025", **toy.options | {"output": toy.out.parent / "z"}
    )
    assert greedy[0].protocol == "muse"
    assert sampled[0].protocol == "zhang2025"
    first, second = greedy[0].tasks["toy_verbmem"], sampled[0].tasks["toy_verbmem"]
    assert first.records_sha256 != second.records_sha256


def test_interrupt_exits_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearnbench.evaluation.evaluate.evaluate", interrupt)
    assert call("--model", "x", "--tasks", "news") == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_bug_of_ours_is_one_line_and_never_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("unlearnbench.evaluation.evaluate.evaluate", fail)
    assert call("--model", "x", "--tasks", "news") == 2
    assert capsys.readouterr().err == "unlearnbench: error: internal error: ZeroDivisionError: oh\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert unlearnbench.__version__ in capsys.readouterr().out
