"""The tasks that there are: found in the package's folder and in the user's, by name and group."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from unlearnbench.errors import TaskError, one_line
from unlearnbench.tasks.kinds import task_kinds
from unlearnbench.tasks.spec import TaskSpec
from unlearnbench.util.validation import YamlFile, read_text, read_yaml


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


def _kind(source: YamlFile) -> type[TaskSpec]:
    output_type, kinds = source.value.get("output_type"), task_kinds()
    if not isinstance(output_type, str) or output_type not in kinds:
        where, known = source.where("output_type"), ", ".join(kinds)
        raise TaskError(f"{where}: output_type must be one of {known}, not {output_type!r}")
    return kinds[output_type]
