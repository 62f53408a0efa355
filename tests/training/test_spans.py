"""Which tokens spans leave to be forgotten, and what trainings on them are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.test_main import call
from tests.conftest import CORPUS, make_tokenizer, write_jsonl
from tests.training.helpers import go, same, weights
from unlearnbench.errors import DataError, OptionError
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.training.corpus import Encoder, TextDocument
from unlearnbench.training.job import Job, unlearn
from unlearnbench.training.options import CorpusOptions
from unlearnbench.training.spans import most_surprising, on_spans

TEXTS = [{"text": text} for text in CORPUS[:6]]


def marked(tmp_path: Path, document: TextDocument, spans: list[list[int]], size: int = 99) -> str:
    """What stands under the labels that are left."""
    encoder = Encoder(make_tokenizer(), size, 300)
    key = "text" if document.answer is None else "question"
    write_jsonl(tmp_path / "spans.jsonl", [{key: document.text, "spans": spans}])
    examples = encoder.encode([document], "forget")
    given = str(tmp_path / "spans.jsonl"), [document], examples
    found, _ = on_spans(*given, encoder, CorpusOptions())
    assert [example.ids for example in found] == [example.ids for example in examples]
    labels = [label for example in found for label in example.labels[1:] if label != IGNORED]
    return str(encoder.tokenizer.decode(labels))


def test_a_token_that_touches_a_span_is_in_it(tmp_path: Path) -> None:
    text = "the keeper of gate seven saw the harbour"
    document, at = TextDocument(text, "t/0"), text.index("seven")
    told = marked(tmp_path, document, [[at + 1, at + 3], [34, 36]])
    (tokens,) = Encoder(make_tokenizer(), 99, 300).offsets(document)
    wide = [(t or (0, 0)) for t in tokens]
    touched = [(a, b) for a, b in wide if (a < at + 3 and b > at + 1) or (a < 36 and b > 34)]
    assert told.replace(" ", "") == "".join(text[a:b] for a, b in touched).replace(" ", "")
    assert "ev" in told


def test_each_piece_of_a_long_text_has_its_own_characters() -> None:
    text = "the keeper of gate seven saw the harbour"
    encoder, document = Encoder(make_tokenizer(), 7, 300), TextDocument(text, "t/0")
    pieces, examples = encoder.offsets(document), encoder.encode_one(document)
    assert [len(piece) for piece in pieces] == [len(example.ids) for example in examples]
    for piece, example in zip(pieces, examples, strict=True):
        own = [text[t[0] : t[1]] for t in piece if t is not None]
        told = encoder.tokenizer.decode(list(example.ids), skip_special_tokens=True)
        assert "".join(own).replace(" ", "") == str(told).replace(" ", "")


def test_of_a_pair_it_is_the_answers_characters(tmp_path: Path) -> None:
    pair = TextDocument("Who is at the gate?", "q/0", "Ada the keeper")
    assert marked(tmp_path, pair, [[4, 7]]).strip() == "the"
    assert marked(tmp_path, pair, [[0, 14]]) == " Ada the keeper\n\n"[1:], "with what ends it"


def test_spans_over_everything_are_the_method_to_the_bit(job: Job, tmp_path: Path) -> None:
    rows = [row | {"spans": [[0, len(row["text"])]]} for row in TEXTS]
    write_jsonl(tmp_path / "spans.jsonl", rows)
    go(replace(job, spans=str(tmp_path / "spans.jsonl")), tmp_path / "spans", "ga")
    go(job, tmp_path / "ga", "ga")
    assert same(weights(tmp_path / "spans"), weights(tmp_path / "ga"))


def test_a_step_without_a_span_has_no_gradient(job: Job, tiny: Path, tmp_path: Path) -> None:
    rows = [row | {"spans": [[0, 5]] if n == 0 else []} for n, row in enumerate(TEXTS)]
    write_jsonl(tmp_path / "spans.jsonl", rows)
    training = go(
        replace(job, spans=str(tmp_path / "spans.jsonl")),
        tmp_path / "out",
        "ga",
        batch_size=1,
        max_steps=6,
    )
    norms = [record.grad_norm for record in training.losses]
    assert sum(norm != 0.0 for norm in norms) == 1
    assert [r.loss for r, n in zip(training.losses, norms, strict=True) if n == 0.0] == [0.0] * 5
    assert not same(weights(tmp_path / "out"), weights(tiny))


def test_surprise_takes_the_least_likely_tokens() -> None:
    rng = np.random.default_rng(0)
    rows = [-rng.random(6), -rng.random(6)]
    examples = (
        Example(tuple(range(7)), (IGNORED, IGNORED, 2, 3, 4, 5, 6)),
        Example(tuple(range(5)), tuple(range(5))),
    )

    class Context:
        model, forget = None, examples

        def measure(self, *given: Any) -> list[list[float]]:
            return [row.tolist() for row in rows]  # the second is padded

    found = most_surprising(Context(), 0.3)  # type: ignore[arg-type]
    every = [(rows[0][t - 1], 0, t) for t in range(2, 7)]
    every += [(rows[1][t - 1], 1, t) for t in range(1, 5)]
    least = {(row, t) for _, row, t in sorted(every)[:3]}  # 30% of 9
    got = {(r, t) for r, e in enumerate(found) for t, x in enumerate(e.labels) if x != IGNORED}
    assert got == least
    assert most_surprising(Context(), 1.0)[0].labels == examples[0].labels  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["surprise", "entities"])
def test_it_trains_and_is_recorded(
    quick: list[str], tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from unlearnbench.checkpoints.find import read_json
    from unlearnbench.checkpoints.origin import Training

    write_jsonl(tmp_path / "forget.jsonl", [{"text": "Ada met Bo at gate 7 of the port."}] * 4)
    assert call(*quick, "--spans", given, "--max-steps", "1") == 0
    assert "tokens are forgotten, in 4 of 4 sequences" in capsys.readouterr().err
    training = Training.model_validate(read_json(tmp_path / "out/unlearning.json"))
    assert training.options.model_dump()["spans"] == given


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (TEXTS[:2], "row 1: it needs 'question' or 'text'"),
        ([row | {"spans": []} for row in TEXTS[:4]], "no row for 2 of 6 forget texts: .*/4, .*/5"),
        ([row | {"spans": [[3, 3]]} for row in TEXTS], r"row 1: the span \[3, 3\] is not"),
        ([row | {"spans": [[True, 3]]} for row in TEXTS], r"row 1: the span \[True, 3\] is not"),
        ([row | {"spans": [[0, 9999]]} for row in TEXTS], r"\[0, 9999\] of .*/0 is beyond its"),
        ([row | {"spans": []} for row in TEXTS], "no token of the forget set is in a span"),
    ],
)
def test_a_file_that_does_not_do_is_refused(
    job: Job, tmp_path: Path, rows: list[dict[str, Any]], says: str
) -> None:
    write_jsonl(tmp_path / "spans.jsonl", rows)
    with pytest.raises((DataError, OptionError), match=says):
        go(replace(job, spans=str(tmp_path / "spans.jsonl")), tmp_path / "out", "ga")
    assert not (tmp_path / "out").exists()


def test_where_it_means_nothing_it_is_refused(job: Job, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--spans is for losses on the forget set, and tv has"):
        go(replace(job, spans="entities"), tmp_path / "out", "tv")
    with pytest.raises(OptionError, match="--span-share is for --spans surprise"):
        go(replace(job, spans="entities"), tmp_path / "out", "ga", span_share=0.1)
    with pytest.raises(OptionError, match="a task's rows are what is evaluated"):
        unlearn(replace(job, spans="task:demo_verbmem", retain=(), out=tmp_path / "out"), "ga")


def test_weights_and_sums_of_nothing_are_no_division_by_0() -> None:
    from unlearnbench.training.batches import sums_of

    nothing = Example((1, 2), (IGNORED, IGNORED))
    sums = sums_of([{"forget": (nothing,)}])
    assert sums == {"all_rows": 1, "all_tokens": {"forget": 1}, "all_weight": 1.0}
    assert torch.zeros(()) / sums["all_tokens"]["forget"] == 0
