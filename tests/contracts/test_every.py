"""All that the installed transformers has against what is on record; `make field` shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.contracts.every import find_outcome
from tests.contracts.every_architecture import architectures
from tests.contracts.every_tokenizer import tokenizer_classes
from tests.field import EVERY

KNOWN = json.loads(EVERY.read_text(encoding="utf-8"))
WRONG = ("DIFFERS", "FAILS")


def test_the_record_is_of_the_installed_transformers() -> None:
    """Where this fails, run ``python -m tests.contracts.every NAME...`` for what is new."""
    assert set(KNOWN) == {*architectures(), *tokenizer_classes()}


def outcomes(found: str | list[str]) -> Iterator[str]:
    yield from [found] if isinstance(found, str) else found


def test_nothing_on_record_is_wrong() -> None:
    found = {name: [*outcomes(entry)] for name, entry in KNOWN.items()}
    assert [n for n, all_ in found.items() if any(o.startswith(WRONG) for o in all_)] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the libraries', of models as old as BERT
@pytest.mark.parametrize("name", KNOWN)
def test_what_becomes_of_it(name: str) -> None:
    """Ids, continuations and scores are those of plain transformers in fp32, or it is refused; the
    record says which, and why what is not made cannot be.
    """
    found = find_outcome(name)
    assert not any(one.startswith(WRONG) for one in outcomes(found))
    assert found == KNOWN[name]
