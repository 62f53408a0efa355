"""Tasks that continue a prompt and compare what the model writes with a target text."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from unlearnbench.errors import DataError, MetricError, OptionError
from unlearnbench.requests import Answer, Generate, Generated, Request, Sampling
from unlearnbench.results import GenerationRecord, SampleRecord, Settings
from unlearnbench.tasks.rows import TaskSamples, limited
from unlearnbench.tasks.spec import (
    PROTOCOLS,
    Held,
    Metadata,
    Name,
    QuestionTask,
    Sample,
    SplitRows,
    Strict,
    TaskReference,
    generation_metric,
    mean_of_scores,
    records_of,
    require_pins,
)
from unlearnbench.tasks.templates import render_field
from unlearnbench.util.text import blank_in_answer
from unlearnbench.util.validation import first_fault

NAME = "generate_until"
_WORDS, _WORDS_A_TOKEN = 4096, 32  # ROUGE compares all with all: a stranger's record is bounded

log = logging.getLogger("unlearnbench")


class GenerationOptions(Strict):
    """Decoding, in lm-eval's words. ``do_sample`` false is greedy."""

    max_gen_toks: int = Field(gt=0)
    until: tuple[str, ...] = Field(default=(), strict=False)
    do_sample: bool = False
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _stops_are_text(self) -> GenerationOptions:
        if "" in self.until:
            at = self.until.index("")
            raise ValueError(f"until.{at}: an empty stop string would empty every output")
        return self


class GenerationFile(QuestionTask):
    """The fields of a task with prompts to continue."""

    output_type: Literal["generate_until"]
    fewshot_split: Name | None = None
    num_fewshot: int = Field(default=0, ge=0)
    fewshot_delimiter: str = "\n\n"
    version_without_blank: float | None = Field(default=None, gt=0)
    """The version of this task whose prompt leaves its last blank to the answer, for tokenizers
    that join a blank with the word behind it.
    """
    max_target_toks: int | None = Field(default=None, gt=0)
    """Cuts the target to that many token ids of the model's own tokenizer, special ones counted."""
    generation_kwargs: GenerationOptions
    protocol_overrides: dict[str, GenerationOptions] = Field(default_factory=dict)
    """Other decoding under a named protocol."""

    record_type: ClassVar[type[BaseModel]] = GenerationRecord

    @model_validator(mode="after")
    def _splits_are_pinned(self) -> GenerationFile:
        require_pins(self, "fewshot_split")
        unknown = sorted(set(self.protocol_overrides) - set(PROTOCOLS))
        if unknown:
            raise ValueError(
                f"protocol_overrides.{unknown[0]}: no protocol; known: {', '.join(PROTOCOLS)}"
            )
        if (self.fewshot_split is None) != (self.num_fewshot == 0):
            raise ValueError("num_fewshot: it and fewshot_split go together")
        if self.fewshot_split and self.splits[self.fewshot_split].rows < self.num_fewshot:
            raise ValueError(f"num_fewshot: more than the rows of split {self.fewshot_split!r}")
        if self.chat is not None and self.fewshot_split is not None:
            raise ValueError("chat: its turns have no shots; leave fewshot_split out")
        if self.version_without_blank is not None:
            if not self.doc_to_text.rstrip(" ") == self.doc_to_text[:-1] != "":
                raise ValueError("version_without_blank: doc_to_text does not end in one blank")
            if self.version_without_blank == self.version:
                raise ValueError("version_without_blank: it is metadata.version")
        return self

    @property
    def used_splits(self) -> tuple[str, ...]:
        return (self.test_split, self.fewshot_split) if self.fewshot_split else (self.test_split,)

    @property
    def draws(self) -> Literal[True] | None:
        """Whether its own decoding draws answers; None for greedy."""
        return True if self.generation_kwargs.do_sample else None

    def decoding(self, protocol: str) -> GenerationOptions:
        """The decoding options in force under ``protocol``."""
        return self.protocol_overrides.get(protocol, self.generation_kwargs)


