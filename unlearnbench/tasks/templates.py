"""Templates of task files: Jinja that fills in fields, with bounded time and memory.

A task file may be a stranger's, and Jinja's sandbox alone lets ``{{ 'a' * 10**10 }}`` take all the
memory there is. Two bounds, both by counting and so the same on every machine and thread:

- What a template may hold is listed here: fields, texts, conditions, comparisons, sums, a few
  filters and methods of texts. No loop, no assignment, no macro, no call of anything else.
- Everything that enters or leaves an operation counts against a budget of characters, and what
  would grow (``replace``, ``join``, ``upper``) is counted before it is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any

from jinja2 import StrictUndefined, Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unlearnbench.errors import DataError, TaskError, one_line

LONGEST = 2**24
"""Characters that filling one template may read and write; no prompt in use has a tenth of it."""
_SOURCE, _NODES = 2**15, 2**10

_left: ContextVar[int] = ContextVar("characters left")


def _charge(count: int) -> None:
    left = _left.get() - count
    if left < 0:
        raise SecurityError(f"it handles more than {LONGEST:,} characters")
    _left.set(left)


def _replace(text: object, old: object, new: object, count: object = None) -> str:
    found, shape, put = str(text), str(old), str(new)
    times = found.count(shape)
    if isinstance(count, int) and 0 <= count < times:
        times = count
    _charge(len(found) + times * len(put))
    return found.replace(shape, put, times)


def _join(parts: Any, between: object = "") -> str:
    texts = [str(part) for part in parts]
    _charge(sum(map(len, texts)) + len(texts) * len(str(between)))
    return str(between).join(texts)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Jinja's own filters that give no more than they take.
_FILTERS = _words(
    "trim lower upper capitalize title first last length count default d int float round abs string"
)
_METHODS = _words(
    "strip lstrip rstrip lower upper title capitalize replace split rsplit splitlines startswith "
    "endswith removeprefix removesuffix find rfind count isdigit isupper islower join"
)
_TESTS = _words(
    "defined undefined none string number integer float boolean true false odd even eq ne lt le gt "
    "ge in equalto upper lower == != < <= > >="
)
_NODES_ALLOWED = _words(
    "Template Output TemplateData If CondExpr Name Const Getattr Getitem Slice Call Filter Test "
    "Concat Add Sub Mul Div FloorDiv Mod Neg Pos Not And Or Compare Operand Tuple List Keyword"
)


class _Environment(ImmutableSandboxedEnvironment):
    """Counts sums as they are made; has no product, remainder or method that could grow a text."""

    intercepted_binops = frozenset({"+", "*", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        texts = [part for part in (left, right) if not isinstance(part, (int, float))]
        if texts and operator != "+":
            raise SecurityError(f"{operator} of a text is unsafe")
        if operator == "+" and all(isinstance(part, (str, list, tuple)) for part in texts):
            _charge(sum(len(part) for part in texts))
        found = super().call_binop(context, operator, left, right)
        return _Parts(found) if isinstance(found, tuple) else found

    def call(self, _context: Any, _method: Any, /, *given: Any, **named: Any) -> Any:
        text = getattr(_method, "__self__", None)
        name = getattr(_method, "__name__", "")
        if not isinstance(text, str) or name not in _METHODS:
            raise SecurityError("a call of anything but a text's own method is unsafe")
        if name == "replace":
            return _replace(text, *given, **named)
        if name == "join" and not named:
            (parts,) = given
            return _join(parts, text)
        # A list of parts takes more memory than the text did; a capital up to three characters.
        _charge((8 if "split" in name else 3) * len(text))
        return super().call(_context, _method, *given, **named)


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # keeps Jinja's marks on it
    def run(*given: Any, **named: Any) -> Any:
        _charge(3 * sum(len(part) for part in given if isinstance(part, (str, list, tuple))))
        return function(*given, **named)

    return run


def _text(value: object) -> object:
    """What an expression writes; DataError for a list."""
    if isinstance(value, (list, tuple)):
        raise DataError(getattr(value, "_said", _Parts._said))
    return value


# keep_trailing_newline and StrictUndefined as in lm-eval: a template means the same in both.
_ENVIRONMENT = _Environment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_text)
_ENVIRONMENT.globals.clear()
_ENVIRONMENT.tests = {name: _ENVIRONMENT.tests[name] for name in _TESTS}
_ENVIRONMENT.filters = {name: _counted(_ENVIRONMENT.filters[name]) for name in _FILTERS}
_ENVIRONMENT.filters |= {"replace": _replace, "join": _join}


def _parts(tree: nodes.Node) -> Iterator[nodes.Node]:
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        todo += node.iter_child_nodes()


def _unsafe(node: nodes.Node, called: bool) -> str | None:
    """What no task's template may hold; parents come before their children."""
    if type(node).__name__ not in _NODES_ALLOWED:
        return type(node).__name__.lower()
    if isinstance(node, nodes.Filter) and node.name in FILTERS:
        return None if node.name in _ENVIRONMENT.filters else f"filter {node.name!r}"
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        key = node.arg.value  # Jinja looks for an attribute of that name too
        return f"attribute {key!r}" if isinstance(key, str) and hasattr(str, key) else None
    if isinstance(node, nodes.Getattr):
        # A method that is not called would print its address.
        safe = node.attr in _METHODS if called else not hasattr(str, node.attr)
        private = node.attr.startswith("_")
        return f"attribute {node.attr!r}" if private or not safe else None
    return None


