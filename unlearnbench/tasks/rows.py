"""A task's rows, from a local folder, the package or the Hugging Face hub, and the samples made of
them: read, checked and limited before any model is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import DataError, MetricError, one_line
from unlearnbench.requests import Answer, Request
from unlearnbench.results import SampleRecord, Settings, SplitData, TaskResult
from unlearnbench.tasks.asking import Asking
from unlearnbench.tasks.spec import Row, Sample, SplitRows, TaskReference, TaskSpec, place_of
from unlearnbench.util.process import quiet_hub

PACKAGE_DATA = Path(__file__).resolve().parent.parent / "demo" / "data"


@dataclass(frozen=True)
class DataOptions:
    """Where rows may come from, and whether other rows than the pinned ones are allowed."""

    data_dir: Path | None = None
    allow_drift: bool = False


@dataclass(frozen=True)
class TaskSamples:
    """A task, the rows behind it and its samples in row order."""

    spec: TaskSpec
    splits: Mapping[str, SplitRows]
    samples: tuple[Sample, ...]
    asking: Asking | None = None
    """How a condition puts them to a model; None: as the task does; ``unchanged``: none fits it."""
    unchanged: bool = False

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        """See ``TaskSpec.requests``."""
        return (self.asking or self.spec).requests(sample, settings)

    def record(self, sample: Sample, answers: Sequence[Answer]) -> SampleRecord:
        """See ``TaskSpec.record``."""
        return (self.asking or self.spec).record(sample, answers)

    @property
    def data(self) -> tuple[SplitData, ...]:
        """What was read, as results record it."""
        splits = self.splits.values()
        return tuple(SplitData.model_validate(vars(s) | {"rows": len(s.rows)}) for s in splits)

    def ids(self, split: str) -> tuple[str, ...]:
        """The samples of one split, in row order."""
        return tuple(sample.id for sample in self.samples if sample.split == split)

    def result(
        self,
        records: Sequence[SampleRecord],
        records_sha256: str,
        reference: TaskReference | None,
        seed: int,
    ) -> TaskResult:
        """The task's result from its records; MetricError where they are not those of the samples,
        or give no finite value.
        """
        if [record.id for record in records] != [sample.id for sample in self.samples]:
            raise MetricError(f"{self.spec.task}: the records are not those of the task's samples")
        found = task_result(self.spec, records, records_sha256, seed, reference, self.data)
        more = {"searches": (self.asking and self.asking.found) or None}
        return found.model_copy(update=more | {"unchanged": self.unchanged or None})


def task_result(
    spec: TaskSpec,
    records: Sequence[SampleRecord],
    records_sha256: str,
    seed: int,
    reference: TaskReference | None = None,
    data: Sequence[SplitData] = (),
) -> TaskResult:
    """A task's result from records, whatever rows they are of; MetricError where they give none."""
    return TaskResult.model_validate(
        {
            "version": spec.version,
            "metric": spec.metric,
            "want": spec.want,
            "data": tuple(data),
            "task_sha256": spec.definition_sha256,
            "records_sha256": records_sha256,
            **spec.summarize(records, reference, seed),
        }
    )


def load_samples(
    spec: TaskSpec, options: DataOptions, limit: int | float | None = None
) -> TaskSamples:
    """Load a task's rows and make its samples, see ``limited_count``. Raises DataError, TaskError
    or MetricError where the rows are not what the task, its templates or its metric need.
    """
    splits = load_splits(spec, options)
    samples = spec.make_samples(splits, limit)
    for sample in samples:
        if not sample.text:
            raise DataError(f"{spec.task}: {sample.id} is empty; remove the row")
        try:
            "".join((sample.text, sample.target, *sample.answers)).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"{spec.task}: {sample.id} holds half of a surrogate pair, which no tokenizer "
                "reads; correct the row"
            ) from None
    return TaskSamples(spec, splits, tuple(samples))


def limited_count(rows: int, limit: int | float | None) -> int:
    """How many of ``rows`` a limit leaves; below 1 it is a share, rounded up as lm-eval does."""
    if limit is None:
        return rows
    return min(rows, math.ceil(rows * limit) if limit < 1 else int(limit))


def limited(rows: Sequence[Row], limit: int | float | None) -> Sequence[Row]:
    """The first rows that a limit leaves."""
    return rows[: limited_count(len(rows), limit)]


