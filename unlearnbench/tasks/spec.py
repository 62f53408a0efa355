"""What a task is: the fields of its YAML file, its rows and samples, and what its kind must do.

A kind of task (``tasks/kinds/``) is one subclass of ``TaskSpec``: it owns its fields, what a model
is asked, the record of an answer and the task's result. Field names are lm-evaluation-harness's
where they mean the same.
"""

from __future__ import annotations

import pkgutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unlearnbench import metrics
from unlearnbench.errors import MetricError, OptionError
from unlearnbench.requests import Answer, Request
from unlearnbench.results import AnswerRecord, AucReference, SampleRecord, Settings, Sha256
from unlearnbench.tasks.templates import render_field
from unlearnbench.util.files import content_sha256

if TYPE_CHECKING:
    from unlearnbench.metrics import GenerationMetric, LikelihoodMetric
    from unlearnbench.metrics.intervals import Estimate
    from unlearnbench.metrics.membership import ReferenceScores

PROTOCOLS = ("muse", "zhang2025")
# Came later, so that tasks without them have the hashes that they had.
_LATER = {"chat", "skip_empty", "places"}
_NOT_DEFINING = {"description", "tag", "superseded_by", "version_without_blank"}

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]
# A folder below the data folder and an id on the hub: no empty part, no "..".
DatasetPath = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*$")
]
Row = Mapping[str, object]
Held: TypeAlias = dict[str, tuple[float, float]]
"""By figure: what a record states, what its facts earn."""
R = TypeVar("R", bound=BaseModel)


class Strict(BaseModel):
    """A part of a task file: no unknown key, no other type than the one that is written here."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class SplitPin(Strict):
    """What one split must hold. ``sha256``: ``rows_sha256`` of all its rows, the real pin; absent
    where the text may not be pinned from here (MUSE-Books).
    """

    rows: int = Field(gt=0)
    sha256: Sha256 | None = None


class DatasetOptions(Strict):
    """Keyword arguments of ``datasets.load_dataset``."""

    revision: str = "main"


class Chat(Strict):
    """What a chat template is given in place of the prompt, where one is applied."""

    system: str | None = None
    """What the system says; None: nothing, and a template may have words of its own."""
    user: str
    """The user's turn, a template as ``doc_to_text``."""
    begin: str = ""
    """How the model's own turn begins, a template too; it writes what follows."""

    def turns(self, row: Row, where: str) -> tuple[Turn, ...]:
        """Raises: as ``render_field``."""
        said = () if self.system is None else (Turn("system", self.system),)
        begun = render_field(self.begin, row, where)
        last = (Turn("assistant", begun),) if begun else ()
        return (*said, Turn("user", render_field(self.user, row, where)), *last)


class Metadata(Strict):
    """Facts about the task file. ``version`` changes whenever a task's scores may change."""

    version: float = Field(gt=0)


@dataclass(frozen=True)
class SplitRows:
    """All rows of one split, in file order, and how they differ from the pin if that is allowed."""

    split: str
    rows: tuple[Row, ...]
    source: str
    sha256: str
    drift: str | None = None


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """One row as it is put to a model."""

    id: str
    split: str
    text: str
    target: str = ""
    """What the answer is compared with; empty where there is no such text."""
    answers: tuple[str, ...] = ()
    """Texts whose log-probability behind ``text`` is asked for, the right one first."""
    delimiter: str = ""
    """Between ``text`` and each of ``answers``."""
    turns: tuple[Turn, ...] = ()
    """What a chat template is given in place of ``text``; empty: it, as the user's turn. A last
    turn of the assistant's is behind what the template makes of the others."""


@dataclass(frozen=True)
class TaskReference:
    """What the retrained model scores on a task, and what a result measured against it records."""

    scores: ReferenceScores
    recorded: AucReference


