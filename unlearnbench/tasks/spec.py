"""Task files: one YAML a task, checked strictly, and the registry that finds them by name.

Field names are lm-evaluation-harness's where they mean the same.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unlearnbench.errors import TaskError, one_line
from unlearnbench.util.yaml import YamlFile, read_text, read_yaml

PROTOCOLS = ("muse", "zhang2025")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]
# A folder below the data folder and an id on the hub: no empty part, no "..".
DatasetPath = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*$")
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


class SplitPin(_Strict):
    """What one split must hold. ``sha256`` is ``data.rows_sha256`` of all its rows, the real pin;
    absent where the text may not be pinned from here (MUSE-Books).
    """

    rows: int = Field(gt=0)
    sha256: Sha256 | None = None


class DatasetOptions(_Strict):
    """Keyword arguments of ``datasets.load_dataset``."""

    revision: str = "main"


class Metadata(_Strict):
    """``version`` changes whenever a task's scores may change."""

    version: float = Field(gt=0)


class GenerationOptions(_Strict):
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


class StatedReference(_Strict):
    """A published AUC of the retrained model, valid for one base model only.

    ``config`` holds the fields of that base model's ``config.json`` by which it is recognised.
    """

    auc: float = Field(gt=0, le=1)
    base_model: str
    config: dict[str, str | int] = Field(min_length=1)
    source: str


class TaskBase(_Strict):
    """What every task has. ``want``: the direction that means "forgot" or "kept"."""

    task: Name
    tag: tuple[Name, ...] = Field(default=(), strict=False)
    description: str = Field(min_length=1)
    dataset_path: DatasetPath
    dataset_name: Name
    dataset_kwargs: DatasetOptions = DatasetOptions()
    splits: dict[Name, SplitPin]
    metric: Name
    want: Literal["low", "high", "zero"]
    metadata: Metadata
    superseded_by: Name | None = None

    @property
    def version(self) -> float:
        """The task's version, as recorded in results."""
        return self.metadata.version

    @property
    def about(self) -> Literal["forget", "retain"]:
        """Whether the rows of ``own_split`` are to go or to stay."""
        return "retain" if self.want == "high" else "forget"


class GenerationTask(TaskBase):
    """Prompts to continue; each output is compared with a target text.

    ``max_target_toks`` cuts the target to that many token ids of the model's own tokenizer,
    special tokens counted. ``protocol_overrides`` changes decoding under a named protocol.
    """

    output_type: Literal["generate_until"]
    test_split: Name
    fewshot_split: Name | None = None
    num_fewshot: int = Field(default=0, ge=0)
    doc_to_text: str
    doc_to_target: str
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    max_target_toks: int | None = Field(default=None, gt=0)
    generation_kwargs: GenerationOptions
    protocol_overrides: dict[str, GenerationOptions] = {}

    @model_validator(mode="after")
    def _splits_are_pinned(self) -> GenerationTask:
        _require_pins(self, "test_split", "fewshot_split")
        unknown = sorted(set(self.protocol_overrides) - set(PROTOCOLS))
        if unknown:
            raise ValueError(
                f"protocol_overrides.{unknown[0]}: no protocol; known: {', '.join(PROTOCOLS)}"
            )
        if (self.fewshot_split is None) != (self.num_fewshot == 0):
            raise ValueError("num_fewshot: it and fewshot_split go together")
        if self.fewshot_split and self.splits[self.fewshot_split].rows < self.num_fewshot:
            raise ValueError(f"num_fewshot: more than the rows of split {self.fewshot_split!r}")
        return self

    @property
    def used_splits(self) -> tuple[str, ...]:
        """The splits that a run reads."""
        return (self.test_split, self.fewshot_split) if self.fewshot_split else (self.test_split,)

    @property
    def own_split(self) -> str:
        """The split that the task asks about, see ``about``."""
        return self.test_split

    def decoding(self, protocol: str) -> GenerationOptions:
        """The decoding options in force under ``protocol``."""
        return self.protocol_overrides.get(protocol, self.generation_kwargs)


