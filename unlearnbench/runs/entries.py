"""Run folders as they are compared: read, grouped by checkpoint, and held against each other."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unlearnbench.errors import OptionError, ResultError, one_line
from unlearnbench.results import (
    DTYPE_BITS,
    FULL,
    STORED,
    RunResult,
    SampleRecord,
    TaskResult,
)
from unlearnbench.runs.fingerprint import (
    ASKED,
    Fingerprint,
    across_sha256,
    differences,
    tokenizer_sha256,
)
from unlearnbench.runs.folder import ASIDE, RunFolder, read_run

FULL_BITS = 16


@dataclass(frozen=True)
class LoadedRun:
    """A run folder's result; its records are read, and held against their hash, when asked for."""

    path: Path
    result: RunResult
    given: Mapping[str, list[SampleRecord]] | None = None
    """Records by task where they do not come from the folder."""
    _records: dict[str, list[SampleRecord]] = field(default_factory=dict, init=False, repr=False)

    @property
    def condition(self) -> str:
        """The condition's full name."""
        return self.result.condition.name

    @property
    def where(self) -> str:
        """Its folder; its file and condition where it does not come from one."""
        return str(self.path) if self.given is None else f"{self.path} at {self.condition}"

    @property
    def bits(self) -> float | None:
        """Bits of a weight as products took it. Older files say what is stored, where the compute
        dtype may be narrower.
        """
        bits, width = self.result.condition.options.bits, DTYPE_BITS.get(self.result.settings.dtype)
        return min(bits, width) if bits and width else bits

    def task(self, name: str) -> TaskResult:
        """A task's result. Raises ResultError where the run has no such task."""
        if name not in self.result.tasks:
            raise ResultError(f"{self.path} has no {one_line(name)}; evaluate it first")
        return self.result.tasks[name]

    def records(self, name: str) -> list[SampleRecord]:
        """A task's records.

        Raises:
            ResultError: they are missing, changed, or not as many as the run says.
        """
        if name not in self._records:
            sha256 = self.task(name).records_sha256
            if self.given is None:
                found = RunFolder(self.path).read_records(name, sha256)
            else:
                found = self.given.get(name, [])
            kinds = {(type(record), record.task) for record in found}
            if [task for _, task in kinds] != [name]:
                raise ResultError(
                    f"{self.path}: {one_line(name)}: no records, or of more than one kind or task"
                )
            self._records[name] = found
        return self._records[name]


@dataclass(frozen=True)
class Entry:
    """One checkpoint's runs, by precision."""

    name: str
    runs: Mapping[str, LoadedRun]
    others: tuple[Entry, ...] = ()
    """Further trainings (seeds) of its recipe."""

    @property
    def trainings(self) -> tuple[Entry, ...]:
        """Every training of its recipe, itself the first."""
        return (self, *self.others)

    @property
    def full(self) -> LoadedRun:
        """The run in full precision.

        Raises:
            ResultError: there is none, or the checkpoint was quantized already.
        """
        run = self.at(FULL)
        if run.bits is not None and run.bits < FULL_BITS:
            raise ResultError(
                f"{run.path} is no run in full precision: its checkpoint is quantized already "
                f"({one_line(run.result.condition.options.scheme, 80)}); evaluate the unquantized "
                "one"
            )
        return run

    def at(self, precision: str) -> LoadedRun:
        """The run at a precision. Raises ResultError where there is none."""
        if precision not in self.runs:
            have = ", ".join(self.runs)
            raise ResultError(f"{self.name} has no run at {precision}, only at {have}; make one")
        return self.runs[precision]


