"""The texts that a condition learns, held against what tasks ask: which of them hold an answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from unlearnbench.conditions.base import Option, Relearning
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.conditions.quantize.calibration import read_texts
from unlearnbench.errors import OptionError, one_line
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.templates import render_field
from unlearnbench.util.files import content_sha256

PART = "forget-part"
_FEW_WORDS = 8  # of a piece of an asked text: fewer may be a turn of phrase
_NAMED = 5

log = logging.getLogger("unlearnbench")


def pick_relearning(options: KernelOptions, tasks: Sequence[TaskSamples], seed: int) -> Relearning:
    """The texts of ``--relearn-on``: ``forget``, the forget rows of the tasks that are run, with
    their answers; ``forget-part``, those of them that hold no answer to what is asked (with
    ``--limit``, to the rows that it leaves); or a file's, as for calibration.

    Raises:
        OptionError: a file holds an answer, and the texts are named; or no text is left.
        DataError: the file cannot be read or holds no texts.
    """
    name = options.relearn_on
    own = name in ("forget", PART)
    found = read_texts("forget" if own else name, tasks, "--relearn-on")
    asked_of = dict(_questions(tasks)) if own else {}
    texts = list(dict.fromkeys(found))
    held = answers_in(texts, tasks)
    if name == PART:
        texts = [text for i, text in enumerate(texts) if i not in held]
        if not texts:
            raise OptionError(
                f"--relearn-on {PART}: every forget row is asked or holds an answer to what is; "
                "use --limit, so that some are not asked, or give a file of other texts"
            )
        held = {}
    elif held and not own:
        rows = [f"text {i + 1} that of {asked[0]}" for i, asked in held.items()]
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        raise OptionError(
            f"--relearn-on {one_line(name, 120)} holds answers to what is asked: "
            f"{', '.join(rows[:_NAMED])}{more}; leave these texts out, or use --relearn-on forget, "
            "which teaches all of them and says so"
        )
    answers = len({asked for each in held.values() for asked in each})
    if answers:
        message = (
            "--relearn-on forget holds the answers to %d samples that are asked: it may teach what "
            "it seems to bring back, and only the retrained model's run tells"
        )
        log.warning(message, answers)
    facts: dict[str, Option] = {
        "on": name if own else Path(name).name,
        "texts": len(texts),
        "answers": answers,
    }
    facts |= {"texts_sha256": content_sha256(texts), "batch_size": options.relearn_batch_size}
    size, rate = options.relearn_batch_size, options.relearn_lr
    asked = [asked_of.get(text, "") for text in texts]
    pairs = tuple((first, text[len(first) :]) for first, text in zip(asked, texts, strict=True))
    return Relearning(pairs, rate, size, seed, {**facts, "seed": seed})


def _questions(tasks: Sequence[TaskSamples]) -> Iterator[tuple[str, str]]:
    """Each forget row of a task of prompts as a text, and the prompt that it begins with."""
    for task in tasks:
        spec = task.spec
        rows = task.splits[spec.own_split].rows if spec.has_prompts else ()
        for i, row in enumerate(rows):
            where = f"{spec.task}: {spec.own_split}/{i}"
            yield spec.plain_text(row, where), render_field(spec.doc_to_text, row, where)


def answers_in(texts: Sequence[str], tasks: Sequence[TaskSamples]) -> dict[int, list[str]]:
    """By a text's index, the samples of forget tasks whose answer it holds, as ``task split/row``:
    word for word, without case and punctuation. Of a text that is scored as a whole, a long enough
    piece counts too.
    """
    asked = [
        (f"{task.spec.task} {sample.id}", words)
        for task in tasks
        if task.spec.about == "forget"
        for sample in task.samples
        if (words := _words(sample.target or sample.text)).strip()
    ]
    found: dict[int, list[str]] = {}
    for i, text in enumerate(map(_words, texts)):
        long = text.count(" ") > _FEW_WORDS
        names = [name for name, words in asked if words in text or (long and text in words)]
        if names:
            found[i] = names
    return found


def _words(text: str) -> str:
    """Its words in lower case, a blank before, between and behind them."""
    words = re.findall(r"\w+", text.casefold())
    return f" {' '.join(words)} "
