"""The rows of a task: from a local folder, from the package, or from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import DataError, one_line
from unlearnbench.tasks.spec import Row, SplitRows, TaskSpec
from unlearnbench.util.process import quiet_hub

_SUFFIXES = (".jsonl", ".json", ".parquet")
PACKAGE_DATA = Path(__file__).resolve().parent.parent / "demo" / "data"


@dataclass(frozen=True)
class DataOptions:
    """Where rows may come from, and whether other rows than the pinned ones are allowed."""

    data_dir: Path | None = None
    allow_drift: bool = False


def rows_sha256(rows: Iterable[Row]) -> str:
    """Hash rows by content, whatever file format or hub they came from.

    SHA-256 over one line of JSON a row (keys sorted, no blanks, ASCII escapes); a key whose value
    is null counts as absent, because Arrow adds such keys.

    Raises:
        DataError: a field holds what JSON cannot.
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
    """Read and check every split that a task uses, by split name.

    Raises:
        DataError: a split is missing, malformed, empty, or differs from its pin in count or hash
            while ``allow_drift`` is off.
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
    drift = _drift(spec, split, len(rows), digest)
    if drift and not options.allow_drift:
        raise DataError(
            f"{what} is not the pinned data: {drift}; get the pinned rows, or pass "
            "--allow-data-drift to run on these and record it"
        )
    return SplitRows(split, tuple(rows), source, digest, drift)


def _drift(spec: TaskSpec, split: str, count: int, digest: str) -> str | None:
    pin = spec.splits[split]
    if count != pin.rows:
        return f"{count} rows instead of {pin.rows}"
    if pin.sha256 and digest != pin.sha256:
        return f"content hash {digest[:12]} instead of {pin.sha256[:12]}"
    return None


def _find_rows(spec: TaskSpec, split: str, options: DataOptions) -> tuple[list[Row], str]:
    """Local folder first, then the package, then the hub. A data folder that holds the data set
    is the last word: a split missing there is an error, never filled in from elsewhere.
    """
    if options.data_dir is not None:
        if not options.data_dir.is_dir():
            raise DataError(
                f"no data folder {options.data_dir}; --data-dir (or UNLEARNBENCH_DATA) is a folder "
                "laid out as <dataset_path>/<subset>/<split>.jsonl"
            )
        if (options.data_dir / spec.dataset_path).is_dir():
            return _read_local(options.data_dir, spec, split), "local"
    if (PACKAGE_DATA / spec.dataset_path).is_dir():
        return _read_local(PACKAGE_DATA, spec, split), "package"
    return _read_hub(spec, split, options), "hub"


def _read_local(root: Path, spec: TaskSpec, split: str) -> list[Row]:
    base = root / spec.dataset_path / spec.dataset_name / split
    found = [p for s in _SUFFIXES if (p := base.with_name(split + s)).is_file()]
    if not found:
        raise DataError(
            f"{spec.task}: split {split!r} is missing: no {base}{'|'.join(_SUFFIXES)}; "
            "put the file there or use another --data-dir"
        )
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise DataError(f"{spec.task}: {base.parent} has {names}; keep one of them")
    return read_rows(found[0])


def read_rows(path: Path) -> list[Row]:
    """Read a file of rows: ``.jsonl``, ``.json`` (a list of objects) or ``.parquet``.

    Raises:
        DataError: the file cannot be read or a row is no object; says the line where there is one.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise DataError(f"{path}: a file of rows ends in {', '.join(readers)}")
    try:
        rows = readers[path.suffix](path)
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from None
    bad = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
    if bad is not None:
        raise DataError(f"{path}: row {bad + 1} is no JSON object")
    return rows  # type: ignore[return-value]  # every row was just checked


def _read_jsonl(path: Path) -> Sequence[object]:
    import jsonlines

    # Opened here, not by jsonlines, so that only "\n" ends a line: texts may hold U+2028.
    with path.open(encoding="utf-8", newline="\n") as file, jsonlines.Reader(file) as reader:
        try:
            return list(reader.iter())
        except jsonlines.InvalidLineError as error:
            raise DataError(
                f"{path}:{error.lineno}: no valid JSON: {one_line(error.__cause__ or error, 200)}"
            ) from None


def _read_json(path: Path) -> Sequence[object]:
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: no valid JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{path}: no valid JSON: {one_line(error, 100)}") from None
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


def _read_hub(spec: TaskSpec, split: str, options: DataOptions) -> list[Row]:
    """Fetch the data set's files at the task's revision, then read them with ``datasets``.

    In two steps, because ``load_dataset`` with a hub id prefers a folder of that name below the
    current one, and without a connection gives whatever revision it prepared last.
    """
    revision = spec.dataset_kwargs.revision
    try:
        import datasets
        from huggingface_hub import snapshot_download

        quiet_hub()
        datasets.disable_progress_bars()
        folder = snapshot_download(spec.dataset_path, repo_type="dataset", revision=revision)
        loaded = datasets.load_dataset(folder, spec.dataset_name, split=split)
        return [dict(row) for row in loaded]
    except Exception as error:  # the hub client's errors have no common base; none becomes a score
        tried = f"{options.data_dir} has no {spec.dataset_path}" if options.data_dir else "no data"
        raise DataError(
            f"{spec.task}: split {split!r} could not be loaded from the hub "
            f"({spec.dataset_path}@{revision}: {one_line(error, 200)}) and {tried}"
            f"{'' if options.data_dir else ' folder was given'}; pass --data-dir FOLDER with "
            f"{spec.dataset_path}/{spec.dataset_name}/{split}.jsonl"
        ) from error