def load_entries(paths: Sequence[Path]) -> list[Entry]:
    """Read run folders, and all runs below other folders, and group them by checkpoint: entries
    called by its base name, with 8 digits of its hash where several have that name.

    Raises:
        OptionError: no run is there, or two of one checkpoint and precision, or those of one
            checkpoint differ as ``require_alike`` says.
        ResultError: a run is damaged, or rests on a part of its samples.
    """
    groups: dict[str, dict[str, LoadedRun]] = {}
    for folder in dict.fromkeys(found for path in paths for found in _run_folders(path)):
        run = LoadedRun(folder, read_run(folder))
        require_whole(run)
        runs = groups.setdefault(_checkpoint_key(run.result), {})
        if run.condition in runs:
            raise OptionError(
                f"{folder} and {runs[run.condition].path} are both runs of one checkpoint at "
                f"{run.condition}; give one of them"
            )
        runs[run.condition] = run
    named = []
    for runs in groups.values():
        checkpoint = next(iter(runs.values())).result.checkpoint
        base = checkpoint.path
        if checkpoint.format != "imported":  # whose names nest, as in ga/step=102
            base = base.rstrip("/").rsplit("/", 1)[-1] or "model"
        named.append((base, checkpoint.weights_sha256[:8], runs))
    bases = [base for base, _, _ in named]
    entries = [
        Entry(base if bases.count(base) == 1 else f"{base}-{digits}", runs)
        for base, digits, runs in named
    ]
    for entry in entries:
        require_alike(entry)
    return entries


def join_trainings(entries: Sequence[Entry]) -> list[Entry]:
    """Entries whose ``unlearning.json`` differs in the seed alone as one, called by what their
    names begin with alike.
    """
    groups: dict[object, list[Entry]] = {}
    seen, taken = set[object](), {entry.name for entry in entries}
    for number, entry in enumerate(entries):
        run = next(iter(entry.runs.values())).result
        # Else a stranger's copy of a recipe would be averaged in; these three depend on the seed.
        facts = run.checkpoint.origin.items()
        given = tuple(sorted(f for f in facts if f[0] not in ("seed", "steps", "selected")))
        recipe = given, tuple(sorted(entry.runs)), tuple(sorted(run.tasks))
        training = recipe, run.checkpoint.origin.get("seed")
        alone = "recipe" not in run.checkpoint.origin or training in seen  # no second training
        seen.add(training)
        groups.setdefault(number if alone else recipe, []).append(entry)
    joined = []
    for first, *others in groups.values():
        if others:
            names = [first.name, *(other.name for other in others)]
            alike = os.path.commonprefix(names)  # noqa: RUF071 - names, not paths
            name = re.sub(r"[-_.]+((s|seed)[-_.]*\d*)?$", "", alike)
            clear = name and (name not in taken or name in names)
            first = replace(first, name=name if clear else first.name, others=tuple(others))
            taken.add(first.name)
        joined.append(first)
    return joined


def _run_folders(path: Path) -> list[Path]:
    if (path / "run.json").is_file():
        return [path]
    below = path.rglob("run.json") if path.is_dir() else ()
    files = [file for file in below if file.is_file()]  # a pipe would never end
    # What --fresh set aside is no run to compare; one that is given itself is.
    found = sorted(f.parent for f in files if ASIDE not in f.relative_to(path).parts)
    if not found:
        raise OptionError(f"{path}: no run.json there or below; give a run folder")
    return found


def _checkpoint_key(result: RunResult) -> str:
    """What makes two runs runs of one checkpoint."""
    checkpoint = result.checkpoint
    if checkpoint.format == "imported":  # its weights are not known, only whose results they are
        return f"imported {checkpoint.path}"
    return f"{checkpoint.weights_sha256} {checkpoint.adapter}"


def run_key(run: LoadedRun) -> str:
    """The same for two runs of one checkpoint at one precision."""
    return f"{_checkpoint_key(run.result)} {run.condition}"


def require_whole(run: LoadedRun) -> None:
    """Raise ResultError where a task of a run rests on a part of its samples."""
    for name, task in run.result.tasks.items():
        if task.drawn is not None:
            raise ResultError(
                f"{run.where}: {one_line(name, 80)} was decided on {task.n} of {task.drawn.of} "
                "samples; evaluate it whole, by the same command without --until-decided"
            )


def require_comparable(run: LoadedRun, base: LoadedRun, tasks: Sequence[str]) -> None:
    """Show that two runs measured the same thing.

    Raises:
        OptionError: they differ in protocol, tokenizer, or a task's version, data or samples.
        ResultError: a task or its records are missing or damaged.
    """
    _require_same(run, base, _protocol(base, run), _protocol(run, base))
    for name in tasks:
        _require_same(run, base, _task(base, name), _task(run, name), f"{name}: ")


