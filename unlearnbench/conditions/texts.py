"""The texts that a condition learns, held against what tasks ask: which of them hold an answer."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from unlearnbench.conditions.base import Option, Relearning
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.conditions.quantize.calibration import read_texts
from unlearnbench.errors import OptionError, one_line
from unlearnbench.tasks.held import FORM, held_rows, holds_back
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.templates import render_field
from unlearnbench.util.files import content_sha256

PART = "forget-part"
_FEW_WORDS = 8  # of a piece of an asked text: fewer may be a turn of phrase
_NAMED = 5
_LEAST_PART = 4  # letters from which an answer counts within a word too

log = logging.getLogger("unlearnbench")


def pick_relearning(options: KernelOptions, tasks: Sequence[TaskSamples], seed: int) -> Relearning:
    """The texts of ``--relearn-on``: ``forget``, the forget rows of the tasks that are run, with
    their answers; ``forget-part``, those of them that hold no answer to what is asked (with
    ``--limit``, to the rows that it leaves); ``K-of-M``, those that are held back from being asked
    and hold no answer to what is; or a file's, as for calibration.

    Raises:
        OptionError: a file holds an answer, and the texts are named; or no text is left.
        DataError: the file cannot be read or holds no texts.
    """
    name = options.relearn_on
    part = re.fullmatch(FORM, name) is not None
    own = part or name in ("forget", PART)
    if part:
        found = [text for task in tasks for text in _held_texts(task, name, seed)]
    else:
        found = read_texts("forget" if own else name, tasks, "--relearn-on")
    texts = list(dict.fromkeys(found))
    held, facts = answers_in(texts, tasks), dict[str, Option]()
    if part and held:
        named = _named(held)
        log.warning("--relearn-on %s leaves out texts that hold answers: %s", name, named)
    if part or name == PART:
        facts |= {"left_out": len(held)} if part else {}
        texts, held = [text for i, text in enumerate(texts) if i not in held], {}
        if not texts:
            raise OptionError(
                f"--relearn-on {name}: every forget row is asked or holds an answer to what is; "
                "use --limit, so that some are not asked, or give a file of other texts"
            )
    elif held and not own:
        raise OptionError(
            f"--relearn-on {one_line(name, 120)} holds answers to what is asked: {_named(held)}; "
            "leave these texts out, or use --relearn-on forget, which teaches all of them and says "
            "so"
        )
    answers = len({asked for each in held.values() for asked in each})
    if answers:
        message = (
            "--relearn-on forget holds the answers to %d samples that are asked: it may teach what "
            "it seems to bring back, and only the retrained model's run tells"
        )
        log.warning(message, answers)
    facts |= {"on": name if own else Path(name).name, "texts": len(texts), "answers": answers}
    facts |= {"texts_sha256": content_sha256(texts), "batch_size": options.relearn_batch_size}
    asked_of = dict(_questions(tasks)) if own else {}
    asked = [asked_of.get(text, "") for text in texts]
    pairs = tuple((first, text[len(first) :]) for first, text in zip(asked, texts, strict=True))
    size, rate = options.relearn_batch_size, options.relearn_lr
    return Relearning(pairs, rate, size, seed, {**facts, "seed": seed})


def _held_texts(task: TaskSamples, held: str, seed: int) -> Iterator[str]:
    """The rows of a task that are held back, as texts."""
    spec = task.spec
    if holds_back(spec):
        rows = task.splits[spec.own_split].rows
        for i in sorted(held_rows(len(rows), held, seed)):
            yield spec.plain_text(rows[i], f"{spec.task}: {spec.own_split}/{i}")


def _named(held: Mapping[int, Sequence[str]]) -> str:
    rows = [f"text {i + 1} that of {asked[0]}" for i, asked in held.items()]
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return ", ".join(rows[:_NAMED]) + more


def _questions(tasks: Sequence[TaskSamples]) -> Iterator[tuple[str, str]]:
    """Each forget row of a task of prompts as a text, and the prompt that it begins with: without
    its last blank, where the task has a version in which that is the answer's.
    """
    for task in tasks:
        spec = task.spec
        rows = task.splits[spec.own_split].rows if spec.has_prompts else ()
        for i, row in enumerate(rows):
            where = f"{spec.task}: {spec.own_split}/{i}"
            prompt = render_field(spec.doc_to_text, row, where)
            moves = spec.without_blank() is not None
            yield spec.plain_text(row, where), prompt.removesuffix(" ") if moves else prompt


def answers_in(texts: Sequence[str], tasks: Sequence[TaskSamples]) -> dict[int, list[str]]:
    """By a text's index, the samples of forget tasks whose answer it ``says``, as ``task
    split/row``. Of a text that is scored as a whole, a long enough piece counts too.
    """
    asked = [
        (f"{task.spec.task} {sample.id}", answer)
        for task in tasks
        if task.spec.about == "forget"
        for sample in task.samples
        if (answer := Spelled.of(sample.target or sample.text)).joined
    ]
    found: dict[int, list[str]] = {}
    for i, text in enumerate(map(Spelled.of, texts)):
        long = len(text.bounds) > _FEW_WORDS
        names = [name for name, own in asked if text.says(own) or (long and own.says(text))]
        if names:
            found[i] = names
    return found


def words(text: str) -> list[str]:
    """Letters and digits, compatibility forms and cases folded."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


class Spelled(NamedTuple):
    """A text's letters and digits, without what parts its words."""

    joined: str
    bounds: frozenset[int]
    """Where in ``joined`` words begin and end."""

    @classmethod
    def of(cls, text: str) -> Spelled:
        """Of any text."""
        found = words(text)
        return cls("".join(found), frozenset((0, *accumulate(map(len, found)))))

    def says(self, answer: Spelled) -> bool:
        """Whether it has an answer as whole words, parted like the answer or not.

        Example:
            >>> Spelled.of("It cost 65 000 pounds.").says(Spelled.of("65,000"))
            True
            >>> [Spelled.of(text).says(Spelled.of("no")) for text in ("He knew", "Oh no!")]
            [False, True]
        """
        at = self.joined.find(answer.joined)
        while at >= 0:
            if {at, at + len(answer.joined)} <= self.bounds:
                return True
            at = self.joined.find(answer.joined, at + 1)
        return False

    def holds(self, answer: Spelled) -> bool:
        """Whether it says an answer, or has one of four letters and more within a word. An answer
        without words is held by everything.
        """
        within = len(answer.joined) >= _LEAST_PART and answer.joined in self.joined
        return within or not answer.joined or self.says(answer)
