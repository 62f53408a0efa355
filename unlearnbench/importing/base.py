"""What every format shares: reading files, rescoring records and writing the run folder."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

from unlearnbench.errors import OptionError, ResultError, one_line
from unlearnbench.requests import Generated
from unlearnbench.results import (
    AnswerRecord,
    Checkpoint,
    Condition,
    ConditionOptions,
    GenerationRecord,
    ImportedFrom,
    LikelihoodRecord,
    RunResult,
    SampleRecord,
    Settings,
    TaskResult,
    kind_of_precision,
)
from unlearnbench.runs.fingerprint import describe_environment
from unlearnbench.runs.folder import RunFolder
from unlearnbench.tasks.registry import Registry, load_registry
from unlearnbench.tasks.rows import task_result
from unlearnbench.tasks.spec import Sample, TaskSpec
from unlearnbench.util.files import content_sha256, lock_folder, parse_json, read_bytes

Format = Literal["muse", "lm-eval", "open-unlearning", "tofu"]
FORMATS: tuple[Format, ...] = get_args(Format)
_LARGEST = 2**30
SAME = 1e-9
"""Two figures that differ by less are the same number, rounded differently."""
_SINGLE = 1e-6
_IN_SINGLE = ("probability", "probability_normalised")
"""Figures that open-unlearning computes in single precision."""


@dataclass(frozen=True)
class ImportOptions:
    """What to import, and where to."""

    format: Format
    folder: Path
    prefix: str
    """Names the tasks' family, and picks the corpus."""
    out: Path
    precision: str = "unknown"
    """What was measured."""
    include_path: tuple[Path, ...] = ()


@dataclass
class ModelResults:
    """One model's results, as a format's reader finds them in files below ``root``."""

    model: str
    root: Path
    files: dict[str, str] = field(default_factory=dict)
    """The hash of every file that was read."""
    records: dict[str, list[SampleRecord]] = field(default_factory=dict)
    versions: dict[str, float] = field(default_factory=dict)
    """The version of a task, where its prompts show another than its file has."""
    stated: dict[str, float] = field(default_factory=dict)
    """Figures that the files state, by ``task/figure``."""
    differences: dict[str, float] = field(default_factory=dict)
    """How far our figures are from the stated ones."""

    def read(self, path: Path) -> Any:
        """A JSON file's content, or a list of it where it has one value a line (``.jsonl``).
        Raises ResultError where it is no JSON. NaN and infinities are for the taker to refuse.
        """
        content = read_bytes(path, ResultError, _LARGEST)
        self.files[str(path.relative_to(self.root))] = hashlib.sha256(content).hexdigest()
        if path.suffix != ".jsonl":
            return parse_json(path, content, ResultError)
        lines = [line for line in content.split(b"\n") if line.strip()]
        return [parse_json(path, line, ResultError) for line in lines]

    def answer(self, spec: TaskSpec, number: int, row: Mapping[str, object]) -> None:
        """Rescore one answer: ``prompt``, ``output``, ``target`` and the figures that were stated.
        Raises ResultError where a text is missing, MetricError where the target cannot be scored.
        """
        name = f"{spec.own_split}/{number}"
        prompt, output, target = row.get("prompt", ""), row.get("output"), row.get("target")
        if not (isinstance(prompt, str) and isinstance(output, str) and isinstance(target, str)):
            raise ResultError(f"{self.model}: {spec.task}: {name} lacks its output or its target")
        sample = Sample(name, spec.own_split, prompt, target)
        record = spec.record(sample, [Generated(name, output, 0)])
        if isinstance(record, GenerationRecord):
            for figure, ours in {spec.headline: record.score, **record.scores}.items():
                self._hold(f"{spec.task}/{name}/{figure}", row.get(figure), ours)
            record = record.model_copy(update={"n_tokens": None})  # which is not stated
        self.records.setdefault(spec.task, []).append(record)

    def text(self, spec: TaskSpec, split: str, number: int, scores: object) -> None:
        """Take over one text's attack scores. NaN, which the mean of no token is, counts as a text
        too short for that attack; ResultError where another is not finite, or the task's is none.
        """
        where = f"{self.model}: {spec.task}: {split}/{number}"
        if not isinstance(scores, dict) or not scores:
            raise ResultError(f"{where} has no attack scores")
        given = {name: float(score) for name, score in scores.items() if is_number(score)}
        for name in [*scores.keys() - given.keys(), spec.headline]:
            if name not in given and (name == spec.headline or scores[name] == scores[name]):
                raise ResultError(f"{where}: {one_line(name, 60)} is no finite number")
        name = f"{split}/{number}"
        record = LikelihoodRecord(task=spec.task, id=name, split=split, scores=given)
        self.records.setdefault(spec.task, []).append(record)

    def state(self, task: str, figure: str, value: object, turned: bool = False) -> None:
        """Note a figure that the files state, or 1 minus it where that is ours (``turned``); what
        is no number is left out.
        """
        if is_number(value):
            self.stated[f"{task}/{figure}"] = 1 - float(value) if turned else float(value)

    def hold(self, task: str, result: TaskResult) -> None:
        """Compare what was stated of a task with what its records give."""
        ours: dict[str, float] = {}
        if result.auc is None and result.value is not None:
            ours = {f"mean_{key}": value / 100 for key, value in result.scores.items()}
            ours[f"mean_{result.metric}"] = result.value / 100
        ours |= {f"auc_{name}": attack.auc for name, attack in (result.attacks or {}).items()}
        for figure, value in ours.items():
            self._hold(f"{task}/{figure}", self.stated.get(f"{task}/{figure}"), value)

    def hold_row(
        self,
        record: AnswerRecord,
        figure: str,
        stated: object,
        ours: Mapping[str, float],
        within: float = SAME,
    ) -> None:
        """Compare one of a record's figures with what was stated; ``within``: rounding."""
        self._hold(f"{record.task}/{record.id}/{figure}", stated, ours[figure], within)

    def _hold(self, name: str, stated: object, ours: float, within: float = SAME) -> None:
        if name.rpartition("/")[2].removeprefix("mean_") in _IN_SINGLE:
            within = max(within, _SINGLE)
        if is_number(stated) and abs(ours - float(stated)) > within:
            self.differences[name] = ours - float(stated)


