"""Hints: K question-and-answer facts about the same subject stand before the question, none of
which holds the answer (in-context relearning, arXiv 2407.00106).

They are the task's other rows that share the rarest words with the question: a word that n of the N
rows hold counts log(N / n), and what the question's own answer says counts nothing. Rows that are
alike come in an order that is drawn.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from unlearnbench.conditions.asking import Reworded, is_question, question_start
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.texts import Spelled, words
from unlearnbench.errors import PrecisionError
from unlearnbench.results import AskedAs
from unlearnbench.tasks.asking import Asking
from unlearnbench.tasks.kinds.generate import GenerationTask
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.templates import render_field

CONDITIONS = ()
FAMILY = ConditionSpec(
    "hints-K",
    "asked",
    "K facts on the subject that do not hold the answer before the question",
    asks=True,
    needs_control=True,
)
MOST = 100
fits = is_question


def parse(name: str) -> ConditionSpec | None:
    """``hints-3``, and with another seed than 0 ``hints-3-seed1``."""
    match = re.fullmatch(r"hints-(0|[1-9]\d{0,8})(?:-seed([1-9]\d{0,8}))?", name, re.ASCII)
    if match is None:
        return None
    count, seed = int(match.group(1)), int(match.group(2) or 0)
    if not 1 <= count <= MOST:
        raise PrecisionError(f"{name}: use 1 to {MOST} hints")
    rule = "rows that share the rarest words with the question, without those that hold the answer"
    return replace(
        FAMILY,
        name=name,
        scheme=FAMILY.scheme.replace("K", str(count)),
        options={"hints": count, "seed": seed, "rule": rule},
    )


def ask(spec: ConditionSpec, task: TaskSamples) -> Asking:
    """Raises PrecisionError where a question has fewer hints."""
    own = task.spec
    assert isinstance(own, GenerationTask)  # noqa: S101 - fits says so
    rows, split = task.splits[own.test_split].rows, own.test_split
    where = [f"{own.task}: {split}/{at}" for at in range(len(rows))]
    texts = [own.plain_text(row, place) for row, place in zip(rows, where, strict=True)]
    told = [Spelled.of(text) for text in texts]
    samples = {int(sample.id.rpartition("/")[2]): sample for sample in task.samples}
    questions = {at: render_field(own.doc_to_text, rows[at], where[at]) for at in samples}
    count, prompts = int(spec.options["hints"]), dict[str, AskedAs]()
    for at, ranked in rank(questions, texts, int(spec.options["seed"])):
        sample = samples[at]
        answer = Spelled.of(render_field(own.doc_to_target, rows[at], where[at]))
        safe = list(islice((n for n in ranked if not told[n].holds(answer)), count))
        if len(safe) < count:
            raise PrecisionError(
                f"{spec.name}: {own.task}: {sample.id}: only {len(safe)} other rows do not hold "
                "its answer; use fewer hints"
            )
        start = question_start(own, sample, rows[at])
        shown = "".join(texts[n] + own.fewshot_delimiter for n in safe)
        prompt = sample.text[:start] + shown + sample.text[start:]
        prompts[sample.id] = AskedAs(prompt=prompt, rows=tuple(f"{split}/{n}" for n in safe))
    return Reworded(own, prompts)


def rank(
    questions: Mapping[int, str], texts: Sequence[str], seed: int
) -> Iterator[tuple[int, list[int]]]:
    """For each question, by the place of its row, the other rows, those that share most with it
    first.
    """
    holders: dict[str, list[int]] = {}
    for at, text in enumerate(texts):
        for word in dict.fromkeys(words(text)):
            holders.setdefault(word, []).append(at)
    order = random.Random(seed).sample(range(len(texts)), len(texts))  # noqa: S311
    for at, question in questions.items():
        shared = [0.0] * len(texts)
        for word in dict.fromkeys(words(question)):
            for n in holders.get(word, ()):
                shared[n] += math.log(len(texts) / len(holders[word]))
        yield at, sorted((n for n in order if n != at), key=lambda n: -shared[n])