class LikelihoodTask(TaskBase):
    """Texts to score token by token; two groups of texts are told apart by a membership attack."""

    output_type: Literal["token_loglikelihood"]
    member_split: Name
    nonmember_split: Name
    doc_to_text: str
    attack: str
    references: tuple[StatedReference, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _splits_are_pinned(self) -> LikelihoodTask:
        _require_pins(self, "member_split", "nonmember_split")
        if self.member_split == self.nonmember_split:
            raise ValueError("nonmember_split: it and member_split must differ")
        return self

    @property
    def used_splits(self) -> tuple[str, ...]:
        """The splits that a run reads."""
        return (self.member_split, self.nonmember_split)

    @property
    def own_split(self) -> str:
        """The split of the texts that were learned, see ``about``."""
        return self.member_split


TaskSpec: TypeAlias = GenerationTask | LikelihoodTask
_KINDS: dict[str, type[GenerationTask] | type[LikelihoodTask]] = {
    "generate_until": GenerationTask,
    "token_loglikelihood": LikelihoodTask,
}


def _require_pins(spec: TaskBase, *fields: str) -> None:
    for field in fields:
        split = getattr(spec, field)
        if split is not None and split not in spec.splits:
            raise ValueError(f"{field}: splits has no entry for {split}")


@dataclass(frozen=True)
class Registry:
    """Every task that was found, by name, and the file that each came from."""

    tasks: dict[str, TaskSpec]
    files: dict[str, Path]

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Task names by group (``tag``), in name order."""
        found: dict[str, list[str]] = {}
        for spec in self.tasks.values():
            for tag in spec.tag:
                found.setdefault(tag, []).append(spec.task)
        return {tag: tuple(names) for tag, names in sorted(found.items())}

    def resolve(self, wanted: Iterable[str]) -> tuple[TaskSpec, ...]:
        """Return the tasks that names, groups and globs stand for, each once, in the order given.

        Raises:
            TaskError: nothing was asked for, or a name stands for no task (near ones are named).
        """
        names: dict[str, None] = {}
        for word in wanted:
            names.update(dict.fromkeys(self._expand(word)))
        if not names:
            raise TaskError("no task was asked for; `unlearnbench tasks` lists them")
        return tuple(self.tasks[name] for name in names)

    def knows(self, word: str) -> bool:
        """Whether a name, group or glob stands for a task."""
        return bool(self._matching(word))

    def _expand(self, word: str) -> Sequence[str]:
        matches = self._matching(word)
        if not matches:
            raise TaskError(self._unknown(word))
        return matches

    def _matching(self, word: str) -> Sequence[str]:
        groups = self.groups
        if word in self.tasks:
            return (word,)
        if word in groups:
            return groups[word]
        return [name for name in self.tasks if fnmatch.fnmatchcase(name, word)]

    def _unknown(self, word: str) -> str:
        near = difflib.get_close_matches(word, [*self.tasks, *self.groups], n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`unlearnbench tasks` lists them"
        return f"unknown task or group {one_line(word)!r}: {hint}"


def split_names(text: str | Sequence[str]) -> list[str]:
    """Split a comma list as the command line takes it; blanks around names do not count."""
    parts = text.split(",") if isinstance(text, str) else list(text)
    return [part.strip() for part in parts if part.strip()]


def builtin_task_dir() -> Path:
    """The folder of the tasks that come with the package: in the wheel, or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_tasks"
    return shipped if shipped.is_dir() else package.parent / "tasks"


def load_registry(include_path: Sequence[str | Path] = ()) -> Registry:
    """Read the package's tasks and those of the user's own folders.

    Raises:
        TaskError: a folder has no task file, or a file is wrong; says the file and the line.
    """
    tasks: dict[str, TaskSpec] = {}
    files: dict[str, Path] = {}
    shipped = builtin_task_dir()
    for folder in (shipped, *map(Path, include_path)):
        for path in _task_files(folder):
            if folder != shipped and is_lm_eval_file(path):
                continue  # lm-eval reads those itself, see unlearnbench.lm_eval
            spec = read_task(path)
            if spec.task in files:
                where = read_yaml(path).where("task")
                raise TaskError(f"{where}: task {spec.task!r} is already in {files[spec.task]}")
            tasks[spec.task], files[spec.task] = spec, path
    registry = Registry(dict(sorted(tasks.items())), files)
    clash = sorted(set(registry.groups) & set(tasks))
    if clash:
        where = read_yaml(files[clash[0]]).where("task")
        raise TaskError(f"{where}: {clash[0]!r} is both a task and a group; rename one")
    return registry


def _task_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise TaskError(f"no task folder {folder}; --include-path takes a folder of YAML files")
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError as error:
        raise TaskError(f"task folder {folder} cannot be read ({error.strerror})") from None
    if not files and next(folder.rglob("*.yaml"), None) is None:  # lm-eval looks below, too
        raise TaskError(f"no *.yaml in task folder {folder}; each task is one YAML file")
    return files


def is_lm_eval_file(path: Path) -> bool:
    """Whether a YAML file is a task or group of lm-eval's: it has what names one there, and none of
    the keys that every task of ours has and lm-eval does not know.
    """
    try:
        text = read_text(path)
    except TaskError:
        return False  # whoever reads it says why
    keys = set(re.findall(r"^([a-z_]+):", text, re.MULTILINE))
    return (
        bool(keys & {"task", "group"})
        and not keys & {"splits", "metric", "want"}
        and bool(
            keys & {"group", "class", "include", "metric_list", "process_results", "doc_to_choice"}
            or {"dataset_path", "doc_to_target"} <= keys
        )
    )


def read_task(path: Path) -> TaskSpec:
    """Read and check one task file.

    Raises:
        TaskError: it is no YAML, has an unknown key, a bad type or a name other than its file's.
    """
    source = read_yaml(path)
    kind = _kind(source)
    try:
        spec = kind.model_validate(source.value)
    except ValidationError as error:
        raise TaskError(source.fault(error)) from None
    if spec.task != path.stem:
        where = source.where("task")
        raise TaskError(f"{where}: task is {spec.task!r} but the file's name is {path.stem!r}")
    return spec


def _kind(source: YamlFile) -> type[GenerationTask] | type[LikelihoodTask]:
    output_type = source.value.get("output_type")
    if not isinstance(output_type, str) or output_type not in _KINDS:
        where, known = source.where("output_type"), ", ".join(_KINDS)
        raise TaskError(f"{where}: output_type must be one of {known}, not {output_type!r}")
    return _KINDS[output_type]
