"""Chat templates (``--apply-chat-template``): the same prompts on every day, and no thinking that
nobody asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from unlearnbench.errors import CheckpointError, OptionError, one_line
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import Sample, Turn
from unlearnbench.util.text import open_thought

DATE = "26 Jul 2024"
"""What a template's day is: Llama 3's own, where it knows none."""
_DAY = "%d %b %Y"
_CODES = (*"aAbBcCdDeFgGhHIjklmMnpPrRStTuUVwWxXyYzZf", *("-d", "-e", "-m", "-j", "-H", "-I"))
_MACRO = "{%- macro strftime_now(format) %}"


def chat_options(date: str, thinking: bool, end: str | None) -> dict[str, Any]:
    """What a template is told, by its own names. OptionError where ``date`` is none as templates
    have it, or a thought would have no ``end``.
    """
    if thinking and end is None:
        raise OptionError(
            "--enable-thinking needs --think-end-token, as '</think>': answers begin behind it"
        )
    return {"date_string": _read_date(date).strftime(_DAY), "enable_thinking": thinking}


def _read_date(text: object) -> datetime:
    try:
        return datetime.strptime(str(text), _DAY)
    except ValueError:
        raise OptionError(f"date_string: {one_line(text, 40)!r} is no date as {DATE!r}") from None


def template_arguments(tokenizer: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the tokenizer's ``apply_chat_template`` is given beside the turns: the date, thinking
    off, and ``given`` in their place. Where the template looks at the clock, itself with a clock
    that stands (transformers hands no function of ours to it).

    Raises:
        CheckpointError: there is no template. OptionError: the date is none.
    """
    told = {"date_string": DATE, "enable_thinking": False, **given}
    text = _template(tokenizer, given)
    if "strftime_now" in text and not text.startswith(_MACRO):
        told["chat_template"] = _clock(told["date_string"]) + text
    return told


def _template(tokenizer: Any, given: Mapping[str, Any]) -> str:
    found = given.get("chat_template") or tokenizer.chat_template
    if not found:
        raise CheckpointError(
            "--apply-chat-template: the checkpoint's tokenizer has no chat template"
        )
    try:
        return str(tokenizer.get_chat_template(given.get("chat_template")))
    except ValueError as error:  # several, and none of them is the default
        raise CheckpointError(f"the tokenizer's chat templates: {one_line(error, 200)}") from None


def _clock(date: object) -> str:
    """A macro in front of a template, which hides the function of that name."""
    day = _read_date(date)
    known = [(f"%{code}", day.strftime(f"%{code}")) for code in _CODES]
    pairs = [("%%", "\0"), *known, ("\0", "%")]
    steps = "".join(f".replace({json.dumps(old)}, {json.dumps(new)})" for old, new in pairs)
    # The line end is the block's, which Jinja takes off: the template begins as it did.
    return f"{_MACRO}{{{{ format{steps} }}}}{{% endmacro %}}\n"


def chat_settings(tokenizer: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """What ``Settings`` record of the tokenizer's template: its SHA-256, and of what it is ``told``
    (see ``chat_options``) what it reads.

    Raises:
        CheckpointError: it has none. OptionError: thinking was asked for, and it offers none.
    """
    found: dict[str, Any] = {}
    text = _template(tokenizer, {})
    if "strftime_now" in text or "date_string" in text:
        found["date_string"] = told["date_string"]
    thinking, reads = told["enable_thinking"], "enable_thinking" in text
    if thinking or reads:
        found["enable_thinking"] = thinking
    ask = [{"role": "user", "content": "?"}]
    if thinking and not reads and not open_thought(render(ask, tokenizer, told)):
        raise OptionError(
            "--enable-thinking: the chat template does not read enable_thinking, and begins no "
            "answer with a think block; leave it out"
        )
    stored = tokenizer.chat_template
    whole = stored if isinstance(stored, str) else json.dumps(stored, sort_keys=True)
    sha256 = hashlib.sha256(whole.encode("utf-8", errors="surrogatepass")).hexdigest()
    return {"chat_template_sha256": sha256, **found}


def chat_samples(
    tasks: Sequence[TaskSamples], tokenizer: Any, given: Mapping[str, Any]
) -> list[TaskSamples]:
    """Each prompt as one turn of the user's, or the task's own turns, and the model's turn begun.

    Where the tokenizer puts its begin token before every text anyway, the template's own is left
    out, so that there is one. Texts that are only scored stay as they are. Raises: as ``render``.
    """
    begin = tokenizer.bos_token
    adds = begin and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]

    def put(sample: Sample) -> Sample:
        turns = [vars(turn) for turn in sample.turns or (Turn("user", sample.text),)]
        begun = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
        rendered = render(turns, tokenizer, given) + begun
        text = rendered.removeprefix(begin) if adds else rendered
        return replace(sample, text=text, delimiter="")

    return [
        replace(task, samples=tuple(map(put, task.samples))) if task.spec.has_prompts else task
        for task in tasks
    ]


def render(turns: Sequence[Mapping[str, str]], tokenizer: Any, given: Mapping[str, Any]) -> str:
    """Turns through the template, and the model's turn begun. ``given``: as in
    ``template_arguments``.

    Raises:
        CheckpointError: the template fails, or the answer would begin inside a thought that was
            not asked for.
    """
    told = template_arguments(tokenizer, given)
    try:
        text = tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True, **told
        )
    except Exception as error:  # a template is a stranger's program
        said = f"the chat template fails: {one_line(error, 200)}"
        if any(turn["role"] == "system" for turn in turns):
            said += "; if it knows no system turn, leave `system` out of a copy of the task"
        raise CheckpointError(said) from None
    return require_no_thought(str(text), bool(told["enable_thinking"]))


def require_no_thought(prompt: str, asked: bool) -> str:
    """``prompt``; CheckpointError where it ends in an open think block that was not ``asked`` for:
    what follows would be scored as the answer.
    """
    tag = open_thought(prompt)
    if tag and not asked:
        end = tag.replace("START", "END") if "START" in tag else f"{tag[0]}/{tag[1:]}"
        raise CheckpointError(
            f"the chat template begins every answer with an open think block, {tag}, and thinking "
            f"was not asked for: give --enable-thinking --think-end-token '{end}' and room for the "
            "thought (--gen-kwargs max_gen_toks=N), or leave --apply-chat-template out"
        )
    return prompt
