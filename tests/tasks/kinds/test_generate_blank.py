"""The blank behind "Answer:": which tokenizers join it with the word behind it, and the version of
a task that leaves it to the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import Toy, make_tokenizer
from unlearnbench.errors import TaskError
from unlearnbench.tasks.registry import builtin_task_dir, load_registry, read_task
from unlearnbench.tasks.rows import DataOptions, load_samples
from unlearnbench.util.text import blank_in_answer, joins_blank

WORDS = ["a: Paris and the two in London", "a: The two of Paris", "Yes: No Paris"] * 20
SIGNS = sorted({c for line in WORDS for c in line})


def trained(kind: str) -> Any:
    """A tokenizer of a kind, trained on a few words until each of them is one token."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    special, letters = ["<unk>"], SIGNS
    if kind.startswith("byte-level"):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind.endswith("prefix"))
        backend.decoder = decoders.ByteLevel()
        letters = pre_tokenizers.ByteLevel.alphabet()
    elif kind.startswith("metaspace"):
        scheme = kind.split()[1]
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    elif kind == "llama-2":  # the rules of its tokenizer.json
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    elif kind == "gemma":
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    elif kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
    elif kind == "characters":
        backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        backend.decoder = decoders.Fuse()
    given: dict[str, Any] = {"vocab_size": 2000, "special_tokens": special, "show_progress": False}
    trainer: Any = trainers.BpeTrainer(initial_alphabet=letters, **given)
    if kind == "wordpiece":
        trainer = trainers.WordPieceTrainer(**given)
    backend.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.field(
    "Prompts and tokenizers",
    "KnowMem, a tokenizer of Llama-2's kind, WordPiece, characters",
    "version 1 of the task",
)
@pytest.mark.parametrize(
    ("kind", "joins"),
    [
        ("byte-level", True),
        ("byte-level prefix", True),
        ("metaspace never", True),
        ("gemma", True),
        ("metaspace always", False),
        ("metaspace first", False),
        ("llama-2", False),
        ("wordpiece", False),
        ("characters", False),
    ],
)
def test_which_tokenizers_join(kind: str, joins: bool) -> None:
    tokenizer = trained(kind)
    ids = tokenizer("a: Paris")["input_ids"]
    assert len(ids) == 8 if kind == "characters" else len(ids) <= 3, "the words are tokens"
    assert joins_blank(tokenizer) is joins


def test_bytes_alone_do_not_join_and_a_few_merges_do() -> None:
    assert not joins_blank(make_tokenizer(258))
    assert joins_blank(make_tokenizer(300))


def test_the_option_has_the_last_word() -> None:
    joined, apart = make_tokenizer(300), make_tokenizer(258)
    assert [blank_in_answer(a, joined) for a in ("auto", "prompt", "answer")] == [True, False, True]
    assert [blank_in_answer(a, apart) for a in ("auto", "prompt", "answer")] == [False, False, True]
    assert [blank_in_answer(a, None) for a in ("auto", "prompt", "answer")] == [False, False, True]


# What the hash was before there was a second version: results, references and boards have it.
FIRST = {
    "news_knowmem_f": "fe25d0f4b5db07d58bdc55ef605db46d54a242c5c497b375e6f22578c741e706",
    "news_knowmem_r": "358fc11307086f294769603f1ce525a96e945c5b36cc7be62addf72e4812df11",
    "books_knowmem_f": "e055920ebcbbfaed4d16039a67d56a5e1a0de8f824e2d377ddfde710b5312064",
    "books_knowmem_r": "de00f3e006f884807415c475d64e7216ea38bdc3d8dc6ab54a9e1cfa3352cf3b",
}


@pytest.mark.parametrize("name", FIRST)
def test_the_second_version_is_the_task_that_a_file_would_say(name: str, tmp_path: Path) -> None:
    path = builtin_task_dir() / f"{name}.yaml"
    spec = read_task(path)
    assert (spec.version, spec.definition_sha256) == (1.0, FIRST[name])
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    del fields["version_without_blank"]
    fields |= {
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "target_delimiter": " ",
        "metadata": {"version": 2.0},
    }
    (tmp_path / path.name).write_text(json.dumps(fields), encoding="utf-8")
    second = read_task(tmp_path / path.name)
    registry = load_registry()
    assert second == spec.without_blank() == registry.of_version(name, 2.0)
    assert second.definition_sha256 != FIRST[name]
    assert registry.of_version(name, 1.0) == registry.of_version(name, 7.0) == spec


def test_its_prompt_ends_at_the_colon_and_shots_are_the_same(toy: Toy) -> None:
    first = load_registry([with_second(toy)]).tasks["toy_knowmem_f"]
    second = first.without_blank()
    assert second is not None
    ours, theirs = (load_samples(s, DataOptions(toy.data)).samples for s in (first, second))
    assert [s.text for s in theirs] == [s.text[:-1] for s in ours]
    assert {s.text[-9:] for s in ours} == {"\nAnswer: "}
    assert [s.target for s in theirs] == [s.target for s in ours]
    assert second.plain_text({"question": "q", "answer": "a"}, "") == "Question: q\nAnswer: a"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('doc_to_text: "{{question}}"', "doc_to_text does not end in one blank"),
        ('doc_to_text: "{{question}}  "', "doc_to_text does not end in one blank"),
        ('doc_to_text: " "', "doc_to_text does not end in one blank"),
        ('doc_to_text: "{{question}} "\nversion_without_blank: 1.0', "it is metadata.version"),
    ],
)
def test_a_second_version_that_is_none(toy: Toy, line: str, said: str) -> None:
    path = with_second(toy) / "toy_knowmem_f.yaml"
    text = path.read_text(encoding="utf-8").splitlines()
    drop = ("doc_to_text", "version_without_blank" if "1.0" in line else "-")
    kept = [each for each in text if not each.startswith(drop)]
    path.write_text("\n".join([*kept, line]) + "\n", encoding="utf-8")
    with pytest.raises(TaskError, match=f"yaml:[0-9]+: version_without_blank: {said}"):
        read_task(path)


def with_second(toy: Toy) -> Path:
    """The folder of the toy tasks, whose questions have a second version."""
    path = toy.tasks / "toy_knowmem_f.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}version_without_blank: 2.0\n", encoding="utf-8")
    return toy.tasks
