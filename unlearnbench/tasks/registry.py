"""The tasks that there are: found in the package's folder and in the user's, by name and group."""

from __future__ import annotations

import difflib
import fnmatch
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from unlearnbench.errors import TaskError, one_line
from unlearnbench.tasks import kinds
from unlearnbench.tasks.spec import TaskSpec
from unlearnbench.util.validation import read_text, read_yaml


@dataclass(frozen=True)
class Registry:
    """The task files that were found. Each is checked when its task is asked for, so a wrong file
    stops only those who ask for it.
    """

    files: Mapping[str, Path]
    """By task name, in name order."""
    groups: Mapping[str, tuple[str, ...]]
    """Task names by group (``tag``), in name order."""
    groupless: tuple[Path, ...]
    """Files whose groups cannot be read, so that no group is known to be whole."""

    @cached_property
    def tasks(self) -> dict[str, TaskSpec]:
        """Every task by name; TaskError where any of the files is wrong."""
        return {name: read_task(path) for name, path in self.files.items()}

    def resolve(self, wanted: Iterable[str]) -> tuple[TaskSpec, ...]:
        """The tasks that names, groups and globs stand for, each once, in the order given. Raises
        TaskError where nothing was asked for, a name stands for no task (near ones are named), or
        the file of one that was asked for is wrong.
        """
        names: dict[str, None] = {}
        for word in wanted:
            found = self._matching(word)
            if not found:
                _ = self.tasks  # it may stand in a file that is wrong, which is then said
                near = difflib.get_close_matches(word, [*self.files, *self.groups], n=3)
                known = f"did you mean {', '.join(near)}?" if near else ""
                hint = known or "`unlearnbench tasks` lists them"
                raise TaskError(f"unknown task or group {one_line(word)!r}: {hint}")
            for path in self.groupless if word in self.groups else ():
                read_task(path)
            names.update(dict.fromkeys(found))
        if not names:
            raise TaskError("no task was asked for; `unlearnbench tasks` lists them")
        return tuple(read_task(self.files[name]) for name in names)

    def of_version(self, name: str, version: float) -> TaskSpec:
        """A task in that version, where it has it; else as its file has it."""
        spec = self.tasks[name]
        other = spec.without_blank()
        return other if other is not None and other.version == version else spec

    def knows(self, word: str) -> bool:
        """Whether a name, group or glob stands for a task."""
        return bool(self._matching(word))

    def _matching(self, word: str) -> Sequence[str]:
        if word in self.files:
            return (word,)
        globbed = [name for name in self.files if fnmatch.fnmatchcase(name, word)]
        return self.groups.get(word, globbed)


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
    """Find the package's tasks and those of the user's own folders. Raises TaskError, with file and
    line, where a folder has no task file or two files make one name mean two things.
    """
    files: dict[str, Path] = {}
    shipped = builtin_task_dir()
    for folder in (shipped, *map(Path, include_path)):
        for path in _task_files(folder):
            if folder != shipped and is_lm_eval_file(path):
                continue  # lm-eval reads those itself, see unlearnbench.lm_eval
            if path.stem in files:
                where = f"{_where(path)}: task {path.stem!r}"
                raise TaskError(f"{where} is already in {files[path.stem]}")
            files[path.stem] = path
    groups: dict[str, list[str]] = {}
    groupless = []
    for name, path in sorted(files.items()):
        tags = _tags(path)
        if tags is None:
            groupless.append(path)
        for tag in dict.fromkeys(tags or ()):
            groups.setdefault(tag, []).append(name)
    for name in sorted(groups.keys() & files):
        where = _where(files[name])
        raise TaskError(f"{where}: {name!r} is both a task and a group; rename one")
    found = {tag: tuple(names) for tag, names in sorted(groups.items())}
    return Registry(dict(sorted(files.items())), found, tuple(groupless))


def _where(path: Path) -> str:
    try:
        return read_yaml(path).where("task")
    except TaskError:
        return str(path)


def _tags(path: Path) -> list[str] | None:
    """The groups of a task file; None where it is too wrong to tell."""
    try:
        tags = read_yaml(path).value.get("tag", [])
    except TaskError:
        return None
    return tags if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags) else None


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
    theirs = {"group", "class", "include", "metric_list", "process_results", "doc_to_choice"}
    return (
        bool(keys & {"task", "group"})
        and not keys & {"splits", "metric", "want"}
        and bool(keys & theirs or {"dataset_path", "doc_to_target"} <= keys)
    )


def kind_modules() -> list[ModuleType]:
    """The files of the kinds of task, by name."""
    names = sorted(found.name for found in pkgutil.iter_modules(kinds.__path__))
    return [import_module(f"{kinds.__name__}.{name}") for name in names]


def read_task(path: Path) -> TaskSpec:
    """Read and check one task file. Raises TaskError where it is no YAML, has an unknown key, a bad
    type or a name other than its file's.
    """
    source = read_yaml(path)
    known: dict[object, type[TaskSpec]] = {module.NAME: module.TASK for module in kind_modules()}
    output_type = source.value.get("output_type")
    if not isinstance(output_type, str) or output_type not in known:
        where, listed = source.where("output_type"), ", ".join(map(str, known))
        raise TaskError(f"{where}: output_type must be one of {listed}, not {output_type!r}")
    try:
        spec = known[output_type].model_validate(source.value)
    except ValidationError as error:
        raise TaskError(source.fault(error)) from None
    if spec.task != path.stem:
        where = source.where("task")
        raise TaskError(f"{where}: task is {spec.task!r} but the file's name is {path.stem!r}")
    return spec
