"""YAML as plain data, with the line of every key, so that an error can point at it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from unlearnbench.errors import TaskError, one_line

__all__ = ["YamlFile", "read_yaml"]


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


def _child(node: Node, part: str | int) -> tuple[Node, Node] | None:
    if isinstance(node, MappingNode):
        return next(((k, v) for k, v in node.value if k.value == str(part)), None)
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def read_yaml(path: Path) -> YamlFile:
    """Read ``path`` with the safe loader: no Python tags, no duplicate keys.

    Raises:
        TaskError: unreadable, no YAML, or its top level is no mapping; says the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, MappingNode):
            raise TaskError(f"{path}:1: expected `key: value` lines")
        _refuse_duplicates(path, root)
        value = loader.construct_document(root)
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read: {one_line(error)}") from None
    except yaml.YAMLError as error:
        raise TaskError(f"{path}:{_line(error)}: no valid YAML: {one_line(error)}") from None
    except RecursionError:
        raise TaskError(f"{path}:1: nested too deeply") from None
    return YamlFile(path, value, root)


def _line(error: yaml.YAMLError) -> int:
    mark = getattr(error, "problem_mark", None)
    return 1 if mark is None else mark.line + 1


def _refuse_duplicates(path: Path, node: Node) -> None:
    """YAML libraries let the last duplicate win; here it is an error. Aliases are refused too:
    a few lines of them can expand to gigabytes, and a task needs none.
    """
    seen_nodes: set[int] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        line = current.start_mark.line + 1
        if id(current) in seen_nodes and not isinstance(current, ScalarNode):
            raise TaskError(f"{path}:{line}: aliases (&, *) are not allowed in task files")
        seen_nodes.add(id(current))
        if isinstance(current, SequenceNode):
            pending.extend(current.value)
        elif isinstance(current, MappingNode):
            keys: set[str] = set()
            for key, value in current.value:
                if str(key.value) in keys:
                    line = key.start_mark.line + 1
                    raise TaskError(f"{path}:{line}: duplicate key {one_line(key.value)!r}")
                keys.add(str(key.value))
                pending.append(value)
