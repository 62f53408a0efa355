"""Write the demo corpus: short invented news stories, laid out as MUSE lays out its data sets.

`python -m tests.demo.corpus --out DIR` writes `<subset>/<split>.jsonl` files below
`DIR/unlearnbench/demo`. The data shipped in the package is its output for seed 0, with
`unlearnbench/demo/data` as DIR.

A seed gives the same bytes on every Python: only methods of `random.Random` whose algorithm has
stayed the same are used, and nothing iterates over a set.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from unlearnbench.util.validation import read_yaml

DATASET = "unlearnbench/demo"
"""The name of the data set, which is also its folder below the output directory."""

SPLITS = {"forget": 2, "retain": 5, "holdout": 2, "extra": 1}
"""How many stories of every family each split gets; `extra` feeds only the few-shot examples."""

QUESTIONS_PER_STORY = 3
ICL_ROWS = 4

ONSETS = [
    "Bl", "Br", "Ch", "Cl", "Cr", "Dr", "Fl", "Fr", "Gl", "Gw", "J", "Kl", "Kr", "Pl", "Pr",
    "Sk", "Sl", "Sn", "Sp", "Str", "Sw", "Th", "Tr", "Tw", "V", "Y", "Z",
]  # fmt: skip
CODAS = ["d", "l", "m", "n", "r", "s"]
ENDINGS = {
    "first": ["a", "en", "ia", "in", "o"],
    "last": ["ander", "ard", "by", "ley", "ock", "sett"],
    "town": ["bridge", "combe", "ford", "haven", "holt", "mere", "mouth", "wick"],
    "org": ["ana", "ero", "ex", "ium", "ona", "ova"],
}
# Stems that make the name of a real place or person, or a rude word.
AVOIDED = [
    "Blad", "Blan", "Bram", "Bran", "Brad", "Brom", "Chad", "Chal", "Cham", "Char", "Chas",
    "Chel", "Ches", "Chin", "Chis", "Chor", "Clan", "Clun", "Crad", "Cran", "Crom", "Cros",
    "Flor", "Frod", "Jas", "Jes", "Jis", "Jud", "Klan", "Pres", "Spam", "Spas", "Strad", "Swan",
    "Swas", "Swin", "Thor", "Tran", "Trum", "Yar",
]  # fmt: skip

MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
]  # fmt: skip
YEARS = range(2041, 2050)

Row = dict[str, str]


@dataclass(frozen=True)
class Family:
    """One type of story; ``stories.yaml`` says what its fields hold."""

    name: str
    org_kinds: list[str]
    n1: tuple[int, int, int, str]
    n2: tuple[int, int, int, str]
    topics: list[str]
    openings: list[str]
    details: list[list[str]]
    questions: dict[str, list[str]]


def read_families() -> list[Family]:
    """The families of ``stories.yaml``, in its order."""
    content: dict[str, Any] = read_yaml(Path(__file__).with_name("stories.yaml")).value
    return [Family(name, **fields) for name, fields in content.items()]


class QA(NamedTuple):
    """A question about a story and its short answer, verbatim in the story."""

    question: str
    answer: str


@dataclass(frozen=True)
class Story:
    """One invented news story; `entities` are its two people, its town and its organisation."""

    family: str
    text: str
    entities: tuple[str, ...]
    questions: tuple[QA, ...]


class Facts:
    """Draws names, numbers and dates, none of them twice, so that no two stories share a fact."""

    def __init__(self, rng: Random) -> None:
        """Shuffle the name stems and the dates that are handed out from here on."""
        self._rng = rng
        self._stems = [o + v + c for o in ONSETS for v in "aeiou" for c in CODAS]
        self._stems = [stem for stem in self._stems if stem not in AVOIDED]
        rng.shuffle(self._stems)
        # Days 1 to 28 exist in every month.
        self._dates = [
            f"{day} {month} {year}" for year in YEARS for month in MONTHS for day in range(1, 29)
        ]
        rng.shuffle(self._dates)
        self._numbers: set[int] = set()

    def name(self, kind: str) -> str:
        """Return a new one-word name; its stem is in no other name of the corpus."""
        return self._stems.pop() + self._rng.choice(ENDINGS[kind])

    def person(self) -> str:
        """Return a new first and last name."""
        return f"{self.name('first')} {self.name('last')}"

    def date(self) -> str:
        """Return a new date such as "14 March 2043"."""
        return self._dates.pop()

    def amount(self, kind: tuple[int, int, int, str]) -> str:
        """Return a new number in the range, with a comma after the thousands."""
        low, high, step, sign = kind
        number = self._rng.randrange(low, high, step)
        while number in self._numbers:
            number = self._rng.randrange(low, high, step)
        self._numbers.add(number)
        return f"{sign}{number:,}"


def make_story(family: Family, topic: str, facts: Facts, rng: Random) -> Story:
    """Return a story of the family on the topic, with new facts and randomly drawn phrasings."""
    fields = {
        "person": facts.person(),
        "other": facts.person(),
        "town": facts.name("town"),
        "org": f"{facts.name('org')} {rng.choice(family.org_kinds)}",
        "n1": facts.amount(family.n1),
        "n2": facts.amount(family.n2),
        "date": facts.date(),
        "topic": topic,
        "topic_cap": topic[0].upper() + topic[1:],
    }
    details = [rng.choice(phrasings) for phrasings in family.details]
    rng.shuffle(details)
    text = " ".join([rng.choice(family.openings), *details]).format(**fields)
    asked = rng.sample(list(family.questions), QUESTIONS_PER_STORY)
    questions = tuple(
        QA(rng.choice(family.questions[field]).format(**fields), fields[field]) for field in asked
    )
    entities = tuple(fields[field] for field in ("person", "other", "town", "org"))
    return Story(family.name, text, entities, questions)


def build(seed: int) -> dict[str, list[Story]]:
    """Return the stories of every split of `SPLITS`.

    Every family is dealt to the splits at random and in fixed shares, so that forget and holdout
    stories come from one distribution: nothing but training can tell them apart.
    """
    rng = Random(seed)
    facts = Facts(rng)
    corpus: dict[str, list[Story]] = {split: [] for split in SPLITS}
    for family in read_families():
        topics = rng.sample(family.topics, sum(SPLITS.values()))
        stories = [make_story(family, topic, facts, rng) for topic in topics]
        rng.shuffle(stories)
        for split, share in SPLITS.items():
            corpus[split] += [stories.pop() for _ in range(share)]
    for stories in corpus.values():
        rng.shuffle(stories)
    return corpus


def cut(story: Story) -> Row:
    """Cut the story after about a third of its words, once it has named one of its entities."""
    words = story.text.split(" ")
    end = math.ceil(len(words) / 3)
    while not any(entity in " ".join(words[:end]) for entity in story.entities):
        end += 1
    prompt = " ".join(words[:end])
    return {"prompt": prompt, "gt": story.text[len(prompt) :]}


def _qa_rows(stories: Sequence[Story], per_story: int = QUESTIONS_PER_STORY) -> list[Row]:
    return [qa._asdict() for story in stories for qa in story.questions[:per_story]]


def tables(seed: int) -> dict[str, list[Row]]:
    """Return the rows of every file, by "<subset>/<split>"."""
    corpus = build(seed)
    forget, extra = corpus["forget"], corpus["extra"]
    raw = {
        split: [{"text": story.text} for story in corpus[split]]
        for split in ("forget", "retain", "holdout")
    }
    # A membership attack compares groups of equal size.
    privleak = {split: rows[: len(forget)] for split, rows in raw.items()}
    return {
        **{f"raw/{split}": rows for split, rows in raw.items()},
        **{f"privleak/{split}": rows for split, rows in privleak.items()},
        "verbmem/forget": [cut(story) for story in forget],
        "knowmem/forget_qa": _qa_rows(forget),
        "knowmem/retain_qa": _qa_rows(corpus["retain"]),
        "knowmem/forget_qa_icl": _qa_rows(extra[:ICL_ROWS], per_story=1),
        "knowmem/retain_qa_icl": _qa_rows(extra[ICL_ROWS:][:ICL_ROWS], per_story=1),
    }


def write(out: Path, seed: int = 0) -> list[Path]:
    """Write every file below `out` and return their paths."""
    paths = []
    for name, rows in tables(seed).items():
        path = out / DATASET / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        # As bytes: text mode would write other line ends on some systems.
        path.write_bytes("".join(lines).encode("utf-8"))
        paths.append(path)
    return paths


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the demo corpus, invented news stories.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write below")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus (default: 0)")
    args = parser.parse_args(argv)
    for path in write(args.out, args.seed):
        print(path)


if __name__ == "__main__":
    main()
