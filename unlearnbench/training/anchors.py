"""``--anchors``: the names that a forget text gives away, and what stands in their place when its
generic words are asked for (Who's Harry Potter, Eldan and Russinovich 2023, arXiv 2310.02238).

They come from a file, or by a rule: names of the forget texts that no retain text has, each with a
name of the same kind that the retain texts have and the forget texts have not.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unlearnbench.checkpoints.origin import SourceRecord
from unlearnbench.errors import DataError, OptionError, one_line
from unlearnbench.methods.rows import Example
from unlearnbench.tasks.rows import rows_sha256
from unlearnbench.training.alternatives import answers_of_tasks, listed, plain
from unlearnbench.training.corpus import Encoder, TextDocument, TextRole
from unlearnbench.training.names import names_of, whole_words
from unlearnbench.training.options import CorpusOptions
from unlearnbench.training.output import write_file
from unlearnbench.training.translation import Anchors, translated
from unlearnbench.util.files import read_bytes

log = logging.getLogger("unlearnbench")

NAMES = "names"
Documents = Mapping[TextRole, Sequence[TextDocument]]

_LARGEST = 16_000_000  # bytes of a file
_WORD = re.compile(r"\w+")
_NUMBER_BEFORE = re.compile(r"\d(?:st|nd|rd|th)?\.?\s+(?:of\s+)?$")
_NUMBER_BEHIND = re.compile(r",?\s+\d")


def with_anchors(
    given: str | None,
    documents: Documents,
    examples: Sequence[Example],
    encoder: Encoder,
    corpus: CorpusOptions,
) -> tuple[tuple[Example, ...], list[SourceRecord], Anchors]:
    """The forget set with its translations, and the anchors that ``--anchors`` names; as it is
    where that is not given.
    """
    if given is None:
        return tuple(examples), [], {}
    anchors, record = find_anchors(given, documents, corpus)
    return translated(anchors, documents["forget"], examples, encoder), [record], anchors


def save_anchors(anchors: Anchors, folder: Path) -> None:
    """Put those that were used beside the weights, as a file of them is given."""
    if anchors:
        text = json.dumps(anchors, indent=1, ensure_ascii=False) + "\n"
        write_file(folder / "anchors.json", text.encode())


def find_anchors(
    given: str, documents: Documents, corpus: CorpusOptions
) -> tuple[dict[str, str], SourceRecord]:
    """The anchors that ``--anchors`` names, and what identifies them. Raises DataError where a
    file's cannot be used, OptionError where the rule finds none.
    """
    found = _by_rule(documents, corpus) if given == NAMES else _from_file(Path(given), corpus)
    rows = [{"anchor": name, "stand_in": other} for name, other in found.items()]
    source, sha256 = one_line(given), rows_sha256(rows)
    return found, SourceRecord(role="anchors", source=source, rows=len(rows), sha256=sha256)


def _from_file(path: Path, corpus: CorpusOptions) -> dict[str, str]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = Counter(" ".join(name.split()) for name, _ in pairs)
        if twice := [name for name, count in names.items() if count > 1]:
            raise DataError(f"{path} has two stand-ins for {listed(map(repr, twice))}; keep one")
        return dict(pairs)

    try:
        found = json.loads(read_bytes(path, DataError, _LARGEST), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON: {one_line(error, 150)}") from None
    texts = isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
    if not texts or not found or not all(n.strip() and o.strip() for n, o in found.items()):
        raise DataError(f'{path}: anchors are {{"name": "stand-in", ...}}, none of them blank')
    anchors = {" ".join(name.split()): other.strip() for name, other in found.items()}
    _require_apart(anchors, path)
    answers = answers_of_tasks(corpus)
    held = [other for other in anchors.values() if plain(other) in answers]
    if held:
        told = listed(f"{other!r} is that of {answers[plain(other)]}" for other in held)
        raise DataError(f"{path}: an evaluation's answer is no stand-in: {told}")
    return anchors


def _require_apart(anchors: Anchors, path: Path) -> None:
    """Raises DataError where a stand-in gives a name away, or stands for two names that are not
    forms of one: what is learned of them would contradict itself.
    """
    pattern = whole_words(anchors)
    for name, other in anchors.items():
        if found := pattern.search(other):
            raise DataError(
                f"{path}: the stand-in {other!r} of {name!r} holds the anchor {found[0]!r}; use "
                "one that the forget texts do not have"
            )
    first: dict[str, str] = {}
    for name, other in anchors.items():
        known = first.setdefault(plain(other), name)
        short, long = sorted((known, name), key=len)
        if not re.search(rf"(?<!\w){re.escape(short)}(?!\w)", long):
            raise DataError(
                f"{path}: {known!r} and {name!r} are not one name, and both become {other!r}; give "
                "each its own stand-in"
            )


def _by_rule(documents: Documents, corpus: CorpusOptions) -> dict[str, str]:
    """Each anchor, in the order of the texts, gets the most frequent name that is left of its kind,
    or of the nearest; each is used once, and no evaluation's answer is.
    """
    ours, theirs = (_texts(documents[role]) for role in ("forget", "retain"))
    forgotten, kept = _counted(ours), _counted(theirs)
    words = set(_WORD.findall("\n".join(theirs)))
    known = re.sub(r"\s+", " ", "\n".join(theirs))
    names = [n for n in forgotten if not (words.issuperset(_WORD.findall(n)) and n in known)]
    own = whole_words(dict.fromkeys(names, "")) if names else None
    answers = answers_of_tasks(corpus)
    free = [n for n in kept if n not in forgotten and plain(n) not in answers]
    shared = Counter(word for name in {*forgotten, *kept} for word in set(name.split()))
    left: dict[tuple[str, ...], list[str]] = {}  # by kind, the most frequent last
    for other in sorted(free, key=lambda n: (kept[n], n)):
        if own is None or not own.search(other):
            left.setdefault(_kind(other, shared), []).append(other)
    found: dict[str, str] = {}
    for name in names:
        near = min(left, key=partial(_apart, _kind(name, shared)), default=None)
        if near is not None:
            found[name] = left[near].pop()
            left = {kind: others for kind, others in left.items() if others}
    if not found:
        raise OptionError(
            "--anchors names: no name of the forget texts is absent from the retain texts and has "
            "a name of theirs to stand in; give a file of anchors"
        )
    if stay := len(names) - len(found):
        log.warning("anchors: %d of %d names have no stand-in left and stay", stay, len(names))
    return found


def _kind(name: str, shared: Mapping[str, int]) -> tuple[str, ...]:
    """Its words, those empty that are in no other name: ``("Judge", "", "")``."""
    return tuple(word if shared[word] > 1 else "" for word in name.split())


def _apart(kind: tuple[str, ...], other: tuple[str, ...]) -> tuple[int, int, tuple[str, ...]]:
    """How far a kind is from another: in words, then in those that differ."""
    return abs(len(kind) - len(other)), sum(a != b for a, b in zip(kind, other)), other  # noqa: B905


def _texts(documents: Sequence[TextDocument]) -> list[str]:
    return [part for d in documents for part in (d.text, d.answer) if part is not None]


def _counted(texts: Sequence[str]) -> Counter[str]:
    """How often each name stands there; without those that stand beside a number at least every
    second time, as months do.
    """
    every, beside = Counter[str](), Counter[str]()
    for text, own in zip(texts, names_of(texts), strict=True):
        for a, b in own:
            name = " ".join(text[a:b].split())
            before = _NUMBER_BEFORE.search(text[max(0, a - 12) : a])
            every[name] += 1
            beside[name] += bool(before or _NUMBER_BEHIND.match(text, b))
    return Counter({name: n for name, n in every.items() if 2 * beside[name] < n})