class TaskSpec(Strict):
    """The fields of every task's YAML file, what every task can do, and what its kind adds."""

    task: Name
    tag: tuple[Name, ...] = Field(default=(), strict=False)
    description: str = Field(min_length=1)
    dataset_path: DatasetPath
    dataset_name: Name
    dataset_kwargs: DatasetOptions = DatasetOptions()
    splits: dict[Name, SplitPin]
    doc_to_text: str
    chat: Chat | None = None
    metric: Name
    want: Literal["low", "high", "zero"]
    """The direction that means "forgot" or "kept"."""
    metadata: Metadata
    superseded_by: Name | None = None

    record_type: ClassVar[type[BaseModel]] = AnswerRecord
    """The type of every sample's record."""
    has_prompts: ClassVar[bool] = False
    """Whether a sample's text is a prompt, which a chat template may be put round."""
    needs_reference: ClassVar[bool] = False
    """Whether the value is measured against the retrained model's scores."""

    @property
    def version(self) -> float:
        return self.metadata.version

    @property
    def definition_sha256(self) -> str:
        """Of everything in the task's definition that can move its score."""
        absent = {name for name in _LATER if not getattr(self, name, None)}
        return content_sha256(self.model_dump(mode="json", exclude=_NOT_DEFINING | absent))

    @property
    def headline(self) -> str:
        """The figure of a sample that the task's value is made of."""
        return self.metric

    @property
    def about(self) -> Literal["forget", "retain"]:
        """Whether the rows of ``own_split`` are to go or to stay."""
        return "retain" if self.want == "high" else "forget"

    @property
    def optional_figures(self) -> frozenset[str]:
        """Figures that the records of some runs have and those of others have not."""
        return frozenset()

    @property
    @abstractmethod
    def asked_splits(self) -> tuple[str, ...]:
        """The splits whose rows become samples, in that order."""

    @property
    def used_splits(self) -> tuple[str, ...]:
        """The splits that a run reads."""
        return self.asked_splits

    @property
    def own_split(self) -> str:
        """The split that the task is about, see ``about``."""
        return self.asked_splits[0]

    @abstractmethod
    def make_samples(
        self, splits: Mapping[str, SplitRows], limit: int | float | None
    ) -> list[Sample]:
        """The first ``limit`` rows of each asked split, made ready to be put to a model. Raises
        DataError, TaskError or MetricError where rows, templates and metric do not fit together.
        """

    @abstractmethod
    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        """What a model is asked about a sample, in rounds: all samples' first rounds are asked
        together, then their second. Every request's id begins with ``self.request_id(sample)``.
        """

    @abstractmethod
    def record(self, sample: Sample, answers: Sequence[Answer]) -> SampleRecord:
        """A sample's record from its answers, in the order of its requests. It is made after every
        round; the last one counts. Raises MetricError where the answers cannot be scored.
        """

    def of_one_run(self, records: Sequence[SampleRecord]) -> list[SampleRecord]:
        """The records with those figures that all of them have; says which are left out."""
        return list(records)

    def summarize(
        self, records: Sequence[SampleRecord], reference: TaskReference | None, seed: int
    ) -> dict[str, object]:
        """``TaskResult``'s n and mean score x 100; MetricError where they are no finite value."""
        own = records_of(self, AnswerRecord, records)
        return mean_of_scores([r.score for r in own], [r.scores for r in own], seed)

    def request_id(self, sample: Sample) -> str:
        """The id of a sample's only request, or how the ids of its requests begin."""
        return f"{self.task}:{sample.id}"

    def fit(
        self, samples: Sequence[Sample], truncate: Callable[[str, int], str]
    ) -> Sequence[Sample]:
        """The samples for one model, whose tokenizer cuts a text to a number of tokens."""
        return samples

    def plain_text(self, row: Row, where: str) -> str:
        """A row as a text to read: a question with its answer, without shots."""
        return render_field(self.doc_to_text, row, where)

    def with_decoding(self, given: Mapping[str, object]) -> TaskSpec:
        """With ``--gen-kwargs`` in place of its own decoding; OptionError for a senseless value."""
        return self

    def without_blank(self) -> TaskSpec | None:
        """The version whose prompt leaves its last blank to the answer; None: there is none."""
        return None

    def harness_config(self) -> dict[str, object] | None:
        """The task as lm-evaluation-harness puts it; None where it cannot run there."""
        return None

    def figures(self) -> set[str]:
        """The names of every record's further figures."""
        return set()

    def rescore(self, record: SampleRecord, imported: bool = False) -> Held:
        """MetricError for others' facts, or too few; ``imported``: optional ones may be missing."""
        return {}

    def stated_reference(self, config: Mapping[str, object]) -> TaskReference:
        """The reference that the task states for the base model of this ``config.json``. Raises
        OptionError where it states none, or only for another base model.
        """
        raise OptionError(f"{self.task} states no reference")

    def stated_aucs(self) -> tuple[float, ...]:
        """The AUC of every reference that the task states, in the file's order."""
        return ()

    def reference_scores(self, records: Sequence[SampleRecord]) -> ReferenceScores:
        """What the retrained model's records give as a reference."""
        raise MetricError(f"{self.task} is measured against no reference")

    def against(
        self, records: Sequence[SampleRecord], reference: ReferenceScores, seed: int
    ) -> Estimate:
        """The value against a reference, no other figure; MetricError where it is not finite."""
        raise MetricError(f"{self.task} is measured against no reference")


