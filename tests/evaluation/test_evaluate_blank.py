"""Which version of a question a run asks, what it says of that, and that versions never mix."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeCheckpoint, Toy, make_model, make_tokenizer
from tests.tasks.kinds.test_generate_blank import with_second
from unlearnbench import RunResult, ScriptedModel, evaluate
from unlearnbench.errors import OptionError, ResultError
from unlearnbench.results import GenerationRecord
from unlearnbench.runs.entries import LoadedRun, require_comparable
from unlearnbench.runs.folder import RunFolder, run_path

NAME = "toy_knowmem_f"


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokens are single bytes."""
    folder, tokenizer = tmp_path_factory.mktemp("apart"), make_tokenizer(258)
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(model: Any, toy: Toy, out: str = "out", **options: Any) -> tuple[RunResult, list[str]]:
    """The run, and the ends of its prompts."""
    where = {**toy.options, "output": toy.out / out}
    if isinstance(model, Path):
        where["dtype"] = "fp32"
    (result,) = evaluate(model, NAME, **where, **options)
    folder = RunFolder(run_path(toy.out / out, result.checkpoint, "none"))
    records = folder.read_records(NAME, result.tasks[NAME].records_sha256)
    ends = [r.prompt[-9:] for r in records if isinstance(r, GenerationRecord)]
    return result, ends


FIRST, SECOND = (1.0, ["\nAnswer: "] * 3), (2.0, ["?\nAnswer:"] * 3)


@pytest.mark.field(
    "Prompts and tokenizers",
    "KnowMem, a tokenizer that joins blank and word (byte-level BPE, Gemma)",
    "version 2 of the task, with a note",
)
@pytest.mark.parametrize(
    ("joins", "asked", "expected", "said"),
    [
        (True, "auto", SECOND, True),
        (True, "prompt", FIRST, False),
        (True, "answer", SECOND, False),
        (False, "auto", FIRST, False),
        (False, "answer", SECOND, False),
    ],
)
def test_the_version_in_use(
    joins: bool,
    asked: str,
    expected: tuple[float, list[str]],
    said: bool,
    tiny: Path,
    apart: Path,
    toy: Toy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with_second(toy)
    with caplog.at_level(logging.INFO, "unlearnbench"):
        result, ends = run(tiny if joins else apart, toy, answer_blank=asked)
    assert (result.tasks[NAME].version, ends) == expected
    lines = [m for m in caplog.messages if "--answer-blank" in m]
    assert len(lines) == said
    assert all(f"{NAME}: the version whose prompt ends at the colon" in line for line in lines)


@pytest.mark.field(
    "Prompts and tokenizers",
    "versions 1 and 2 of a task compared, resumed, or as reference",
    "refused",
)
def test_versions_never_mix(tiny: Path, toy: Toy) -> None:
    with_second(toy)
    first, _ = run(tiny, toy, "first", answer_blank="prompt")
    with pytest.raises(ResultError, match=f"holds another {NAME}: .*version"):
        run(tiny, toy, "first")
    second, _ = run(tiny, toy, "second")
    loaded = [
        LoadedRun(run_path(toy.out / out, result.checkpoint, "none"), result)
        for out, result in (("first", first), ("second", second))
    ]
    with pytest.raises(OptionError, match=f"{NAME}: .*version"):
        require_comparable(loaded[0], loaded[1], [NAME])


@pytest.mark.field(
    "Prompts and tokenizers",
    "own task whose prompt ends in a blank, a tokenizer that joins it and the word",
    "with a note",
)
def test_a_users_task_that_keeps_its_blank_is_named(
    tiny: Path, apart: Path, toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    for model, asked, notes in ((tiny, "auto", 1), (tiny, "prompt", 0), (apart, "auto", 0)):
        caplog.clear()
        result, ends = run(model, toy, f"{asked}-{model.name}", answer_blank=asked)
        assert (result.tasks[NAME].version, ends) == FIRST
        lines = [m for m in caplog.messages if "the prompt ends in a blank" in m]
        assert len(lines) == notes
        assert all(NAME in line and "version_without_blank" in line for line in lines)
    with pytest.raises(OptionError, match=f"--answer-blank answer: {NAME} has no version_wit"):
        run(tiny, toy, "forced", answer_blank="answer")


def test_a_model_without_a_tokenizer_is_asked_the_first_version(toy: Toy) -> None:
    with_second(toy)
    asked = "Question: Which gate is {}?\nAnswer:"
    shots = "".join(f"{asked.format(n)} gate {n}\n\n" for n in (3, 4))
    prompts = [shots + asked.format(n) for n in range(3)]
    outputs = {p + blank: f"gate {n}" for n, p in enumerate(prompts) for blank in (" ", "")}
    model = ScriptedModel(outputs, {})
    assert run(model, toy, "auto")[1] == FIRST[1]
    result, ends = run(model, toy, "answer", answer_blank="answer")
    assert (result.tasks[NAME].version, ends) == SECOND


def test_a_model_of_ours_is_probed(make_checkpoint: MakeCheckpoint, toy: Toy) -> None:
    from tests.checkpoints.helpers import load

    with_second(toy)
    assert run(load(make_checkpoint("own")), toy)[1] == SECOND[1]
