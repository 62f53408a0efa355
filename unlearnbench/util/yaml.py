"""YAML as plain data, with the line of every key, so that an error can point at it."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from unlearnbench.errors import OptionError, TaskError, one_line
from unlearnbench.util.files import read_bytes

M = TypeVar("M", bound=BaseModel)

# The parser takes seconds for a megabyte; the largest file in use has some KB.
_LARGEST = 256 * 2**10
_DEEPEST = 50
_OPENING = (
    *(yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken),
    *(yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken),
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


@dataclass(frozen=True)
class YamlFile:
    """A YAML file whose top level is a mapping: its value and its node tree."""

    path: Path
    value: dict[str, object]
    root: MappingNode

    def where(self, *loc: str | int) -> str:
        """``file:line`` of the key path ``loc``, or of its deepest part that exists."""
        node: Node = self.root
        line = 1
        for part in loc:
            found = _child(node, part)
            if found is None:
                break
            key, node = found
            line = key.start_mark.line + 1
        return f"{self.path}:{line}"

    def fault(self, error: ValidationError) -> str:
        """What pydantic found wrong first in this file's value: one line, which begins with the
        line of the file.
        """
        first = error.errors(include_url=False)[0]
        place, message = first["loc"], first["msg"].removeprefix("Value error, ")
        told = re.match(r"([\w.]+): (.*)", message)  # our own, which name the field
        if told and first["type"] == "value_error":
            inner = (int(part) if part.isdigit() else part for part in told[1].split("."))
            place, message = (*place, *inner), told[2]
        field = ".".join(map(str, place))
        if first["type"] == "extra_forbidden":
            return f"{self.where(*place)}: unknown key {one_line(field)!r}"
        if first["type"] == "missing":
            return f"{self.where(*place[:-1])}: key {one_line(field)!r} is missing"
        return f"{self.where(*place)}: {one_line(field or 'file')}: {one_line(message)}"


def _child(node: Node, part: str | int) -> tuple[Node, Node] | None:
    if isinstance(node, MappingNode):
        return next(((k, v) for k, v in node.value if k.value == str(part)), None)
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


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
    loader: yaml.SafeLoader | None = None
    try:
        _refuse_tags(path, text)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, MappingNode):
            raise TaskError(f"{path}:1: expected `key: value` lines")
        value = _Builder(path, loader).mapping(root)
    except yaml.YAMLError as error:
        raise TaskError(f"{path}:{_line(error)}: no valid YAML: {one_line(error)}") from None
    except (ValueError, ArithmeticError) as error:  # escapes that name no character
        line = 1 if loader is None else loader.line + 1
        raise TaskError(f"{path}:{line}: no valid YAML: {one_line(error)}") from None
    except RecursionError:
        raise TaskError(f"{path}:1: nested too deeply") from None
    return YamlFile(path, value, root)


def _refuse_tags(path: Path, text: str) -> None:
    depth = 0
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            # The parser's time grows with the square of the depth.
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > _DEEPEST:
                line = token.start_mark.line + 1
                raise TaskError(f"{path}:{line}: nested too deeply")
            if isinstance(token, yaml.TagToken):
                line = token.start_mark.line + 1
                tag = one_line("".join(part or "" for part in token.value), 80)
                raise TaskError(f"{path}:{line}: tags are not allowed in task files: {tag}")
    except (ValueError, ArithmeticError):  # met again, with its line, when the file is read
        return


def _line(error: yaml.YAMLError) -> int:
    mark = getattr(error, "problem_mark", None)
    return 1 if mark is None else mark.line + 1


class _Builder:
    """Builds plain data from nodes. YAML libraries let the last duplicate key win; here it is an
    error. Aliases are refused: a few lines of them can expand to gigabytes, and a task needs none.
    """

    def __init__(self, path: Path, loader: yaml.SafeLoader) -> None:
        self._path, self._loader = path, loader
        self._seen: set[int] = set()

    def mapping(self, node: MappingNode) -> dict[str, object]:
        """A mapping's value."""
        found: dict[str, object] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode) or key.tag.endswith(":merge"):
                raise self._fault(key, "a key must be plain text")
            if not key.value.isprintable():
                raise self._fault(key, f"a key must be plain text: {one_line(key.value, 80)}")
            if key.value in found:
                raise self._fault(key, f"duplicate key {one_line(key.value)!r}")
            found[key.value] = self._value(value)
        return found

    def _value(self, node: Node) -> object:
        if id(node) in self._seen:
            raise self._fault(node, "aliases (&, *) are not allowed in task files")
        self._seen.add(id(node))
        if isinstance(node, MappingNode):
            return self.mapping(node)
        if isinstance(node, SequenceNode):
            return [self._value(part) for part in node.value]
        try:
            value: object = self._loader.construct_object(node)
        except (ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise self._fault(node, f"no valid value: {one_line(error, 100)}") from None
        return value

    def _fault(self, node: Node, what: str) -> TaskError:
        return TaskError(f"{self._path}:{node.start_mark.line + 1}: {what}")
