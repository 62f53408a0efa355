"""Prompts through chat templates, held against Jinja itself on one day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import pytest

from tests.chat_templates import TEMPLATES, set_today
from tests.conftest import make_tokenizer
from tests.tasks.kinds.test_answers import FILE, ROWS
from unlearnbench.errors import CheckpointError, OptionError
from unlearnbench.requests import Score
from unlearnbench.results import Settings
from unlearnbench.tasks.chat import DATE, chat_options, chat_samples, chat_settings, render
from unlearnbench.tasks.kinds.answers import TASK
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import SplitRows

ASK = [{"role": "user", "content": "Which gate is 3?"}]
DATED = ["llama-3.1", "llama-3.2", "mistral-small", "smollm3"]
TODAY, TOMORROW = (2031, 3, 4), (2031, 3, 5)


def with_template(text: Any) -> Any:
    tokenizer: Any = make_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


def by_jinja(
    text: str, day: datetime, messages: Sequence[Mapping[str, str]] = ASK, **told: Any
) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(text)
    return template.render(
        messages=messages,
        bos_token="<s>",
        add_generation_prompt=True,
        strftime_now=day.strftime,
        **told,
    )


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "deepseek-r1"])
def test_every_day_has_the_prompts_of_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = with_template(TEMPLATES[name])
    seen, plain = set(), set()
    for today in (TODAY, TOMORROW):
        set_today(monkeypatch, *today)
        seen.add(render(ASK, tokenizer, {}))
        plain.add(tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True))
    day = datetime(2024, 7, 26)
    told: dict[str, Any] = {"date_string": "26 Jul 2024", "enable_thinking": False}
    assert seen == {by_jinja(TEMPLATES[name], day, **told)}
    assert len(plain) == 1 + (name in ("llama-3.2", "mistral-small", "smollm3"))


SPEC = TASK.model_validate({**FILE, "chat": {"system": "Be of help.", "user": "Well, {{q}}"}})
TURNS = [{"role": "system", "content": "Be of help."}, {"role": "user", "content": "Well, one?"}]
# A template that puts what the system says into its own place, as Llama-3's does.
SPEAKS = """{{- bos_token }}{%- for message in messages %}
{{- "<|" + message["role"] + "|>" + date_string + "\\n\\n" + message["content"] }}{%- endfor %}
{{- "<|assistant|>\\n\\n" }}"""


@pytest.mark.parametrize("spec", [SPEC, SPEC.model_copy(update={"chat": None})])
def test_a_task_may_have_turns_of_its_own(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SplitRows("train", tuple(ROWS), "local", "0" * 64)
    splits = {"train": rows}
    task = TaskSamples(spec, splits, tuple(spec.make_samples(splits, None)))
    tokenizer, told = with_template(SPEAKS), chat_options("5 Apr 2025", False, None)
    turns = TURNS if spec.chat else [{"role": "user", "content": "Q: one?"}]
    want = by_jinja(SPEAKS, datetime(2025, 4, 5), turns, **told).removeprefix("<s>")
    for today in (TODAY, TOMORROW):
        set_today(monkeypatch, *today)
        (put,) = chat_samples([task], tokenizer, told)
        assert put.samples[0].text == want
        (asked,) = spec.requests(put.samples[0], Settings.model_construct())
        first = asked[0]
        assert isinstance(first, Score)
        assert (first.prompt, first.text) == (want, "right"), "no blank behind a template"


def test_a_task_may_begin_the_models_turn() -> None:
    chat = {"user": "Well, {{q}}", "begin": "{% if q == 'one?' %}Answer:{% endif %}"}
    spec = TASK.model_validate({**FILE, "chat": chat})
    splits = {"train": SplitRows("train", tuple(ROWS), "local", "0" * 64)}
    task = TaskSamples(spec, splits, tuple(spec.make_samples(splits, None)))
    (put,) = chat_samples([task], with_template(SPEAKS), {"date_string": "D"})
    first, second = (sample.text for sample in put.samples)
    assert first == "<|user|>D\n\nWell, one?<|assistant|>\n\nAnswer:"
    assert second == "<|user|>D\n\nWell, two?<|assistant|>\n\n"


def test_a_template_without_the_role_that_is_needed_is_said() -> None:
    text = """{%- if messages[0]["role"] == "system" %}
{{- raise_exception("System role not supported") }}{%- endif %}{{- messages[0]["content"] }}"""
    with pytest.raises(CheckpointError, match="System role not supported; if it knows no system"):
        render(TURNS, with_template(text), {})
    assert render(ASK, with_template(text), {}) == ASK[0]["content"]


@pytest.mark.parametrize("name", DATED)
def test_another_day_is_told_by_both_names(name: str) -> None:
    tokenizer = with_template(TEMPLATES[name])
    told = chat_options("5 Apr 2025", thinking=False, end=None)
    assert told == {"date_string": "05 Apr 2025", "enable_thinking": False}
    found = render(ASK, tokenizer, told)
    assert found == by_jinja(TEMPLATES[name], datetime(2025, 4, 5), **told)
    assert "Apr" in found or "2025-04-05, a Saturday" in found


def test_every_code_of_a_date_is_that_of_the_day() -> None:
    codes = "aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZf"
    form = " ".join(f"%{c}" for c in codes) + " %-d %-m 100%% %%d %%%d"
    template = "{{ strftime_now(form) }}|{{ messages[0].content }}"
    found = render(ASK, with_template(template), {"form": form})
    assert found == f"{datetime(2024, 7, 26).strftime(form)}|{ASK[0]['content']}"


@pytest.mark.parametrize("start", ["", "\n", "  ", "\n  "])
def test_a_template_begins_as_it_did(start: str) -> None:
    text = start + "{% if true %}[{% endif %}\n x {{ strftime_now('%Y') }}"
    assert render(ASK, with_template(text), {}) == by_jinja(text, datetime(2024, 7, 26))


@pytest.mark.field(
    "Prompts and tokenizers",
    "chat template that begins answers with an open think block (DeepSeek-R1)",
    "refused, unless thinking is asked for",
)
def test_an_open_thought_is_refused_unless_asked_for() -> None:
    tokenizer = with_template(TEMPLATES["deepseek-r1"])
    with pytest.raises(CheckpointError, match=r"<think>.*--think-end-token '</think>'") as raised:
        render(ASK, tokenizer, {})
    assert "--gen-kwargs max_gen_toks=N" in str(raised.value)
    assert render(ASK, tokenizer, {"enable_thinking": True}).endswith("<think>\n")
    assert render(ASK, with_template(TEMPLATES["qwen3"]), {}).endswith("</think>\n\n")
    magistral = with_template("{{ messages[0].content }}[THINK]")
    with pytest.raises(CheckpointError, match=r"'\[/THINK\]'"):
        render(ASK, magistral, {})
    command = with_template("{{ messages[0].content }}<|START_THINKING|>")
    with pytest.raises(CheckpointError, match=r"'<\|END_THINKING\|>'"):
        render(ASK, command, {})


@pytest.mark.parametrize(
    ("name", "thinking", "expected"),
    [
        ("llama-3.1", False, {"date_string": "26 Jul 2024"}),
        ("mistral-small", False, {"date_string": "26 Jul 2024"}),
        ("smollm3", False, {"date_string": "26 Jul 2024", "enable_thinking": False}),
        ("qwen3", False, {"enable_thinking": False}),
        ("qwen3", True, {"enable_thinking": True}),
        ("deepseek-r1", False, {}),
        ("deepseek-r1", True, {"enable_thinking": True}),
    ],
)
def test_what_a_template_reads_is_recorded(
    name: str, thinking: bool, expected: dict[str, Any]
) -> None:
    found = chat_settings(with_template(TEMPLATES[name]), chat_options(DATE, thinking, "</think>"))
    del found["chat_template_sha256"]
    assert found == expected


def test_what_cannot_be_rendered_is_one_line() -> None:
    told = chat_options(DATE, True, "</think>")
    with pytest.raises(OptionError, match="--enable-thinking.*does not read"):
        chat_settings(with_template(TEMPLATES["llama-3.1"]), told)
    with pytest.raises(CheckpointError, match="has no chat template"):
        render(ASK, make_tokenizer(), {})
    with pytest.raises(CheckpointError, match="chat templates: "):
        render(ASK, with_template({"a": "x", "b": "y"}), {})
    with pytest.raises(CheckpointError, match="the chat template fails: "):
        render(ASK, with_template("{{ nothing.at.all }}"), {})
    with pytest.raises(OptionError, match="'tomorrow' is no date"):
        render(ASK, with_template(TEMPLATES["llama-3.2"]), {"date_string": "tomorrow"})
