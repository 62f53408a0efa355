"""What lm-eval's habits change in our tasks: decoding (``--gen-kwargs``) and prompts
(``--apply-chat-template``). Both are settings of a run, so runs with and without never mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearnbench.errors import CheckpointError, OptionError, one_line
from unlearnbench.tasks.kinds.generate import GenerationOptions
from unlearnbench.tasks.rows import TaskSamples


def override_decoding(
    tasks: Sequence[TaskSamples], given: Mapping[str, object]
) -> list[TaskSamples]:
    """Put ``given`` in place of the tasks' own decoding, under every protocol. A task's definition,
    and so its hash, changes with it. Raises OptionError for an option that our decoding has not, or
    a value that makes no sense.
    """
    known = GenerationOptions.model_fields
    for key in given:
        if key not in known:
            raise OptionError(
                f"--gen-kwargs: our tasks' decoding has no {one_line(key, 60)}; it has "
                f"{', '.join(known)}"
            )
    if given.get("temperature") and given.get("do_sample") is not True:
        raise OptionError(
            "--gen-kwargs: temperature needs do_sample=True; without it, it is greedy"
        )
    return [replace(task, spec=task.spec.with_decoding(given)) for task in tasks]


def template_sha256(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer's chat template; CheckpointError where it has none."""
    template = tokenizer.chat_template
    if not template:
        raise CheckpointError(
            "--apply-chat-template: the checkpoint's tokenizer has no chat template"
        )
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def chat_samples(tasks: Sequence[TaskSamples], tokenizer: Any) -> list[TaskSamples]:
    """Each prompt of a generation task as one turn of the user's, and the model's turn begun.

    Where the tokenizer puts its begin token before every text anyway, the template's own is left
    out, so that there is one. Texts that are only scored stay as they are. Raises CheckpointError
    where the template fails.
    """
    return [
        replace(
            task, samples=tuple(replace(s, text=_render(s.text, tokenizer)) for s in task.samples)
        )
        if task.spec.has_prompts
        else task
        for task in tasks
    ]


def _render(prompt: str, tokenizer: Any) -> str:
    turn = [{"role": "user", "content": prompt}]
    try:
        text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a stranger's program
        raise CheckpointError(f"the chat template fails: {one_line(error, 200)}") from None
    begin = tokenizer.bos_token
    adds = begin and list(tokenizer("")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(begin) if adds else text
