"""What conditions that change the prompt share: which tasks they fit, and where in a prompt the
question stands. They are put to what should be forgotten alone: other tasks are asked as they are,
so that utility stays the model's own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from unlearnbench.conditions.base import ConditionSpec, file_of
from unlearnbench.errors import PrecisionError
from unlearnbench.results import AskedAs, GenerationRecord
from unlearnbench.tasks.asking import Asking
from unlearnbench.tasks.kinds.generate import GenerationTask
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import Row, Sample, TaskSpec
from unlearnbench.tasks.templates import render_field

log = logging.getLogger("unlearnbench")


def put(spec: ConditionSpec, tasks: Sequence[TaskSamples]) -> tuple[TaskSamples, ...]:
    """The tasks as ``spec`` puts them to a model; those that it does not fit are marked.

    Raises:
        PrecisionError: it fits none of them, or cannot be made of one.
    """
    file = file_of(spec)
    fitting = [task for task in tasks if file.fits(task.spec)]
    others = ", ".join(task.spec.task for task in tasks if task not in fitting)
    if not fitting:
        what = "questions" if file.fits is is_question else "prompts"
        raise PrecisionError(
            f"{spec.name} is put to {what} about what should be forgotten, and none of these tasks "
            f"has any ({others or 'all are of lm-eval'}); add one, or leave {spec.name} out"
        )
    if others:
        log.info("%s is not put to %s, asked as without it", spec.name, others)
    return tuple(
        replace(task, asking=file.ask(spec, task))
        if task in fitting
        else replace(task, unchanged=True)
        for task in tasks
    )


def continues(task: TaskSpec) -> bool:
    """Whether a task has prompts about what should be forgotten, with one answer to each."""
    one = isinstance(task, GenerationTask) and task.record_type is GenerationRecord
    return one and task.about == "forget"


def is_question(task: TaskSpec) -> bool:
    """Whether its prompts are questions: something, as ``Answer:``, stands behind the question."""
    return continues(task) and bool(_tail(task).strip())


def _tail(task: TaskSpec) -> str:
    """What stands behind the last field of a task's prompt."""
    text = task.doc_to_text
    return text[max(text.rfind("}}"), text.rfind("%}")) + 2 :]


def question_end(task: TaskSpec, sample: Sample) -> int:
    """Where in a prompt the question ends, a chat template round it or not: at the end of the
    user's turn where the task begins the model's own, in which no user writes.
    """
    if sample.turns and sample.turns[-1].role == "assistant":
        said = next(turn.content for turn in reversed(sample.turns) if turn.role == "user").rstrip()
        at = sample.text.rfind(said)
        if said and at >= 0:
            return at + len(said)
    return _find(task, sample, _tail(task))


def question_start(task: TaskSpec, sample: Sample, row: Row) -> int:
    """Where in a prompt the question's own text begins, behind any shots."""
    return _find(task, sample, render_field(task.doc_to_text, row, f"{task.task}: {sample.id}"))


def _find(task: TaskSpec, sample: Sample, text: str) -> int:
    at = sample.text.rfind(text.rstrip())
    if at < 0:
        raise PrecisionError(
            f"{task.task}: {sample.id}: the question is not found in its prompt, which the chat "
            "template changes; leave --apply-chat-template out"
        )
    return at


class Reworded(Asking):
    """Prompts that are known before a model is loaded."""

    def __init__(self, spec: TaskSpec, prompts: Mapping[str, AskedAs]) -> None:
        """prompts: by sample."""
        super().__init__(spec)
        self._prompts = prompts

    def asked(self, sample: Sample) -> AskedAs:
        return self._prompts[sample.id]
