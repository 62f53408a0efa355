"""The checkpoints that a line of a sweep stands for: a path, a glob, or a recipe as a grid."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnbench.errors import OptionError, UnlearnbenchError, one_line
from unlearnbench.methods import Method, find_method
from unlearnbench.sweep.spec import Item
from unlearnbench.training.options import CorpusOptions, TrainOptions

HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NAME = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True)
class Candidate:
    """One checkpoint: where it is, or how it is trained."""

    name: str
    path: str
    line: str
    """``file:line`` of what named it."""
    training: Mapping[str, Any] | None = None
    base: str = ""
    """What it is trained from: another one's name or a path."""


def found(item: Item, where: str) -> Iterator[Candidate]:
    """The checkpoints of a path: a hub id, one folder or file, or those that a glob matches."""
    path = str(item.path)
    if not any(c in path for c in "*?["):
        if not Path(path).exists() and not HUB.fullmatch(path):
            raise OptionError(f"{where}: {one_line(path, 200)} is not there, and no hub id")
        yield Candidate(item.name or _last(path), path, where)
        return
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - also absolute ones
    folders = [each for each in found if (Path(each) / "config.json").is_file()]
    folders += [each for each in found if each.endswith(".gguf")]
    folders += [each for each in found if (Path(each) / "adapter_config.json").is_file()]
    if not folders:
        met = f" among {len(found)} matches" if found else ""
        raise OptionError(f"{where}: {one_line(path, 200)} matches no checkpoint{met}")
    for each in dict.fromkeys(folders):
        yield Candidate(f"{item.name or ''}{_last(each)}", each, where)


def _last(path: str) -> str:
    """A name that a folder and a board's entry may have."""
    return _NAME.sub("_", Path(path).name).strip("._-+")[:60] or "model"


def grid(item: Item, where: str, output: str) -> Iterator[Candidate]:
    """A training for each combination of methods, bases, options and seeds."""
    axes: dict[str, Sequence[Any]] = {"method": item.method, "base": item.base}
    axes |= {k: v if isinstance(v, list) else [v] for k, v in item.options.items()}
    axes |= {"seed": item.seeds}
    if "seed" in item.options or any(not values for values in axes.values()):
        raise OptionError(f"{where}: an option has no value, or seed stands beside seeds")
    moving = [key for key, values in axes.items() if len(values) > 1]
    texts = item.model_dump(include={"data", "forget", "retain", "auxiliary", "unseen"})
    texts |= {"alternative": item.alternative, "spans": item.spans}
    known = {name: _method(name, where) for name in item.method}
    for values in itertools.product(*axes.values()):
        at = dict(zip(axes, values, strict=True))
        marks = [str(at[k]) if k == "method" else f"{k}{_last(str(at[k]))}" for k in moving]
        name = "-".join([item.name or item.method[0], *marks])
        if item.name is None and "method" in moving:
            name = "-".join(marks)
        method, base = at.pop("method"), str(at.pop("base"))
        options, knobs = _told(known[method], at, where)
        training = {"method": method, **texts, "options": options, "knobs": knobs}
        name = _NAME.sub("_", name)[:60]
        yield Candidate(name, f"{output}/models/{name}", where, training, base)


def _method(name: str, where: str) -> Method | None:
    """The method of that name; None for finetune."""
    try:
        return None if name == "finetune" else find_method(name)
    except UnlearnbenchError as error:
        raise OptionError(f"{where}: {one_line(error)}") from None


def _told(
    method: Method | None, given: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the training, and numbers of the method; each is known."""
    given = {key.replace("-", "_"): value for key, value in given.items()}
    known = {*TrainOptions.model_fields, *CorpusOptions.model_fields}
    options = {key: value for key, value in given.items() if key in known}
    knobs = {key: value for key, value in given.items() if key not in known}
    try:
        TrainOptions.of({k: v for k, v in options.items() if k in TrainOptions.model_fields})
        CorpusOptions.of({k: v for k, v in options.items() if k in CorpusOptions.model_fields})
        if method is not None:
            method.with_options(knobs)
        elif knobs:
            raise OptionError(f"no option is called {one_line(min(knobs), 80)!r}")
    except UnlearnbenchError as error:
        raise OptionError(f"{where}: {one_line(error)}") from None
    return options, knobs
