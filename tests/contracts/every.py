"""What becomes of everything that transformers has: ``python -m tests.contracts.every [NAME...]``
writes ``every.json``, of which ``make field`` makes tables, for all or for the names given.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from pathlib import Path

from tests.contracts.every_architecture import architectures, outcome
from tests.contracts.every_tokenizer import outcomes, tokenizer_classes
from tests.field import EVERY


def find_outcome(name: str) -> str | list[str]:
    """Of a model type, or of a tokenizer class: over its own rules, and over others."""
    notes: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("unlearnbench")
    log.addHandler(handler)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if name in architectures():
                return outcome(name, Path(folder))
            return outcomes(name, Path(folder), notes)
    finally:
        log.removeHandler(handler)


def main(names: list[str]) -> None:
    known = json.loads(EVERY.read_text(encoding="utf-8")) if names else {}
    for name in names or [*architectures(), *tokenizer_classes()]:
        known[name] = find_outcome(name)
        print(f"{name}: {known[name]}", flush=True)
    EVERY.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