def rows_by_index(path: Path, block: object) -> list[tuple[int, dict[str, object]]]:
    """The rows of one of open-unlearning's metrics in index order; empty where it states none.
    Raises ResultError where a key is no index, or its value no row.
    """
    rows = block.get("value_by_index") if isinstance(block, dict) else None
    if not isinstance(rows, dict):
        return []
    found = []
    for key, row in rows.items():
        if not (str(key).isdecimal() and len(str(key)) < 10) or not isinstance(row, dict):
            raise ResultError(f"{path}: {one_line(key, 60)} is no index with a value")
        found.append((int(key), row))
    return sorted(found, key=lambda pair: pair[0])


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number that a float holds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


Reader = Callable[[Path, Registry, str], Iterator[ModelResults]]


def import_runs(options: ImportOptions) -> list[tuple[Path, RunResult]]:
    """Turn another tool's results into run folders ``out/<model>/<precision>``.

    Raises:
        OptionError: nothing of that format is there, or the folder holds another run already.
        ResultError: a file is damaged or holds a number that is not finite.
        TaskError: the prefix names no tasks.
    """
    if not options.folder.is_dir():
        raise OptionError(f"{options.folder}: no such folder to import")
    module = import_module(f"unlearnbench.importing.{options.format.replace('-', '_')}")
    registry = load_registry(options.include_path)
    registry.resolve([options.prefix])
    reader: Reader = module.read_results
    results = reader(options.folder, registry, options.prefix)
    written = [_write(options, registry, found) for found in results if found.records]
    if not written:
        raise OptionError(
            f"{options.folder} holds no {options.format} results of {options.prefix} with outputs "
            "or per-text scores"
        )
    return written


def _write(
    options: ImportOptions, registry: Registry, found: ModelResults
) -> tuple[Path, RunResult]:
    # A model's name may nest and may not climb.
    parts = [part for part in found.model.split("/") if part not in ("", ".", "..")]
    path = options.out.joinpath(*parts, options.precision)
    with lock_folder(path):
        if (path / "run.json").exists():
            raise OptionError(f"{path} holds a run already; use another --out")
        folder, tasks = RunFolder(path), {}
        for name, taken in sorted(found.records.items()):
            records = registry.tasks[name].of_one_run(taken)
            sha256 = folder.write_records(name, records)
            spec = registry.of_version(name, found.versions.get(name, 0.0))
            tasks[name] = task_result(spec, records, sha256, seed=0)
            found.hold(name, tasks[name])
        result = RunResult(
            checkpoint=Checkpoint(
                path=found.model,
                format="imported",
                weights_sha256=content_sha256(found.files),
                tokenizer_sha256=content_sha256({"imported": options.format}),
            ),
            condition=Condition(
                name=options.precision,
                kind=kind_of_precision(options.precision),
                options=ConditionOptions(scheme="unknown", backend="unknown"),
            ),
            protocol="muse",
            settings=Settings(
                protocol="muse", dtype="unknown", device="unknown", seed=0, ppl_lower=False
            ),
            tasks=tasks,
            environment=describe_environment("unknown", "unknown", None),
            imported=ImportedFrom(
                format=options.format,
                files=dict(sorted(found.files.items())),
                stated=found.stated,
                differences=found.differences,
            ),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        folder.write_run(result)
    return path, result
