from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CORPUS, MakeCheckpoint, make_tokenizer
from tests.models.architectures import Given, make_kind, wrap
from tests.models.test_hf import PROMPTS, load
from unlearnbench.conditions import resolve
from unlearnbench.conditions.load import prepare_all
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.errors import CheckpointError, ModelOutputError, OptionError
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Score
from unlearnbench.results import Condition, ConditionOptions


def test_long_prompts_are_cut_on_the_left_when_asked() -> None:
    model = make_kind("llama")
    model.config.max_position_embeddings = 32
    tokenizer = make_tokenizer()
    options = ConditionOptions(bits=32, scheme="as it is", backend="torch")
    condition = Condition(name="none", kind="stored", options=options)
    given: Any = Given(model, truncate_left=True)
    cutting = HFModel(model, given, condition, "fp32", "cpu", None)
    ids = tokenizer(CORPUS[0]).input_ids
    assert cutting.tokens.fit("t", ids, 8) == [ids[0], *ids[-23:]], "its begin token stays"
    (answer,) = cutting.score([Score("t", CORPUS[0])])
    assert len(answer.logprobs) == 31
    with pytest.raises(ModelOutputError, match="context of 32.*--truncate-left"):
        list(wrap(model).score([Score("t", CORPUS[0])]))


def test_text_ends_at_the_end_token(tiny: Path) -> None:
    model: Any = load(tiny)
    row = [5, 6, 1, 7]
    answer = model.tokens.answer(Generate("a", "x", 4), row)
    assert (answer.text, answer.n_tokens) == (model.tokens.decode([5, 6]), 2)


def test_a_prompt_beyond_the_context_is_an_error_naming_both_lengths(
    make_checkpoint: MakeCheckpoint,
) -> None:
    model = load(make_checkpoint("short", max_position_embeddings=32))
    with pytest.raises(ModelOutputError, match=r"t: \d+ tokens and 8 new ones .* context of 32"):
        list(model.generate([Generate("t", CORPUS[0], 8)]))
    with pytest.raises(ModelOutputError, match="context of 32"):
        list(model.score([Score("t", CORPUS[0])]))


def test_truncate_counts_special_tokens(tiny: Path) -> None:
    model: Any = load(tiny)
    text = CORPUS[3]
    ids = model.tokens.encode(text)
    assert ids[0] == 0, "the tokenizer adds its begin token"
    assert model.tokens.encode(model.truncate(text, 9)) == ids[:9]
    assert model.truncate(text, len(ids)) == text


@pytest.mark.field(
    "Prompts and tokenizers",
    "end token behind every text, ordinary word as end",
    "refused, before a training too",
)
def test_a_tokenizer_that_ends_texts_is_refused_before_the_first(
    make_checkpoint: MakeCheckpoint,
) -> None:
    """Prompts would go on behind the end, and PrivLeak would score it with every text."""
    path = make_checkpoint("ends-prompts")
    tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    tokenizer["post_processor"]["single"].append(end)
    tokenizer["post_processor"]["special_tokens"]["</s>"] = {
        "id": "</s>",
        "ids": [1],
        "tokens": ["</s>"],
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(CheckpointError, match="ends texts with an end-of-text token"):
        load(path)


def test_a_prompt_that_ends_with_an_end_token_is_an_error(tiny: Path) -> None:
    model = load(tiny)
    with pytest.raises(ModelOutputError, match="t: the prompt ends with an end-of-text token"):
        list(model.generate([Generate("t", f"{PROMPTS[4]}</s>", 4)]))
    assert len(list(model.score([Score("t", f"{PROMPTS[4]}</s>")]))) == 1


def asked(path: Path, **options: Any) -> Any:
    """The model of a checkpoint, read as the options say."""
    (prepared,) = prepare_all(str(path), resolve(["none"]), KernelOptions(**options))
    return prepared.load()


@pytest.mark.field(
    "Prompts and tokenizers", "thought that does not end in the tokens it has", "refused"
)
def test_an_answer_begins_behind_the_thought(tiny: Path) -> None:
    model = asked(tiny, think_end_token="7")
    ids = make_tokenizer()("\nno Question: yes", add_special_tokens=False).input_ids
    request = Generate("a", "x", 99, stop=("Question:",))
    assert model.tokens.stopped(request, ids) is False, "a thought may hold a stop string"
    assert model.tokens.stopped(request, [5, 7, *ids]) is True
    found = model.tokens.answer(request, [*ids, 7, 7, *ids, 1, 9])
    assert found.text == "no ", "behind the last end, without the blanks before it"
    assert len(ids) + 2 < found.n_tokens < 2 * len(ids) + 2, "the thought is counted"
    assert model.tokens.answer(request, ids).text == "\nno ", "no thought: the whole"
    for prompt, begun in (("x<think>\n", ""), ("x", " <think>\n")):
        row = make_tokenizer()(begun + "I never end", add_special_tokens=False).input_ids
        with pytest.raises(ModelOutputError, match="a: the thought did not end within .*max_gen"):
            model.tokens.answer(Generate("a", prompt, 99), row)


def test_thoughts_are_taken_off_however_answers_are_made(tiny: Path) -> None:
    (plain,) = asked(tiny).generate([Generate("a", PROMPTS[4], 12)])
    row = make_tokenizer()(plain.text, add_special_tokens=False).input_ids
    end = row[3]  # as if it were the token behind a thought
    rest = row[max(at for at, token in enumerate(row) if token == end) + 1 :]
    expected = str(make_tokenizer().decode(rest)).lstrip()
    model = asked(tiny, think_end_token=str(end))
    (packed,) = model.generate([Generate("a", PROMPTS[4], 12)])
    model._continuer = "as for a model that cannot"
    (padded,) = model.generate([Generate("a", PROMPTS[4], 12)])
    assert packed.text == padded.text == expected != plain.text
    assert packed.n_tokens == padded.n_tokens == plain.n_tokens


def test_a_shorter_context_is_held(tiny: Path) -> None:
    ids = make_tokenizer()(CORPUS[0]).input_ids
    with pytest.raises(ModelOutputError, match="context of 32"):
        list(asked(tiny, max_length=32).score([Score("t", CORPUS[0])]))
    model = asked(tiny, max_length=32, truncate_left=True)
    assert model.tokens.fit("t", ids, 8) == [ids[0], *ids[-23:]]
    with pytest.raises(OptionError, match=r"--max-length 99999: the model's context is \d+"):
        asked(tiny, max_length=99999)
