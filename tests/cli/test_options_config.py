"""lm-eval's habits on our command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import unlearnbench
from tests.cli.test_main import call, imported
from tests.conftest import MakeCheckpoint, Toy
from tests.toy_runs import Bench, Skill
from unlearnbench.errors import CheckpointError, OptionError, ResultError
from unlearnbench.tasks.overrides import override_decoding
from unlearnbench.tasks.rows import limited_count

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} [model]"
)


def run_of(toy: Toy) -> Any:
    (path,) = toy.out.glob("*/none/run.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("rows", "limit", "left"),
    [(10, None, 10), (10, 3, 3), (10, 30, 10), (10, 0.25, 3), (3, 0.5, 2), (100, 0.001, 1)],
)
def test_a_limit_is_a_number_or_a_share(rows: int, limit: float | None, left: int) -> None:
    assert limited_count(rows, limit) == left


@pytest.mark.parametrize("limit", ["0", "-1", "-0.5", "2.5", "many", "nan"])
def test_limits_that_make_no_sense(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--model", "x", "--tasks", "news", "--limit", limit) == 2
    assert "limit" in capsys.readouterr().err


def test_options_come_from_a_file_from_the_environment_and_from_the_line(
    toy: Toy, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = {
        "model_args": {"pretrained": str(tiny), "dtype": "float32"},
        "tasks": ["toy_verbmem", "toy_knowmem_f"],
        "include-path": str(toy.tasks),
        "data_dir": str(toy.data),
        "output": str(toy.out),
        "limit": 0.3,
        "seed": 1,
        "ppl_lower": False,
    }
    file = tmp_path / "options.yaml"
    file.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in lines.items()), "utf-8")
    monkeypatch.setenv("UNLEARNBENCH_SEED", "2")
    monkeypatch.setenv("UNLEARNBENCH_LIMIT", "1")
    assert call("--config", str(file), "--limit", "2") == 0
    content = run_of(toy)
    assert set(content["tasks"]) == {"toy_verbmem", "toy_knowmem_f"}
    assert content["settings"]["limit"] == 2, "the line wins over the environment"
    assert content["settings"]["seed"] == 2, "the environment wins over the file"
    assert content["settings"]["dtype"] == "fp32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: news\nlimt: 3\n", r":2: no option is called 'limt'"),
        ("limit:\n", ":1: limit has no value"),
        ("limit: [1, 2]\n", ":1: limit takes one value"),
        ("tasks: {a: b}\n", ":1: tasks takes no mapping"),
        ("config: other.yaml\n", ":1: no option is called 'config'"),
        ("- limit\n", "expected `key: value`"),
        ("limit: some\n", "'some' is not a number"),
    ],
)
def test_a_wrong_file_of_options_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text, encoding="utf-8")
    assert call("--config", str(file)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    import re

    assert re.search(message, error)


def test_a_variable_that_is_no_option_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNLEARNBENCH_MODLE", "x")
    monkeypatch.setenv("UNLEARNBENCH_VERSION", "7")
    assert call("--model", "nowhere", "--tasks", "no_such_task") == 2
    error = capsys.readouterr().err
    assert "UNLEARNBENCH_MODLE names no option" in error
    assert "UNLEARNBENCH_VERSION names no option" in error


def test_model_args_stand_for_options(
    toy: Toy, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"pretrained={tiny},dtype=float32,quant=rtn-int8"
    tasks = ["--tasks", "toy_knowmem_f", *toy.arguments]
    assert call("--model", "hf", "--model_args", given, *tasks) == 0
    (path,) = toy.out.glob("*/rtn-int8/run.json")
    assert path.parent.parent.name.startswith("tiny-")
    assert call("--model_args", given, "--quant", "nf4", *tasks) == 2
    assert "--model-args and --quant contradict" in capsys.readouterr().err
    assert call("--model_args", "pretrained=x,parallelize=True", *tasks) == 2
    assert "parallelize has no meaning here" in capsys.readouterr().err
    assert call("--model_args", "dtype=float32", *tasks) == 2
    assert "--model is missing" in capsys.readouterr().err


def test_help_stays_light_with_a_file_of_options(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("limit: 2\n", encoding="utf-8")
    heavy = ("torch", "transformers", "datasets", "lm_eval", "huggingface_hub")
    assert imported(["--config", str(file), "--help"], heavy) == "[]"
    assert imported(["tasks", "--lm-eval-path"], heavy) == "[]"


def test_gen_kwargs_are_recorded_and_keep_runs_apart(
    toy: Toy, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(tiny), "--tasks", "toy_knowmem_f", *toy.arguments]
    assert call(*options, "--gen_kwargs", "max_gen_toks=2,until=['.']") == 0
    (samples,) = toy.out.glob("*/none/samples/toy_knowmem_f.jsonl")
    records = [json.loads(line) for line in samples.read_text().splitlines()]
    assert max(record["n_tokens"] for record in records) <= 2
    content = run_of(toy)
    assert json.loads(content["settings"]["gen_kwargs"]) == {"max_gen_toks": 2, "until": ["."]}
    assert call(*options) == 2
    assert "gen_kwargs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "no num_beams"),
        ({"temperature": 0.5}, "needs do_sample=True"),
        ({"max_gen_toks": 0}, "max_gen_toks"),
        ({"until": ""}, "empty stop string"),
    ],
)
def test_gen_kwargs_that_make_no_sense(toy: Toy, given: dict[str, object], message: str) -> None:
    from unlearnbench.tasks.registry import load_registry
    from unlearnbench.tasks.rows import DataOptions, load_samples

    spec = load_registry([toy.tasks]).tasks["toy_verbmem"]
    plans = [load_samples(spec, DataOptions(toy.data), None)]
    assert override_decoding(plans, {"temperature": 0.0}) != []
    with pytest.raises(OptionError, match=message):
        override_decoding(plans, given)


def test_a_chat_template_goes_over_prompts_and_is_recorded(
    toy: Toy, make_checkpoint: MakeCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = make_checkpoint("plain")
    chat = make_checkpoint("chat")
    (chat / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    options: dict[str, Any] = {**toy.options, "apply_chat_template": True}
    (result,) = unlearnbench.evaluate(chat, "toy", **options)
    sha256 = hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert result.settings.chat_template_sha256 == sha256
    (samples,) = toy.out.glob("chat-*/none/samples/toy_verbmem.jsonl")
    record = json.loads(samples.read_text().splitlines()[0])
    assert record["prompt"].startswith("[user] The harbour of Tellmouth"), "one begin token, not 2"
    assert record["prompt"].endswith(" [model]")
    with pytest.raises(ResultError, match="chat_template_sha256"):
        unlearnbench.evaluate(chat, "toy", **toy.options)
    with pytest.raises(CheckpointError, match="has no chat template"):
        unlearnbench.evaluate(plain, "toy", **options)


def test_runs_of_other_prompts_or_decoding_do_not_compare(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    target = bench.model("target", none=Skill.of(0.9, 0.9), int4=Skill.of(0.9, 0.9))
    retrained = bench.model("retrained", none=Skill.of(0.1, 0.9))
    unlearned = bench.model("unlearned", none=Skill.of(0.1, 0.9), int4=Skill.of(0.8, 0.9))
    for path in unlearned.glob("*/run.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["settings"]["gen_kwargs"] = '{"max_gen_toks": 3}'
        path.write_text(json.dumps(content), encoding="utf-8")
    from unlearnbench.recovery.compare import open_comparison

    with pytest.raises(OptionError, match="gen_kwargs is "):
        open_comparison([unlearned], target, retrained)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--log_samples"], "--log-samples: it has gone: every record"),
        (["--compile"], "--compile: it has gone: compiled layers were no faster"),
        (["--attention", "eager"], "--attention: it has gone"),
    ],
)
def test_an_option_that_has_gone_is_answered_and_does_nothing(
    toy: Toy, tiny: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    options = ["--model", str(tiny), "--tasks", "toy_knowmem_f", *toy.arguments]
    assert call(*options, *given) == 0
    assert capsys.readouterr().err.count(f"note: {said}") == 1
    assert call(*options) == 0
    assert "has gone" not in capsys.readouterr().err


def test_conditions_stand_beside_precisions(toy: Toy, tiny: Path) -> None:
    options = ["--model", str(tiny), "--tasks", "toy_knowmem_f", *toy.arguments]
    assert call(*options, "--conditions", "int4,fp32", "--quant", "none") == 0
    found = {path.parent.name for path in toy.out.glob("tiny-*/*/run.json")}
    assert found == {"none", "rtn-int4", "fp32"}
