"""What users and strangers write, checked: YAML as plain data with the line of every key, files and
options as pydantic models, and in one line what is wrong with them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from unlearnbench.errors import OptionError, TaskError, UnlearnbenchError, one_line
from unlearnbench.util.files import read_bytes, read_json

M = TypeVar("M", bound=BaseModel)
OM = TypeVar("OM", bound="OptionModel")

# The parser takes seconds for a megabyte; the largest file in use has some KB.
_LARGEST = 256 * 2**10
_DEEPEST = 50


@dataclass(frozen=True)
class YamlFile:
    """A YAML file whose top level is a mapping."""

    path: Path
    value: dict[str, object]
    lines: Mapping[tuple[str | int, ...], int]
    """The line of every key and list item, by the keys and indexes that lead to it."""

    def where(self, *loc: str | int) -> str:
        """``file:line`` of the key path ``loc``, or of its deepest part that exists."""
        paths = (loc[:depth] for depth in range(len(loc), 0, -1))
        return f"{self.path}:{next((self.lines[p] for p in paths if p in self.lines), 1)}"

    def fault(self, error: ValidationError) -> str:
        """What pydantic found wrong first in this file's value: one line, which begins with the
        line of the file.
        """
        first, *more = error.errors(include_url=False)
        place, message = first["loc"], first["msg"].removeprefix("Value error, ")
        told = re.match(r"([\w.]+): (.*)", message)  # our own, which name the field
        if told and first["type"] == "value_error":
            inner = (int(part) if part.isdigit() else part for part in told[1].split("."))
            place, message = (*place, *inner), told[2]
        field = ".".join(map(str, place))
        if first["type"] == "extra_forbidden":
            return f"{self.where(*place)}: unknown key {one_line(field)!r}"
        if first["type"] == "missing":
            for each in more:  # it may be there, misspelt
                if each["type"] == "extra_forbidden" and each["loc"][:-1] == place[:-1]:
                    spelt = one_line(".".join(map(str, each["loc"])))
                    said = f"unknown key {spelt!r}, and {one_line(field)!r} is missing"
                    return f"{self.where(*each['loc'])}: {said}"
            return f"{self.where(*place[:-1])}: key {one_line(field)!r} is missing"
        return f"{self.where(*place)}: {one_line(field or 'file')}: {one_line(message)}"


def read_yaml_model(path: Path, kind: type[M]) -> M:
    """Read ``path`` as ``kind``.

    Raises:
        OptionError: it is no YAML, has an unknown key or a bad value; says the line.
    """
    try:
        found = read_yaml(path)
    except TaskError as error:
        raise OptionError(str(error)) from None
    try:
        return kind.model_validate(found.value)
    except ValidationError as error:
        raise OptionError(found.fault(error)) from None


def read_yaml(path: Path) -> YamlFile:
    """Read ``path`` as plain data: mappings, lists, text, numbers and truth values.

    Raises:
        TaskError: unreadable, no YAML, its top level is no mapping, or it holds tags, aliases,
            merge keys or duplicate keys; says the line.
    """
    found = _parse(path, read_text(path))
    return replace(found, value=copy.deepcopy(found.value))  # nobody changes another's


def read_text(path: Path) -> str:
    """The text of a file that somebody else may have put there.

    Raises:
        TaskError: unreadable, no regular file, or larger than any file of its kind.
    """
    try:
        return read_bytes(path, TaskError, _LARGEST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} cannot be read: {one_line(error)}") from None


@lru_cache(maxsize=256)  # every command reads all task files, which take 2 ms each to parse
def _parse(path: Path, text: str) -> YamlFile:
    loader: _Loader | None = None
    try:
        loader = _Loader(path, text)
        root = loader.get_single_node()
        if not isinstance(root, MappingNode):
            raise TaskError(f"{path}:1: expected `key: value` lines")
        return YamlFile(path, loader.mapping(root), loader.lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line, what = 1 if mark is None else mark.line + 1, one_line(error)
    except (ValueError, ArithmeticError) as error:  # escapes that name no character
        line, what = 1 if loader is None else loader.line + 1, one_line(error)
    raise TaskError(f"{path}:{line}: no valid YAML: {what}")


class _Loader(yaml.SafeLoader):
    """Builds plain data. Other YAML loaders let the last duplicate key win; here it is an error.
    Aliases are refused: a few lines of them can expand to gigabytes, and a task needs none.
    """

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self._path, self._depth = path, 0
        self.lines: dict[tuple[str | int, ...], int] = {}

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Refuse what no file needs as soon as it is met."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise self._fault(event, "aliases (&, *) are not allowed in task files")
        if getattr(event, "tag", None) is not None:
            tag = one_line(event.tag, 80)
            raise self._fault(event, f"tags are not allowed in task files: {tag}")
        inner = isinstance(event, yaml.CollectionStartEvent)
        self._depth += inner
        if self._depth > _DEEPEST:  # the parser's time grows with the square of the depth
            raise self._fault(event, "nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= inner
        return node

    def mapping(self, node: MappingNode, loc: tuple[str | int, ...] = ()) -> dict[str, object]:
        """The value of the mapping at ``loc``."""
        found: dict[str, object] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode) or key.tag.endswith(":merge"):
                raise self._fault(key, "a key must be plain text")
            if not key.value.isprintable():
                raise self._fault(key, f"a key must be plain text: {one_line(key.value, 80)}")
            if key.value in found:
                raise self._fault(key, f"duplicate key {one_line(key.value)!r}")
            inner = (*loc, key.value)
            self.lines[inner] = key.start_mark.line + 1
            found[key.value] = self._value(value, inner)
        return found

    def _value(self, node: Node, loc: tuple[str | int, ...]) -> object:
        if isinstance(node, MappingNode):
            return self.mapping(node, loc)
        if isinstance(node, SequenceNode):
            items = [((*loc, n), part) for n, part in enumerate(node.value)]
            self.lines.update({place: part.start_mark.line + 1 for place, part in items})
            return [self._value(part, place) for place, part in items]
        try:
            value: object = self.construct_object(node)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise self._fault(node, f"no valid value: {one_line(error, 100)}") from None
        return value

    def _fault(self, at: Any, what: str) -> TaskError:
        return TaskError(f"{self._path}:{at.start_mark.line + 1}: {what}")


def read_model(
    path: Path, kind: type[M], error: type[UnlearnbenchError], most: int | None = None
) -> M:
    """A JSON file as ``kind``. Raises ``error`` as ``read_json``, and where it is no ``kind``,
    with the field's place. A YAML file: ``read_yaml_model``.
    """
    return as_model(path, read_json(path, error, most), kind, error)


def as_model(where: object, content: object, kind: type[M], error: type[UnlearnbenchError]) -> M:
    """``content``, which was found at ``where``, as ``kind``; ``error`` where it is none."""
    try:
        return kind.model_validate(content)
    except ValidationError as failed:
        raise error(f"{where}: {first_fault(failed)}") from None


def first_fault(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line: ``field.place: what``."""
    first = error.errors(include_url=False)[0]
    place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return one_line(f"{one_line(place, 200)}: {message}" if place else message, 400)


