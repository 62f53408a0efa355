"""Published results of TOFU, per sample: open-unlearning's logs, the paper's own, and UDS's table.

They lie beside the data, in ``golden``; tests skip where a file is missing.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FULL = "tofu_{}_full/evals_forget{}"
RETAINED = "tofu_{}_retain{}"
B1, L2 = "Llama-3.2-1B-Instruct", "Llama-2-7b-chat-hf"
LOGS = [
    *(FULL.format(B1, split) for split in ("01", "05", "10")),
    *(RETAINED.format(B1, split) for split in (99, 95, 90)),
    FULL.format(L2, "10"),
    RETAINED.format(L2, 90),
]


@cache
def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


class Published:
    """The folder of published results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, name: str) -> Path:
        path = self.root / name
        if not path.exists():
            pytest.skip(f"no {path}")
        return path

    def json(self, name: str) -> Any:
        """A file's content; not to be changed."""
        return _read(self.file(name))

    def log(self, name: str, kind: str = "TOFU") -> dict[str, Any]:
        """One of open-unlearning's, see ``LOGS``."""
        found: dict[str, Any] = self.json(f"open-unlearning/{name}/{kind}_EVAL.json")
        return found


def rows(block: dict[str, Any]) -> list[dict[str, Any]]:
    """A metric's values, in row order."""
    by_index = block["value_by_index"]
    assert list(by_index) == [str(n) for n in range(len(by_index))]
    return list(by_index.values())


def losses(log: dict[str, Any], name: str) -> list[Any]:
    """``avg_loss`` of every row: a number, or a list of them."""
    return [row["avg_loss"] for row in rows(log[f"{name}_Prob"])]