def rows_sha256(rows: Iterable[Row]) -> str:
    """Hash rows by content, whatever file format or hub they came from.

    SHA-256 over one line of JSON a row (keys sorted, no blanks, ASCII escapes); a key whose value
    is null counts as absent, because Arrow adds such keys. Raises DataError where a field holds
    what JSON cannot.
    """
    digest = hashlib.sha256()
    for row in rows:
        present = {key: value for key, value in row.items() if value is not None}
        try:
            line = json.dumps(present, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        except (TypeError, ValueError):
            plain = (str, int, float, list, dict)
            odd = {k: type(v).__name__ for k, v in present.items() if not isinstance(v, plain)}
            kinds = ", ".join(f"{key!r} ({kind})" for key, kind in odd.items()) or "nested"
            raise DataError(
                f"a row holds what JSON cannot, in one of its fields {one_line(kinds, 200)}"
            ) from None
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()


def load_splits(spec: TaskSpec, options: DataOptions) -> dict[str, SplitRows]:
    """Read and check every split that a task uses, by split name. Raises DataError where one is
    missing, malformed, empty, or differs from its pin in count or hash and ``allow_drift`` is off.
    """
    return {split: _load_split(spec, split, options) for split in spec.used_splits}


def _load_split(spec: TaskSpec, split: str, options: DataOptions) -> SplitRows:
    rows, source = _find_rows(spec, split, options)
    what = f"{spec.task}: split {split!r} ({source})"
    if not rows:
        raise DataError(f"{what} has no rows; a score over nothing would read as forgotten")
    try:
        digest = rows_sha256(rows)
    except DataError as error:
        raise DataError(f"{what}: {error}") from None
    pin, drift = spec.splits[split], None
    if len(rows) != pin.rows:
        drift = f"{len(rows)} rows instead of {pin.rows}"
    elif pin.sha256 and digest != pin.sha256:
        drift = f"content hash {digest[:12]} instead of {pin.sha256[:12]}"
    if drift and not options.allow_drift:
        raise DataError(
            f"{what} is not the pinned data: {drift}; get the pinned rows, or pass "
            "--allow-data-drift to run on these and record it"
        )
    return SplitRows(split, tuple(rows), source, digest, drift)


def _find_rows(spec: TaskSpec, split: str, options: DataOptions) -> tuple[list[Row], str]:
    """Local folder first, then the package, then the hub. A data folder that holds the data set
    is the last word: a split missing there is an error, never filled in from elsewhere.
    """
    folder = options.data_dir
    if folder is not None and not folder.is_dir():
        raise DataError(
            f"no data folder {folder}; --data-dir (or UNLEARNBENCH_DATA) is a folder laid out as "
            "<dataset_path>/<subset>/<split>.jsonl"
        )
    for root, source in ((folder, "local"), (PACKAGE_DATA, "package")):
        if root is not None and (root / spec.dataset_path).is_dir():
            return _read_local(root / spec.dataset_path, spec, split), source
    return _read_hub(spec, split, options), "hub"


def _read_local(root: Path, spec: TaskSpec, split: str) -> list[Row]:
    folder, there = (path := root.joinpath(*place_of(spec, split))).parent, path.name
    found = [there + suffix for suffix in _READERS if (folder / (there + suffix)).is_file()]
    if not found:
        raise DataError(
            f"{spec.task}: split {split!r} is missing: no {path}{'|'.join(_READERS)}; "
            "put the file there or use another --data-dir"
        )
    if len(found) > 1:
        raise DataError(f"{spec.task}: {folder} has {', '.join(found)}; keep one of them")
    return read_rows(folder / found[0])


def read_rows(path: Path) -> list[Row]:
    """Read a file of rows: ``.jsonl``, ``.json`` (a list, a list under ``data``, or a row a line)
    or ``.parquet``. A file of plain texts gives rows ``{"text": ...}``. Raises DataError where it
    cannot be read or a row is no object, with the line where there is one.
    """
    if path.suffix not in _READERS:
        raise DataError(f"{path}: a file of rows ends in {', '.join(_READERS)}")
    try:
        rows = _READERS[path.suffix](path)
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from None
    if rows and all(isinstance(row, str) for row in rows):
        return [{"text": row} for row in rows]
    bad = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
    if bad is not None:
        raise DataError(f"{path}: row {bad + 1} is no JSON object")
    return rows  # type: ignore[return-value]  # every row was just checked


def _read_jsonl(path: Path) -> Sequence[object]:
    import jsonlines

    # Opened here, not by jsonlines, so that only "\n" ends a line: texts may hold U+2028.
    with path.open(encoding="utf-8", newline="\n") as file, jsonlines.Reader(file) as reader:
        try:
            return list(reader.iter(skip_empty=True))
        except jsonlines.InvalidLineError as error:
            raise DataError(
                f"{path}:{error.lineno}: no valid JSON: {one_line(error.__cause__ or error, 200)}"
            ) from None


def _read_json(path: Path) -> Sequence[object]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # as Dataset.to_json names such files
            return _read_jsonl(path)
        raise DataError(f"{path}:{error.lineno}: no valid JSON: {error.msg}") from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{path}: no valid JSON: {one_line(error, 100)}") from None
    if isinstance(value, dict):  # one row alone is a file of one line
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a list of objects")
    return value


def _read_parquet(path: Path) -> Sequence[object]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[object] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: no valid parquet: {one_line(error, 200)}") from None
    return rows


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}


def _read_hub(spec: TaskSpec, split: str, options: DataOptions) -> list[Row]:
    """Fetch the data set's files at the task's revision, then read them with ``datasets``.

    In two steps, because ``load_dataset`` with a hub id prefers a folder of that name below the
    current one, and without a connection gives whatever revision it prepared last.
    """
    revision, (subset, there) = spec.dataset_kwargs.revision, place_of(spec, split)
    try:
        import datasets
        from huggingface_hub import snapshot_download

        quiet_hub()
        datasets.disable_progress_bars()
        folder = snapshot_download(spec.dataset_path, repo_type="dataset", revision=revision)
        loaded = datasets.load_dataset(folder, subset, split=there)
        return [dict(row) for row in loaded]
    except Exception as error:  # the hub client's errors have no common base; none becomes a score
        folder_tried = options.data_dir and f"{options.data_dir} has no {spec.dataset_path}"
        tried = folder_tried or "no data folder was given"
        raise DataError(
            f"{spec.task}: split {split!r} could not be loaded from the hub "
            f"({spec.dataset_path}@{revision}: {one_line(error, 200)}) and {tried}; pass "
            f"--data-dir FOLDER with {spec.dataset_path}/{subset}/{there}.jsonl"
        ) from error
