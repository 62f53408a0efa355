"""What is kept, and that it is found again only as what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CORPUS, load_at
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.source import open_source
from unlearnbench.models.cache import KnownIds, KnownValues
from unlearnbench.requests import Generate


def test_values_are_kept_while_there_is_room() -> None:
    known = KnownValues[str](10)
    assert [known.keep(b"a", "A", 6), known.keep(b"b", "B", 6), known.keep(b"c", "C", 4)] == [
        *"ABC"
    ]
    assert [known.find(key) for key in (b"a", b"b", b"c")] == ["A", None, "C"]


def test_ids_are_those_that_were_kept_and_no_ones_to_change() -> None:
    known = KnownIds()
    ids = known.keep("caf\u00e9 \ud800", [3, 300_000, 0])
    ids.append(7)
    found = known.find("caf\u00e9 \ud800")
    assert found == [3, 300_000, 0]
    found.append(7)
    assert known.find("caf\u00e9 \ud800") == [3, 300_000, 0]
    assert known.find("cafe\u0301 \ud800") is None


def test_a_text_is_tokenized_once_for_all_precisions(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(tiny), LoadOptions())
    asked: list[str] = []
    whole = type(source.tokenizer).__call__

    def watch(self: Any, text: str, **options: Any) -> Any:
        asked.append(text)
        return whole(self, text, **options)

    monkeypatch.setattr(type(source.tokenizer), "__call__", watch)
    texts = [CORPUS[0][: 20 + 9 * n] for n in range(3)]
    answers = []
    for precision in ("none", "fp32"):
        model = load_at(source, precision)
        answers.append([a.text for a in model.generate([Generate(t, t, 4) for t in texts])])
        assert model.truncate(texts[0], 3) == model._decode(model._encode(texts[0])[:3])
    assert sorted(asked) == sorted(texts)
    assert answers[0] == answers[1]
