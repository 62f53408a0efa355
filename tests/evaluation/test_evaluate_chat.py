"""Runs through a chat template, and runs whose model was asked otherwise, are kept apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chat_templates import TEMPLATES, set_today
from tests.conftest import Toy
from unlearnbench import RunResult, ScriptedModel, evaluate
from unlearnbench.errors import CheckpointError, OptionError, ResultError
from unlearnbench.runs.entries import load_entries, require_comparable
from unlearnbench.runs.folder import RunFolder, run_path

NAME = "toy_knowmem_f"


@pytest.fixture
def talking(tiny: Path, tmp_path: Path) -> Callable[[str], Path]:
    """``talking(name)``: the tiny checkpoint with that chat template."""

    def make(name: str) -> Path:
        folder = tmp_path / "models" / name
        shutil.copytree(tiny, folder)
        (folder / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
        return folder

    return make


def run(model: Any, toy: Toy, out: str = "out", **options: Any) -> tuple[RunResult, list[str]]:
    """The run, and its prompts."""
    where = {**toy.options, "output": toy.out / out, "dtype": "fp32"}
    (result,) = evaluate(model, NAME, **where, **options)
    folder = RunFolder(run_path(toy.out / out, result.checkpoint, "none"))
    found: Any = folder.read_records(NAME, result.tasks[NAME].records_sha256)
    return result, [record.prompt for record in found]


@pytest.mark.field(
    "Prompts and tokenizers",
    "chat template that reads the day (Llama 3, SmolLM3, Mistral)",
    "runs on 26 Jul 2024, or `--date-string`",
)
@pytest.mark.field(
    "Prompts and tokenizers",
    "chat template that reads `enable_thinking` (Qwen3, SmolLM3)",
    "runs without thinking, or `--enable-thinking`",
)
def test_two_days_ask_the_same_and_say_what(
    talking: Callable[[str], Path], toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = talking("smollm3"), []
    for day in (3, 4):
        set_today(monkeypatch, 2031, 3, day)
        seen.append(run(model, toy, f"day{day}", apply_chat_template=True))
    (first, prompts), (second, others) = seen
    assert prompts == others
    assert prompts[0].startswith("<|system|>Today Date: 26 July 2024 /no_think<|user|>")
    assert prompts[0].endswith("</think>\n\n")
    assert first.settings == second.settings
    assert (first.settings.date_string, first.settings.enable_thinking) == ("26 Jul 2024", False)
    with pytest.raises(ResultError, match="date_string is 26 Jul 2024 there and 10 Apr 2025 here"):
        run(model, toy, "day3", apply_chat_template=True, date_string="10 Apr 2025")
    options = {"enable_thinking": True, "think_end_token": "7", "apply_chat_template": True}
    with pytest.raises(ResultError, match="enable_thinking is False there and True here"):
        run(model, toy, "day3", **options)
    run(model, toy, "other", apply_chat_template=True, date_string="10 Apr 2025")
    (one,), (two,) = (load_entries([toy.out / out]) for out in ("day3", "other"))
    with pytest.raises(OptionError, match="cannot be compared .* date_string is 10 Apr"):
        require_comparable(one.full, two.full, [NAME])


@pytest.mark.field("Prompts and tokenizers", "half a task, or a task, of other prompts", "refused")
def test_half_a_task_of_other_prompts_is_not_gone_on_with(
    talking: Callable[[str], Path], toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearnbench.tasks import chat

    model = talking("qwen3")
    monkeypatch.setattr("unlearnbench.evaluation.answers.Journal.remove", lambda self: None)
    result, _ = run(model, toy, apply_chat_template=True)
    folder = run_path(toy.out / "out", result.checkpoint, "none")
    rendered = chat.render

    def otherwise(*given: Any) -> str:
        return rendered(*given) + " "

    monkeypatch.setattr(chat, "render", otherwise)
    with pytest.raises(ResultError, match=f"holds {NAME} with another prompt of forget_qa/0"):
        run(model, toy, apply_chat_template=True)
    (folder / "run.json").unlink()
    with pytest.raises(ResultError, match="half a task of .*: rendered prompts is .* there and"):
        run(model, toy, apply_chat_template=True)


def test_an_open_thought_ends_a_run_before_it_begins(
    talking: Callable[[str], Path], toy: Toy
) -> None:
    model = talking("deepseek-r1")
    with pytest.raises(CheckpointError, match="open think block, <think>"):
        run(model, toy, apply_chat_template=True)
    options: dict[str, Any] = {"apply_chat_template": True, "enable_thinking": True}
    with pytest.raises(OptionError, match="--think-end-token </think>: no single token"):
        run(model, toy, **options, think_end_token="</think>")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"enable_thinking": True}, "--enable-thinking and --date-string need --apply-chat-templ"),
        ({"date_string": "10 Apr 2025"}, "--date-string need --apply-chat-template"),
        ({"enable_thinking": True, "apply_chat_template": True}, "needs --think-end-token"),
        ({"date_string": "today", "apply_chat_template": True}, "'today' is no date as '26 Jul"),
        ({"max_length": 0}, "max-length"),
    ],
)
def test_options_that_make_no_sense(given: dict[str, Any], said: str, tiny: Path, toy: Toy) -> None:
    with pytest.raises(OptionError, match=said):
        run(tiny, toy, **given)


def test_the_begin_token_is_as_asked_and_recorded(tiny: Path, toy: Toy) -> None:
    as_it_is, _ = run(tiny, toy, "plain")
    without, _ = run(tiny, toy, "without", add_bos_token=False, max_length=200)
    assert (without.settings.add_bos_token, without.settings.max_length) == (False, 200)
    folders = [run_path(toy.out / "plain", as_it_is.checkpoint, "none")]
    folders.append(run_path(toy.out / "without", without.checkpoint, "none"))
    lines = [(f / "samples" / f"{NAME}.jsonl").read_text("ascii").splitlines() for f in folders]
    texts = [[json.loads(line)["output"] for line in each] for each in lines]
    assert texts[0] != texts[1], "another begin moves the answers"
    with pytest.raises(ResultError, match="add_bos_token is absent there and False here"):
        run(tiny, toy, "plain", add_bos_token=False)


@pytest.mark.parametrize("given", [{"max_length": 9}, {"add_bos_token": False}])
def test_a_model_of_ones_own_reads_its_prompts_itself(given: dict[str, Any], toy: Toy) -> None:
    (name,) = given
    with pytest.raises(OptionError, match=f"reads its prompts itself; leave {name} out"):
        run(ScriptedModel({}, {}), toy, **given)
