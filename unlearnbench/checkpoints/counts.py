"""Sizes and counts in a stranger's JSON: none far above any in use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from unlearnbench.errors import CheckpointError, one_line

# Numbers that are no sizes, and sizes of which nothing is made before ``check_size`` has counted.
_FREE = re.compile(
    r"theta|freq|position|ctx|context|length|window|seed|param|prng|token|step|samples|period|date"
    r"|version|(^|_)base$"
)
# Numbers that lists and modules are counted out by; the deepest model in use has some 200 layers.
_COUNTS = re.compile(
    r"^num_|^n_(layer|head|block|expert)|(layers?|depths?|block_count|blocks?|experts|labels"
    r"|stages|heads|head_count|expert_count)$"
)
_MOST_COUNTED, _MOST = 2**16, 2**24


def walk_json(value: object) -> Iterator[tuple[str, object]]:
    """Every leaf below ``value`` with the key that it stands under; items of a list have its key.

    Without recursion, which a file could nest too deeply for.
    """
    todo: list[tuple[str, object]] = [("", value)]
    while todo:
        key, part = todo.pop()
        if isinstance(part, Mapping):
            todo += [(str(name), inner) for name, inner in part.items()]
        elif isinstance(part, list):
            todo += [(key, inner) for inner in part]
        else:
            yield key, part


def check_numbers(facts: object, where: str) -> None:
    """Refuse sizes and counts far above any in use, nested ones too.

    Raises:
        CheckpointError: names the key.
    """
    for key, value in walk_json(facts):
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) <= _MOST_COUNTED:
            continue
        most = _MOST_COUNTED if _COUNTS.search(key) else _MOST
        if abs(value) > most and not _FREE.search(key):
            raise CheckpointError(
                f"{where} has {one_line(key, 80)} {_shown(value)}, and more than {most:,} is "
                "refused before anything of that size is made; correct it or leave it out"
            )


def _shown(value: int) -> str:
    """Python refuses to print numbers of thousands of digits."""
    return str(value) if abs(value) < 10**30 else "of more than 30 digits"
