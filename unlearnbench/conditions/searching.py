"""Searches for a suffix behind the question that brings answers back: what ``suffix`` and
``embedding`` share.

The questions are halved, by a draw. Each half is searched on, and its suffix is tested on the other
half: every question is asked, none with a suffix that had seen it. With ``-byM`` the M rows that
follow each other and are about one subject stay in one half, so that it is tested on other
subjects.
"""

from __future__ import annotations

import random
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from unlearnbench.conditions.asking import question_end
from unlearnbench.conditions.base import ConditionSpec, Option
from unlearnbench.conditions.suffix_loss import LENGTH, TARGET_TOKENS, Question, SuffixLoss
from unlearnbench.errors import PrecisionError
from unlearnbench.models.base import Delegate
from unlearnbench.results import SearchFound
from unlearnbench.tasks.asking import Asking, State
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import Sample

if TYPE_CHECKING:
    from unlearnbench.models.hf import HFModel

QUESTIONS = 8
"""Of a half, so many are searched on."""
MOST = 100_000
_MOST_ROWS = 1000
_KEEP_EVERY = 2.0  # seconds


_Around: TypeAlias = "tuple[tuple[Progress, ...], tuple[Progress, ...]]"


@dataclass
class Progress:
    """A search as it stands; JSON holds it."""

    value: str
    """What was found: as the condition writes it."""
    loss_before: float
    loss: float
    now: str = ""
    """Where it is, if that is not the best so far."""
    steps: int = 0
    forward_passes: int = 0
    backward_passes: int = 0
    seconds: float = 0.0


def parse_search(
    family: ConditionSpec,
    name: str,
    default: int,
    options: Mapping[str, Option],
    transfers: bool = False,
) -> ConditionSpec | None:
    """A family's member: ``suffix-50``, ``suffix`` for the ``default`` of steps; tested on other
    subjects, of M rows each, ``suffix-50-by20``; where it ``transfers``, searched on the target,
    ``suffix-50-target``; with another seed than 0, which halves the questions, ``suffix-50-seed1``;
    with several of these in that order. ``options``: of the family itself.
    """
    form = re.escape(family.name.removesuffix("-N"))
    form += r"(?:-(0|[1-9]\d{0,8}))?(?:-by([1-9]\d{0,8}))?"
    form += rf"{'(-target)?' if transfers else '()'}(?:-seed([1-9]\d{{0,8}}))?"
    match = re.fullmatch(form, name, re.ASCII)
    if match is None:
        return None
    steps, rows = int(match.group(1) or default), int(match.group(2) or 0)
    target, seed = bool(match.group(3)), int(match.group(4) or 0)
    if not 1 <= steps <= MOST:
        raise PrecisionError(f"{name}: use 1 to {MOST} steps")
    if match.group(2) and not 1 < rows <= _MOST_ROWS:
        raise PrecisionError(f"{name}: use 2 to {_MOST_ROWS} rows for a subject")
    marks = [f"-by{rows}"] * (rows > 0) + ["-target"] * target + [f"-seed{seed}"] * (seed > 0)
    more = [", of other subjects"] * (rows > 0) + [", on the target"] * target
    further: dict[str, Option] = {"rows_of_subject": rows} if rows else {}
    return replace(
        family,
        name=family.name.replace("N", str(steps)) + "".join(marks),
        scheme=family.scheme.replace("N", str(steps)) + "".join(more),
        needs_target=target,
        options={
            **{"steps": steps, "seed": seed, "length": LENGTH, **options},
            **{"questions": QUESTIONS, "target_tokens": TARGET_TOKENS, **further},
        },
    )