class QuestionTask(TaskSpec):
    """The fields of a task whose rows are questions with answers."""

    want: Literal["low", "high"]
    test_split: Name
    doc_to_target: str
    target_delimiter: str = " "
    """Between the prompt and each answer; none behind a chat template."""

    has_prompts: ClassVar[bool] = True

    @model_validator(mode="after")
    def _its_split_is_pinned(self) -> QuestionTask:
        require_pins(self, "test_split")
        return self

    @property
    def asked_splits(self) -> tuple[str, ...]:
        return (self.test_split,)

    def plain_text(self, row: Row, where: str) -> str:
        question = render_field(self.doc_to_text, row, where)
        return question + self.target_delimiter + render_field(self.doc_to_target, row, where)


def place_of(spec: TaskSpec, split: str) -> tuple[str, str]:
    """The subset of the data set that holds a split, and what it is called there. Most kinds of
    task have one subset.
    """
    places: Mapping[str, tuple[str, str]] = getattr(spec, "places", {})
    return places.get(split, (spec.dataset_name, split))


def records_of(spec: TaskSpec, kind: type[R], records: Sequence[SampleRecord]) -> list[R]:
    """``records``, shown to be the task's own; MetricError where one is not, or there is none."""
    found: list[R] = [record for record in records if isinstance(record, kind)]
    if not records or len(found) != len(records) or any(r.task != spec.task for r in records):
        raise MetricError(f"{spec.task}: no records, or one is of another kind or task")
    return found


def mean_of_scores(
    scores: Sequence[float], figures: Sequence[Mapping[str, float]], seed: int
) -> dict[str, object]:
    """The fields of ``TaskResult`` for a mean of scores from 0 to 1 and of further figures."""
    from unlearnbench.metrics.intervals import Values, draw, finite, mean

    n = len(scores)
    found = mean(Values(100 * finite(scores), (0.0, 100.0)), draw(n, seed))
    further = {name: 100 * sum(each[name] for each in figures) / n for name in figures[0]}
    fields = {"value": found.value, "stderr": found.stderr, "ci": found.ci}
    return {"n": n, **fields, "intervals": "bounded", "scores": further}


def require_pins(spec: TaskSpec, *fields: str) -> None:
    """Raise ValueError where a field names a split that ``splits`` does not pin."""
    for field in fields:
        split = getattr(spec, field)
        if split is not None and split not in spec.splits:
            raise ValueError(f"{field}: splits has no entry for {split}")


@cache
def metric_modules() -> dict[str, ModuleType]:
    """Every metric by its name: the files in the folder of metrics that have one."""
    files = sorted(found.name for found in pkgutil.iter_modules(metrics.__path__))
    modules = [import_module(f"{metrics.__name__}.{name}") for name in files]
    return {module.NAME: module for module in modules if hasattr(module, "NAME")}


def _metric(name: str, function: str) -> ModuleType:
    known = metric_modules()
    if not hasattr(known.get(name), function):
        raise MetricError(f"no metric {name!r} of this kind; known: {', '.join(sorted(known))}")
    return known[name]


def generation_metric(name: str) -> GenerationMetric:
    """The metric for outputs called ``name``; MetricError where there is none."""
    return cast("GenerationMetric", _metric(name, "score_output"))


def likelihood_metric(name: str) -> LikelihoodMetric:
    """The metric for token log-probabilities called ``name``; MetricError where there is none."""
    return cast("LikelihoodMetric", _metric(name, "score_text"))