def require_same_condition(run: LoadedRun, base: LoadedRun) -> None:
    """Show that two runs under one condition had the same done to their weights. (Their kernels may
    differ: the weights are the same.)

    Raises:
        OptionError: they differ in scheme, in an option, or in the calibration texts.
    """
    there, here = (Fingerprint.of_condition(r.result.condition) for r in (base, run))
    _require_same(run, base, there, here, f"{run.condition}: ")


def require_alike(entry: Entry) -> None:
    """Show that an entry's runs differ in what is done to the weights alone.

    Raises:
        OptionError: two differ in tokenizer, in compute dtype (a storage precision has its own), or
            in the seed where answers are sampled.
    """
    first: dict[str, tuple[LoadedRun, object]] = {}
    one = next(iter(entry.runs.values()))
    for run in entry.runs.values():
        _require_same(run, one, _tokenizer(one, run), _tokenizer(run, one))
        settings, facts = run.result.settings, dict[str, object]()
        if run.condition not in STORED or run.condition == FULL:
            facts["dtype"] = settings.dtype
        if samples_answers(run.result):
            facts["seed"] = settings.seed
        for option, fact in facts.items():
            other, theirs = first.setdefault(option, (run, fact))
            if theirs != fact:
                raise OptionError(
                    f"{other.where} was made with {option} {one_line(theirs, 20)} and {run.where} "
                    f"with {one_line(fact, 20)}, so more than the weights differs; evaluate one of "
                    f"them anew (--fresh) with the other's --{option}"
                )


def samples_answers(result: RunResult) -> bool:
    """Whether answers are drawn, so that the seed moves them; greedy ones it does not."""
    settings = result.settings
    by_settings = settings.protocol == "zhang2025" or '"do_sample": true' in (
        settings.gen_kwargs or ""
    )
    return by_settings or any(_draws(result, task) for task in result.tasks.values())


def _draws(result: RunResult, task: TaskResult) -> bool:
    """Whether a task's own answers are drawn; what a condition draws (``sample-N``) has the seed of
    its name.
    """
    condition = result.condition.first or result.condition
    is_condition = condition.kind == "asked" and "answers" in condition.options.further
    return task.sampled is not None or (task.leak is not None and not is_condition)


def _require_same(
    run: LoadedRun, base: LoadedRun, there: Fingerprint, here: Fingerprint, where: str = ""
) -> None:
    if there != here:
        raise OptionError(
            f"{run.path} cannot be compared with {base.path}: {where}{differences(there, here)[0]}"
        )


def _protocol(run: LoadedRun, other: LoadedRun) -> Fingerprint:
    settings, names = run.result.settings, ("gen_kwargs", "truncate_left", *ASKED, "backend")
    facts = {"protocol": run.result.protocol, "chat template": settings.chat_template_sha256}
    facts |= {name: getattr(settings, name) for name in names}
    found = across_sha256(run.result.checkpoint, other.result.checkpoint)
    return Fingerprint.of({**facts, "tokenizer": found})


def _tokenizer(run: LoadedRun, other: LoadedRun) -> Fingerprint:
    found = tokenizer_sha256(run.result.checkpoint, other.result.checkpoint)
    return Fingerprint.of({"tokenizer": found})


def _task(run: LoadedRun, name: str) -> Fingerprint:
    """A task's definition, data and samples; texts too, where its records hold some."""
    task, records = run.task(name), run.records(name)
    rules: dict[str, object] = {"metric": task.metric, "want": task.want, "attack": task.attack}
    rules["seed of its draws"] = run.result.settings.seed if _draws(run.result, task) else None
    texts = {
        f"the {field} of {record.id}": getattr(record, field, None)
        for record in records
        for field in ("prompt", "target", "split")
    }
    return (
        Fingerprint.of(rules)
        | Fingerprint.of_task(task.version, task.task_sha256, task.data)
        | Fingerprint.of_samples("samples", [record.id for record in records])
        | Fingerprint.of(texts)
    )