_BOUNDS = {
    "ge": "{:g} or more",
    "gt": "a number above {:g}",
    "le": "at most {:g}",
    "lt": "less than {:g}",
}


class OptionModel(BaseModel):
    """Options, each declared once, and refused in the command line's words. A field's docstring is
    its help; its title, where it has one, stands there for the value.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @classmethod
    def of(cls: type[OM], given: Mapping[str, object]) -> OM:
        """The options that are given by name; the others are as their defaults.

        Raises:
            OptionError: no option has that name, or its value makes no sense.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            raise OptionError(_explain(error)) from None

    def updated(self: OM, fields: Mapping[str, object]) -> OM:
        """These options with some of them replaced.

        Raises:
            OptionError: as ``of``.
        """
        now = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).of({**now, **fields})


def count_or_share(given: Any) -> int | float | None:
    """Checks ``--limit``: a whole number, or a share below 1."""
    if given is None:
        return None
    try:
        number = float(given)
        whole = int(number)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"--limit {one_line(given, 60)!r} is not a number or a share") from None
    if number <= 0:
        raise ValueError(
            f"--limit {given} leaves no sample; use 1 or more, a share below 1, or leave it out"
        )
    if number > 1 and number != whole:
        raise ValueError(f"--limit {given}: use a whole number, or a share below 1")
    return whole if number == whole else number


def auto_or_count(given: Any) -> int | str:
    """Checks ``--batch-size``: ``auto`` or a whole number above 0."""
    text = str(given)
    if text == "auto":
        return text
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError(f"--batch-size {one_line(text, 60)}: use 'auto' or a whole number above 0")
    return int(text)


def _explain(error: ValidationError) -> str:
    """The first fault, after the option as the command line spells it. A message of our own that
    begins with an option says everything.
    """
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"no option is called {one_line(first['loc'][0], 80)!r}"
    if message.startswith("--") or not first["loc"]:
        return one_line(message, 400)
    option = f"--{str(first['loc'][0]).replace('_', '-')} {one_line(first['input'], 60)}"
    return f"{option}: {_wanted(message, first.get('ctx', {}))}"


def _wanted(message: str, bounds: Mapping[str, Any]) -> str:
    """What to use instead of a refused value."""
    for key, words in _BOUNDS.items():
        if key in bounds:
            return f"use {words.format(bounds[key])}"
    if message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ").partition(", unable")[0]
        return f"use {wanted}".replace("'", "")
    return one_line(message, 400)