class Searching(Asking):
    """A task whose questions get a suffix that is searched for."""

    def __init__(self, spec: ConditionSpec, task: TaskSamples, step_passes: int) -> None:
        """step_passes: what a step takes for one question. Raises PrecisionError where the task has
        one question or subject only, or the budget no room for a step.
        """
        super().__init__(task.spec)
        self.options = spec.options
        ids = [sample.id for sample in task.samples]
        self.seed = int(spec.options["seed"])
        drawn = random.Random(self.seed).sample(ids, len(ids))  # noqa: S311
        rows = int(spec.options.get("rows_of_subject", 1))
        subject = {name: int(name.rpartition("/")[2]) // rows for name in drawn}
        subjects = [*dict.fromkeys(subject.values())]
        if len(subjects) < 2:
            what = "subject" if rows > 1 else "question"
            raise PrecisionError(
                f"{spec.name}: {task.spec.task} has one {what}, and a suffix is tested on others "
                "than it was searched on; use a larger --limit"
            )
        first = {*subjects[: len(subjects) // 2]}
        halves = [[n for n in drawn if (subject[n] in first) is own] for own in (True, False)]
        self.half = {name: number for number, half in enumerate(halves) for name in half}
        most = int(spec.options["questions"])
        parts = {sample.id: self._part(sample) for sample in task.samples}
        self.searched = [[parts[name] for name in half[:most]] for half in halves]
        self.steps = int(spec.options["steps"])
        self.budget = int(spec.options.get("budget", 2**62))
        most = max(map(len, self.searched))
        self.step_passes = step_passes
        if self.budget < most * (1 + step_passes):
            raise PrecisionError(
                f"--budget {self.budget}: {spec.name} takes {most * (1 + step_passes)} forward "
                "passes before it is done with a step; give it more"
            )

    def _part(self, sample: Sample) -> Question:
        end = question_end(self.spec, sample)
        return Question(sample.id, sample.text[:end], sample.text[end:], sample.target)

    def search(self, model: Any, state: State | None, keep: Callable[[State], None]) -> None:
        """Find both suffixes on the model itself, whatever engine or processes answer for it, or on
        the target.
        """
        while isinstance(model, Delegate):
            model = model.own
        searched = model if self.target is None else self.target()
        done = [Progress(**each) for each in (state or {}).get("searches", ())]
        for number, questions in enumerate(self.searched):
            where = f"{self.spec.task}, search {number + 1} of 2"
            loss = SuffixLoss(searched, questions, where)
            known = done[number] if number < len(done) else None

            earlier, later = tuple(done[:number]), tuple(done[number + 1 :])

            def keep_all(now: Progress, at: _Around = (earlier, later)) -> None:
                keep({"searches": [asdict(each) for each in (*at[0], now, *at[1])]})

            done[number : number + 1] = [self._find(loss, number, known, keep_all)]
        pairs = zip(self.searched, done, strict=True)
        self.found = tuple(self.describe(questions, each) for questions, each in pairs)
        self.settle(model, [each.value for each in done])

    def _find(
        self,
        loss: SuffixLoss,
        number: int,
        known: Progress | None,
        keep: Callable[[Progress], None],
    ) -> Progress:
        began = kept = time.perf_counter()
        now = known or self.begin(loss)
        spent = now.seconds
        earlier = now.forward_passes, now.backward_passes
        while now.steps < self.steps:
            passes = earlier[0] + loss.forward_passes
            if passes + self.step_passes * len(loss.questions) > self.budget:
                break
            self.step(loss, number, now)
            now.steps += 1
            now.forward_passes = earlier[0] + loss.forward_passes
            now.backward_passes = earlier[1] + loss.backward_passes
            now.seconds = spent + time.perf_counter() - began
            if time.perf_counter() - kept > _KEEP_EVERY:
                keep(now)
                kept = time.perf_counter()
        keep(now)
        return now

    @abstractmethod
    def begin(self, loss: SuffixLoss) -> Progress:
        """The suffix that a search begins with."""

    @abstractmethod
    def step(self, loss: SuffixLoss, number: int, now: Progress) -> None:
        """Change ``now`` by one step of the search of that number; its loss never rises."""

    @abstractmethod
    def settle(self, model: HFModel, values: Sequence[str]) -> None:
        """Make ready what samples are asked with: the values of both searches."""

    def facts(self, value: str) -> dict[str, object]:
        """What a result says of a value."""
        return {"suffix": value}

    def describe(self, questions: Sequence[Question], found: Progress) -> SearchFound:
        """What a result records of a search."""
        facts = asdict(found) | {"searched_on": tuple(each.id for each in questions)}
        names = SearchFound.model_fields.keys() & facts.keys()
        return SearchFound.model_validate(
            {name: facts[name] for name in names} | self.facts(found.value)
        )