class GenerationTask(GenerationFile):
    """Prompts to continue; each output is compared with a target text."""

    def with_decoding(self, given: Mapping[str, object]) -> GenerationTask:
        values = {k: v for k, v in given.items() if k != "temperature" or v}  # 0 is greedy there
        if isinstance(values.get("until"), str):
            values["until"] = [values["until"]]
        if isinstance(values.get("temperature"), int):
            values["temperature"] = float(str(values["temperature"]))
        try:
            options = GenerationOptions.model_validate(
                {**self.generation_kwargs.model_dump(), **values}
            )
        except ValidationError as error:
            raise OptionError(f"--gen-kwargs: {first_fault(error)}") from None
        return self.model_copy(update={"generation_kwargs": options, "protocol_overrides": {}})

    def without_blank(self) -> GenerationTask | None:
        if self.version_without_blank is None:
            return None
        return self.model_copy(
            update={
                "doc_to_text": self.doc_to_text[:-1],
                "target_delimiter": " " + self.target_delimiter,
                "metadata": Metadata(version=self.version_without_blank),
                "version_without_blank": None,
            }
        )

    def make_samples(
        self, splits: Mapping[str, SplitRows], limit: int | float | None
    ) -> list[Sample]:
        """Prompts behind their shots (the first rows, answered, in file order), and targets that
        can be scored.
        """
        split, prefix = self.test_split, ""
        if self.fewshot_split:
            shots = splits[self.fewshot_split]
            if len(shots.rows) < self.num_fewshot:
                raise DataError(
                    f"{self.task}: split {shots.split!r} has {len(shots.rows)} rows, and the "
                    f"prompt needs {self.num_fewshot} shots"
                )
            for i, row in enumerate(shots.rows[: self.num_fewshot]):
                prefix += self.plain_text(row, f"{self.task}: {shots.split}/{i}")
                prefix += self.fewshot_delimiter
        samples = []
        for i, row in enumerate(limited(splits[split].rows, limit)):
            where = f"{self.task}: {split}/{i}"
            prompt = prefix + render_field(self.doc_to_text, row, where)
            target = render_field(self.doc_to_target, row, where)
            self._scores("", target, where)  # tried now, not after an hour of generation
            turns = self.chat.turns(row, where) if self.chat else ()
            samples.append(Sample(f"{split}/{i}", split, prompt, target, turns=turns))
        return samples

    def fit(
        self, samples: Sequence[Sample], truncate: Callable[[str, int], str]
    ) -> Sequence[Sample]:
        """Targets cut; raises MetricError where nothing that can be scored is left of one."""
        if self.max_target_toks is None:
            return samples
        cut = []
        for sample in samples:
            target = truncate(sample.target, self.max_target_toks)
            self._scores("", target, f"{self.task}: {sample.id}")  # known before the model runs
            cut.append(replace(sample, target=target))
        return cut

    def _scores(self, output: str, target: str, where: str) -> dict[str, float]:
        metric = generation_metric(self.metric)
        try:
            return metric.score_output(output, target)
        except MetricError as error:
            raise MetricError(f"{where}: {error}") from None

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        options, sampling = self.decoding(settings.protocol), None
        if options.do_sample:
            sampling = Sampling(options.temperature, options.top_k, settings.seed)
        name, most = self.request_id(sample), options.max_gen_toks
        return [[Generate(name, sample.text, most, options.until, sampling)]]

    def record(self, sample: Sample, answers: Sequence[Answer]) -> GenerationRecord:
        (answer,) = answers
        if not isinstance(answer, Generated):
            raise MetricError(f"{answer.id}: the answer is no text")
        metric = generation_metric(self.metric)
        scores = self._scores(answer.text, sample.target, f"{self.task}: {sample.id}")
        return GenerationRecord(
            task=self.task,
            id=sample.id,
            prompt=sample.text,
            output=answer.text,
            target=sample.target,
            n_tokens=answer.n_tokens,
            score=scores.pop(metric.HEADLINE),
            scores=scores,
        )

    def summarize(
        self, records: Sequence[SampleRecord], reference: TaskReference | None, seed: int
    ) -> dict[str, object]:
        """Mean of the scores x 100, how many outputs are empty, and what several answers say."""
        from unlearnbench.metrics import leak

        own = records_of(self, GenerationRecord, records)
        mean = mean_of_scores([r.score for r in own], [r.scores for r in own], seed)
        drawn = [r.asked.scores for r in own if r.asked and r.asked.scores]
        empty = sum(not r.output.strip() for r in own)
        said = leak.summarize_leak(drawn, len(own)) if drawn else None
        return {**mean, "empty_outputs": empty, "leak": said, "sampled": self.draws}

    def figures(self) -> set[str]:
        metric = generation_metric(self.metric)
        return set(metric.score_output("a", "a")) - {metric.HEADLINE}

    def rescore(self, record: SampleRecord, imported: bool = False) -> Held:
        (own,) = records_of(self, GenerationRecord, [record])
        metric = generation_metric(self.metric)
        self.require_bounded(own.output, own.target)
        stated = {metric.HEADLINE: own.score, **own.scores}
        best = max((own.asked and own.asked.scores) or [own.score])
        earned = metric.score_output(own.output, own.target)
        found = {"the best of the answers drawn": (best, own.score)}
        return found | {n: (stated.get(n, math.inf), value) for n, value in earned.items()}

    def require_bounded(self, *texts: str) -> None:
        """MetricError for a text of more words than a run of this task can have."""
        longest = max(len(generation_metric(self.metric).words(text)) for text in texts)
        if longest > max(_WORDS, _WORDS_A_TOKEN * self.generation_kwargs.max_gen_toks):
            raise MetricError(f"{longest} words, which no run of this task has")

    def harness_config(self) -> dict[str, object] | None:
        """The task's own YAML fields there; decoding is greedy, as under the protocol of MUSE."""
        options = self.decoding("muse")
        same = ("task", "dataset_path", "dataset_name", "test_split", "output_type", "num_fewshot")
        return {
            **self.model_dump(include=set(same)),
            "target_delimiter": "",
            "generation_kwargs": {
                "max_gen_toks": options.max_gen_toks,
                "until": list(options.until),
                "do_sample": False,
                "temperature": 0.0,
            },
        }


