"""lm-eval's tasks found by name and loaded, data and all, before any model is."""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import logging
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unlearnbench.errors import TaskError, UnlearnbenchError, one_line
from unlearnbench.lm_eval import BRIDGE
from unlearnbench.lm_eval.__main__ import require_lm_eval

log = logging.getLogger("unlearnbench")


@dataclass
class Loaded:
    """lm-eval's task and group objects by name, and a line for every name that failed to load."""

    tasks: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@contextmanager
def quiet_harness() -> Iterator[None]:
    """lm-eval's notes, the libraries' warnings and what they print to standard output stay off the
    screen, where results go; progress bars and errors do not.
    """
    theirs = logging.getLogger("lm_eval")
    level = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.setLevel(level)


def named(
    words: Sequence[str], include_path: Sequence[str | Path], ours: Collection[Path]
) -> set[str]:
    """Which names and globs task files of lm-eval's may define. So a mistyped name is refused after
    a second; lm-eval's own index, which has the last word, takes ten for its 14,000 files.

    ours: files of the user's folders that are not lm-eval's.
    """
    found = importlib.util.find_spec("lm_eval")
    defined = set(_packaged(Path(found.origin).parent)) if found and found.origin else set()
    for folder in (BRIDGE, *map(Path, include_path)):
        defined |= _names(set(folder.rglob("*.yaml")).difference(ours))
    return {word for word in words if fnmatch.filter(defined, word)}


@functools.cache
def _packaged(package: Path) -> frozenset[str]:
    return frozenset(_names((package / "tasks").rglob("*.yaml")))


_NAME = re.compile(
    r"""^[ \t]*(?:-[ \t]*)?(?:(?:task|group|tag):[ \t]*)?["']?([^\s"']+)["']?[ \t]*(?:\#.*)?$""",
    re.MULTILINE,
)


def _names(files: Iterable[Path]) -> set[str]:
    """Words that stand alone behind ``task:``, ``group:`` or ``tag:``, or in a list."""
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    return {name for text in texts for name in _NAME.findall(text)}


@contextmanager
def data_folder(root: str | Path | None) -> Iterator[None]:
    """Our own tasks under lm-eval look for their rows where the environment says."""
    before = os.environ.get("UNLEARNBENCH_DATA")
    if root is not None:
        os.environ["UNLEARNBENCH_DATA"] = str(root)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("UNLEARNBENCH_DATA", None)
        else:
            os.environ["UNLEARNBENCH_DATA"] = before


def load_tasks(names: Sequence[str], include_path: Sequence[str | Path], trust: bool) -> Loaded:
    """Load what ``names`` stand for: tasks, groups, tags and globs, as lm-eval resolves them.

    trust: let task files of ``include_path`` run Python (``!function``, ``class``).

    Raises:
        OptionError: lm-eval is not installed.
        TaskError: a name is unknown, or a user's task file would run Python.
    """
    require_lm_eval()
    found = Loaded()
    with quiet_harness():
        import datasets

        datasets.disable_progress_bars()
        manager = _index(names, include_path)
        if trust and include_path:
            log.warning(
                "--confirm-run-unsafe-code: task files may run Python, with all your rights"
            )
        for name in _expand(manager, names):
            if not trust:
                _require_no_code(manager, name, [Path(p).resolve() for p in include_path])
            _load(manager, name, found)
    return found


def _load(manager: Any, name: str, found: Loaded) -> None:
    try:
        loaded = manager.load([name])
    except UnlearnbenchError as error:
        found.failed[name] = str(error)
        return
    except Exception as error:  # a data set, a script or a template can fail in any way
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        found.failed[name] = (
            f"lm-eval task {name} could not be loaded: {reason}; see that its data can be reached"
        )
        return
    for task_name, task in loaded["tasks"].items():
        task.set_fewshot_seed(seed=1234)  # lm-eval's own default
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        found.tasks.setdefault(task_name, task)
    found.groups.update(loaded["groups"])


def _index(names: Sequence[str], include_path: Sequence[str | Path]) -> Any:
    """The user's own files and ours where they are enough; else all of lm-eval's too."""
    from lm_eval.tasks import TaskManager

    folders = [str(BRIDGE), *map(str, include_path)]
    small = TaskManager(include_path=folders, include_defaults=False)
    if all(_is_complete(small.task_index, name) for name in names):
        return small
    log.info("reading lm-eval's task files")
    return TaskManager(include_path=folders)


def _is_complete(index: Mapping[str, Any], name: str) -> bool:
    entry = index.get(name)
    if entry is None:
        return False
    members = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else None
    if not isinstance(members, list):
        return True
    return all(isinstance(m, str) and _is_complete(index, m) for m in members)


def _expand(manager: Any, names: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        matches = [name] if name in manager.task_index else manager.match_tasks([name])
        if not matches:
            raise TaskError(
                f"unknown lm-eval task or group {one_line(name)!r}; see lm_eval ls tasks"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _require_no_code(manager: Any, name: str, folders: Sequence[Path]) -> None:
    for path in _files(manager.task_index, name, set()):
        if not any(path.resolve().is_relative_to(folder) for folder in folders):
            continue  # lm-eval's own, or ours
        where = _code_in(path, set())
        if where is not None:
            raise TaskError(
                f"{where}: {one_line(name)} runs Python of its own; read it, then pass "
                "--confirm-run-unsafe-code"
            )


def _files(index: Mapping[str, Any], name: str, seen: set[str]) -> Iterator[Path]:
    """The files behind a task, or behind all members of a group or tag."""
    entry = index.get(name)
    if entry is None or name in seen:
        return
    seen.add(name)
    if entry.yaml_path is not None:
        yield Path(entry.yaml_path)
    members = (entry.cfg or {}).get("task")
    for member in [*(members if isinstance(members, list) else []), *sorted(entry.tags)]:
        inner = member if isinstance(member, str) else member.get("group") or member.get("task")
        if isinstance(inner, str) and inner not in (name, None):
            yield from _files(index, inner, seen)


def _code_in(path: Path, seen: set[Path]) -> str | None:
    """``file:line`` of a tag (``!function``) in a task file or in one that it includes."""
    path = path.resolve()
    if path in seen:
        return None
    seen.add(path)
    try:
        text = path.read_text(encoding="utf-8")
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.TagToken):
                return f"{path}:{token.start_mark.line + 1}"
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise TaskError(f"{path}: no valid task file: {one_line(error, 200)}") from None
    included = content.get("include") if isinstance(content, dict) else None
    if isinstance(content, dict) and "class" in content:
        return f"{path}:1"
    for other in included if isinstance(included, list) else [included] if included else []:
        found = _code_in(path.parent / str(other), seen)
        if found is not None:
            return found
    return None
