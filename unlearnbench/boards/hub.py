"""Run folders and board entries to a data set repository of the Hugging Face hub, if asked to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.boards.entry import read_entry
from unlearnbench.errors import OptionError, ResultError, one_line
from unlearnbench.runs.folder import read_run
from unlearnbench.util.files import parse_json, read_bytes
from unlearnbench.util.process import quiet_hub

_KNOWN = ["run.json", "samples/*.jsonl", "lm_eval/samples_*.jsonl"]
_KNOWN += ["samples_*.jsonl", "results_*.json"]
# Keys of records and entries whose values are texts of a data set or of a model.
_TEXTS = {
    "prompt": "prompts",
    "arguments": "prompts",
    "output": "raw outputs",
    "resps": "raw outputs",
    "filtered_resps": "raw outputs",
    "target": "targets",
    "doc": "documents",
}


@dataclass(frozen=True)
class Upload:
    """One file, where it would go, and which texts it holds."""

    local: Path
    remote: str
    size: int
    texts: tuple[str, ...]


def plan_upload(paths: Sequence[Path]) -> list[Upload]:
    """The files of run folders (``results/<model>/<precision>/`` in the repository) and of board
    entries (``entries/<board>/<name>.json``). Anything else in a run folder stays here. Raises
    ResultError where a path is neither, OptionError where two files would go to one place.
    """
    places: dict[str, Upload] = {}
    for upload in (upload for path in paths for upload in _of(path)):
        first = places.setdefault(upload.remote, upload)
        if first is not upload:
            raise OptionError(f"{first.local} and {upload.local} would both be {upload.remote}")
    return list(places.values())


def _of(path: Path) -> Iterator[Upload]:
    path = path.resolve()
    if not path.is_dir():
        yield _upload(path, f"entries/{one_line(read_entry(path).board)}/{path.name}")
        return
    name = read_run(path).condition.name
    base = f"results/{path.parent.name if path.name == name else path.name}/{name}"
    for pattern in _KNOWN:
        for file in sorted(path.glob(pattern)):
            if file.is_symlink():
                raise ResultError(f"{file} is a link; what it points to is not sent")
            yield _upload(file, f"{base}/{file.relative_to(path).as_posix()}")


def _upload(path: Path, remote: str) -> Upload:
    """A file with which kinds of text it holds, and the local paths that it names."""
    content, found = read_bytes(path, ResultError), dict[str, None]()
    for line in content.splitlines() if path.suffix == ".jsonl" else [content]:
        _look(parse_json(path, line, ResultError), found)
    return Upload(path, remote, len(content), tuple(found))


def _look(value: object, found: dict[str, None]) -> None:
    if isinstance(value, list):
        for part in value:
            _look(part, found)
    elif isinstance(value, dict):
        for key, inner in value.items():
            text = isinstance(inner, str) and inner and not inner.startswith("sha256:")
            if key in _TEXTS and (text or isinstance(inner, (list, dict))):
                found[_TEXTS[key]] = None
            elif key in ("path", "pretrained") and isinstance(inner, str) and "/" in inner:
                found[f"the path {one_line(inner, 200)}"] = None
            else:
                _look(inner, found)


def describe(uploads: Sequence[Upload], repo: str, private: bool) -> str:
    """What would leave the machine, a line a file."""
    kind = "private" if private else "PUBLIC"
    total = sum(upload.size for upload in uploads)
    where = f"to the data set {one_line(repo, 200)}, {kind} if it is new"
    stays = "(an existing one stays as visible as it is)"
    lines = [f"{where} {stays}: {len(uploads)} files, {total:,} bytes"]
    for upload in uploads:
        holds = f"; holds {', '.join(upload.texts)}" if upload.texts else ""
        lines.append(f"  {upload.size:>12,}  {one_line(upload.remote)}{holds}")
    return "\n".join(lines)


def push(uploads: Sequence[Upload], repo: str, private: bool) -> str:
    """Make the repository where it is not there, add the files in one commit, return its address.
    ``private`` matters where the repository is new. OptionError where the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    quiet_hub()
    operations = [CommitOperationAdd(u.remote, u.local.read_bytes()) for u in uploads]
    message = f"Add {len(uploads)} files of unlearnbench"
    try:
        api = HfApi()
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        done = api.create_commit(repo, operations, commit_message=message, repo_type="dataset")
    except Exception as error:  # the hub client's errors have no common base
        raise OptionError(
            f"nothing was pushed to {one_line(repo, 200)}: {one_line(error, 300)}; see that it may "
            "be written (HF_TOKEN, or hf auth login)"
        ) from None
    return str(getattr(done, "commit_url", repo))