TASK = GenerationTask


def place_blanks(
    tasks: Sequence[TaskSamples], asked: str, tokenizer: Any, limit: int | float | None
) -> tuple[TaskSamples, ...]:
    """The tasks in the version for this tokenizer, see ``blank_in_answer``, which is said; a task
    whose prompt keeps its blank against it is named. Raises OptionError where ``answer`` is asked
    of a task that has no such version.
    """
    ends = [t for t in tasks if t.spec.has_prompts and all(s.text[-1:] == " " for s in t.samples)]
    if not ends or not blank_in_answer(asked, tokenizer):
        return tuple(tasks)
    moved = [t.spec.task for t in ends if t.spec.without_blank() is not None]
    kept = [t.spec.task for t in ends if t.spec.task not in moved]
    if kept and asked == "answer":
        raise OptionError(f"--answer-blank answer: {kept[0]} has no version_without_blank")
    if kept:
        log.warning(
            "%s: the prompt ends in a blank, which this tokenizer joins with the word behind it: a "
            "model that was not trained on that answers badly, as if it had forgotten. Give the "
            "task a version_without_blank (docs/add-a-task.md), or, where models and their "
            "training have that format, pass --answer-blank prompt",
            ", ".join(kept),
        )
    if moved and asked == "auto":
        log.info(
            "%s: the version whose prompt ends at the colon, because this tokenizer joins a blank "
            "with the word behind it; --answer-blank prompt: MUSE's own, for models that were "
            "trained on it",
            ", ".join(moved),
        )
    return tuple(_moved(task, limit) if task.spec.task in moved else task for task in tasks)


def _moved(task: TaskSamples, limit: int | float | None) -> TaskSamples:
    spec, asked = task.spec.without_blank() or task.spec, {sample.id for sample in task.samples}
    made = (sample for sample in spec.make_samples(task.splits, limit) if sample.id in asked)
    return replace(task, spec=spec, samples=tuple(made))
