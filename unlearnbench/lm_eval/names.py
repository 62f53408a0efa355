"""Which task names are ours and which are lm-eval's; without importing it."""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.tasks.registry import Registry, builtin_task_dir

PREFIX = "lm_eval:"
INSTALL = "pip install 'unlearnbench[lm-eval]'"
BRIDGE = Path(__file__).resolve().parent / "tasks"
"""Our tasks as lm-eval's, and the group ``general``."""


@dataclass(frozen=True)
class Wanted:
    """The words of ``--tasks``: ours, lm-eval's, ours that are names of both, and ours (for want of
    another side) that nobody knows.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    both: tuple[str, ...]
    unknown: tuple[str, ...]


def packaged_tasks() -> Path | None:
    """The folder of lm-eval's own task files; None where lm-eval is not installed."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "tasks"


def split_wanted(
    words: Sequence[str], registry: Registry, include_path: Sequence[str | Path]
) -> Wanted:
    """Tell lm-eval's names from ours. What neither knows stays ours, whose error names near ones.

    A name of both is ours; ``lm_eval:NAME`` is lm-eval's in any case.
    """
    own = [word for word in words if not word.startswith(PREFIX)]
    known = {word for word in own if _is_ours(word, registry)}
    given = [Path(folder) for folder in include_path]
    packaged = packaged_tasks()
    unknown = [word for word in own if word not in known]
    elsewhere = _defined(unknown, [BRIDGE, *given, *([packaged] if packaged else [])])
    # Names of our own package are none of lm-eval's, which a test holds; a user's may be.
    shipped = builtin_task_dir()
    added = [
        word
        for word in known
        if registry.files.get(word, shipped / word).parent != shipped and packaged is not None
    ]
    both = _defined(known, given) | _defined(added, [packaged] if packaged else [])
    forced = {word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)}
    return Wanted(
        tuple(word for word in own if word in known or word not in elsewhere),
        tuple(
            dict.fromkeys(w.removeprefix(PREFIX) for w in words if w in elsewhere or w not in own)
        ),
        tuple(word for word in own if word in both and word not in forced),
        tuple(word for word in unknown if word not in elsewhere),
    )


def _is_ours(word: str, registry: Registry) -> bool:
    if word in registry.tasks or word in registry.groups:
        return True
    return any(fnmatch.fnmatchcase(name, word) for name in registry.tasks)


def _defined(words: Iterable[str], folders: Sequence[Path]) -> set[str]:
    """The words that a task file of lm-eval's in these folders may define."""
    left = set(words)
    if not left:
        return set()
    packaged = packaged_tasks()
    names: set[str] = set()
    for folder in folders:
        names |= _packaged_names(folder) if folder == packaged else _names_in(folder)
    return {word for word in left if word in names or _matches(word, names)}


def _matches(glob: str, names: Iterable[str]) -> bool:
    match = re.compile(fnmatch.translate(glob)).match
    return any(match(name) for name in names)


_NAME = re.compile(
    r"^[ \t]*(?:-[ \t]*)?(?:(?:task|group|tag):[ \t]*)?[\"']?([^\s\"']+)[\"']?[ \t]*(?:#.*)?$",
    re.MULTILINE,
)


def _names_in(folder: Path) -> set[str]:
    """What stands alone after ``task:``, ``group:`` or ``tag:``, or as an item of a list."""
    found: set[str] = set()
    for path in folder.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8", errors="replace")
        if folder == BRIDGE or not _is_our_text(text):
            found.update(_NAME.findall(text))
    return found


@functools.cache
def _packaged_names(folder: Path) -> set[str]:
    """The same of lm-eval's own files, once a process: these are 14,000. Its own index, built when
    one is needed, takes some ten seconds; this pass takes about one.
    """
    return _names_in(folder)


def _is_our_text(text: str) -> bool:
    return re.search(r"^(?:splits|metric|want):", text, re.MULTILINE) is not None