@lru_cache(maxsize=256)
def compile_template(source: str) -> tuple[Template, Mapping[str, int]]:
    """The template, and how often it names each field; jinja2.TemplateError where it is none, or
    holds what no task's template may.
    """
    if len(source) > _SOURCE:
        raise SecurityError(f"it is longer than {_SOURCE} characters")
    tree = _ENVIRONMENT.parse(source)
    called: set[int] = set()
    for count, node in enumerate(_parts(tree)):
        if count > _NODES:
            raise SecurityError(f"it has more than {_NODES} parts")
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            called.add(id(node.node))
        what = _unsafe(node, id(node) in called)
        if what is not None:
            raise SecurityError(f"{what} is unsafe in a template")
    used = find_undeclared_variables(tree)
    names = Counter(node.name for node in _parts(tree) if isinstance(node, nodes.Name))
    return _ENVIRONMENT.from_string(source), {name: names[name] for name in used}


_PLAIN = (str, int, float)


class _Parts(tuple[object, ...]):
    """A field that is a list: ``choices[0]`` and ``choices|join(", ")`` are texts, it is none."""

    _said = "a list has no text: take one of its parts, or join them"

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Parts(found) if isinstance(at, slice) else found

    def __str__(self) -> str:
        raise DataError(self._said)

    __repr__ = __str__  # inside another list


def _length(field: object) -> int:
    return sum(map(_length, field)) if isinstance(field, _Parts) else len(str(field))


def render_field(template: str, row: Mapping[str, object], where: str) -> str:
    """Fill one template from one row. Raises TaskError where the template is wrong, names a field
    that the row does not have, or would take more than a prompt may, and DataError where a field
    that it uses is not text, a number, a truth value or a list of them, which has no text whole.
    """
    token = _left.set(LONGEST)
    try:
        compiled, used = compile_template(template)
        fields = {key: row[key] for key in used if row.get(key) is not None}
        for key, value in fields.items():
            if isinstance(value, (list, tuple)) and all(isinstance(v, _PLAIN) for v in value):
                fields[key] = parts = _Parts(value)
                parts._said = f"{where}: field {key!r} holds {type(value).__name__}, not text"
            elif not isinstance(value, _PLAIN):
                raise DataError(f"{where}: field {key!r} holds {type(value).__name__}, not text")
        _charge(sum(n * _length(fields.get(name, "")) for name, n in used.items()))
        return compiled.render(fields)
    except DataError as error:
        said = str(error)
        raise DataError(said if said.startswith(where) else f"{where}: {said}") from None
    except Exception as error:  # a template is a stranger's program and can fail in any way
        shown = template if len(template) <= 300 else f"{template[:297]}..."
        raise TaskError(f"{where}: template {shown!r} fails: {one_line(error, 200)}") from None
    finally:
        _left.reset(token)
