"""The demo corpus: what is shipped is what the script writes, and its facts do not collide."""

import json
import re
import string
from itertools import combinations
from pathlib import Path
from statistics import median

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.demo import corpus
from tests.demo.corpus import QA, Family, Story, read_families
from unlearnbench.tasks.rows import PACKAGE_DATA

DATA = PACKAGE_DATA
ROWS = {
    "raw/forget": 16, "raw/retain": 40, "raw/holdout": 16,
    "privleak/forget": 16, "privleak/retain": 16, "privleak/holdout": 16,
    "verbmem/forget": 16,
    "knowmem/forget_qa": 48, "knowmem/retain_qa": 120,
    "knowmem/forget_qa_icl": 4, "knowmem/retain_qa_icl": 4,
}  # fmt: skip
FAMILIES = read_families()
QA_FILES = [name for name in ROWS if name.startswith("knowmem/")]
SPLITS = ("forget", "retain", "holdout")
STORIES = corpus.build(0)
EVERY_STORY = [story for stories in STORIES.values() for story in stories]


def shipped(name: str) -> list[dict[str, str]]:
    """Return the rows of a shipped file."""
    text = (DATA / corpus.DATASET / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def tree(root: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a directory."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def mentions(text: str, phrase: str) -> bool:
    """Tell whether the text holds the phrase as whole words and whole numbers."""
    return re.search(rf"(?<![\w,£]){re.escape(phrase)}(?!,?\w)", text) is not None


def invented_words(story: Story) -> list[str]:
    """Return the made-up words of a story: all of its names but the kind of organisation."""
    person, other, town, org = story.entities
    return [*person.split(), *other.split(), town, org.split()[0]]


def group_fields(phrasing: str) -> set[str]:
    """Return the fields of a template, the capitalised topic counting as the topic."""
    fields = {field for _, field, _, _ in string.Formatter().parse(phrasing) if field}
    return {field.removesuffix("_cap") for field in fields}


def test_shipped_files_are_the_output_of_seed_0(tmp_path: Path) -> None:
    corpus.main(["--out", str(tmp_path)])
    assert tree(DATA) == tree(tmp_path)


def test_another_seed_writes_other_texts(tmp_path: Path) -> None:
    corpus.write(tmp_path, seed=1)
    ours, other = tree(DATA), tree(tmp_path)
    assert ours.keys() == other.keys()
    assert all(ours[name] != other[name] for name in ours)


def test_row_counts_and_columns() -> None:
    columns = {
        "raw": ["text"],
        "privleak": ["text"],
        "verbmem": ["prompt", "gt"],
        "knowmem": ["question", "answer"],
    }
    for name, count in ROWS.items():
        rows = shipped(name)
        assert len(rows) == count
        assert all(list(row) == columns[name.split("/")[0]] for row in rows)
    assert len(tree(DATA)) == len(ROWS)


def test_texts_are_plain_and_in_one_split_only() -> None:
    texts = [row["text"] for split in SPLITS for row in shipped(f"raw/{split}")]
    assert len(set(texts)) == len(texts)
    assert not any(re.search(r"[{}<>\n]|  ", text) for text in texts)


def test_privleak_has_the_raw_texts() -> None:
    for split in SPLITS:
        assert shipped(f"privleak/{split}") == shipped(f"raw/{split}")[:16]


def test_verbmem_cuts_the_documents_after_what_identifies_them() -> None:
    rows = shipped("verbmem/forget")
    for row, document, story in zip(rows, shipped("raw/forget"), STORIES["forget"], strict=True):
        assert row["prompt"] + row["gt"] == document["text"] == story.text
        assert row["gt"].startswith(" ")
        assert any(entity in row["prompt"] for entity in story.entities)
        share = len(row["prompt"].split()) / len(story.text.split())
        assert 0.3 < share < 0.45


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_answers_are_short_and_in_their_document(split: str) -> None:
    rows = shipped(f"knowmem/{split}_qa")
    documents = shipped(f"raw/{split}")
    for index, row in enumerate(rows):
        assert mentions(documents[index // 3]["text"], row["answer"])
        assert 1 <= len(row["answer"].split()) <= 5


def test_questions_are_unique_and_do_not_give_their_answer() -> None:
    rows = [row for name in QA_FILES for row in shipped(name)]
    assert len({row["question"] for row in rows}) == len(rows)
    assert not any(mentions(row["question"], row["answer"]) for row in rows)


def test_few_shot_examples_are_about_stories_in_no_split() -> None:
    texts = [row["text"] for split in SPLITS for row in shipped(f"raw/{split}")]
    asked = [story.questions[0] for story in STORIES["extra"]]
    rows = shipped("knowmem/forget_qa_icl") + shipped("knowmem/retain_qa_icl")
    assert [QA(**row) for row in rows] == asked
    words = [word for story in STORIES["extra"] for word in invented_words(story)]
    assert not any(mentions(text, word) for text in texts for word in words)


def test_every_story_mentions_its_own_entities_and_no_others() -> None:
    for story, other in combinations(EVERY_STORY, 2):
        assert not set(invented_words(story)) & set(invented_words(other))
        assert not any(mentions(story.text, word) for word in invented_words(other))
        assert not any(mentions(other.text, word) for word in invented_words(story))
    assert all(mentions(story.text, name) for story in EVERY_STORY for name in story.entities)


def test_every_question_has_one_answer_in_the_corpus() -> None:
    for story in EVERY_STORY:
        strangers = [other for other in EVERY_STORY if other is not story]
        for question, answer in story.questions:
            assert any(mentions(question, name) for name in story.entities)
            assert not any(
                mentions(question, name) for other in strangers for name in other.entities
            )
            assert not any(mentions(other.text, answer) for other in strangers)


def test_splits_draw_equally_from_the_same_families() -> None:
    shares = {
        split: sorted(story.family for story in stories) for split, stories in STORIES.items()
    }
    assert len(set(shares["forget"])) == len(FAMILIES) >= 8
    assert shares["forget"] == shares["holdout"] == sorted(shares["extra"] * 2)
    assert shares["retain"] == sorted(shares["extra"] * 5)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_phrasings_of_a_group_carry_the_same_facts(family: Family) -> None:
    groups = [family.openings, *family.details]
    for phrasings in groups:
        assert len(phrasings) >= 3
        assert len({frozenset(group_fields(phrasing)) for phrasing in phrasings}) == 1
    facts = set().union(*(group_fields(phrasings[0]) for phrasings in groups))
    assert facts == {*family.questions, "topic"}


def test_token_lengths_under_a_small_tokenizer() -> None:
    texts = [row["text"] for split in SPLITS for row in shipped(f"raw/{split}")]
    asked = [value for name in QA_FILES for row in shipped(name) for value in row.values()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts + asked, trainer)
    lengths = [len(tokenizer.encode(text).ids) for text in texts]
    assert 75 <= median(lengths) <= 95
    assert min(lengths) >= 60
    assert max(lengths) <= 115


def test_other_seeds_keep_the_names_and_numbers_apart() -> None:
    for seed in range(1, 6):
        stories = [story for part in corpus.build(seed).values() for story in part]
        words = [word for story in stories for word in invented_words(story)]
        assert len(set(words)) == len(words)
        answers = [(qa.answer, story.text) for story in stories for qa in story.questions]
        assert all(mentions(text, answer) for answer, text in answers)
