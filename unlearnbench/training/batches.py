"""From documents to token sequences, and from those to the batches of every step.

The whole order of training is laid out before it starts, as a function of the seed alone. So a
resumed run sees the same rows, and so do two processes that share a step between them.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import DataError, ModelOutputError, OptionError
from unlearnbench.methods.rows import IGNORED, Batch, Example, Role
from unlearnbench.training.corpus import Corpus, Document

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class Encoder:
    """Turns documents into sequences of at most ``max_length`` tokens, ids below ``rows``."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    rows: int
    qa_loss: str = "answer"

    def encode(self, corpus: Corpus, role: str) -> tuple[Example, ...]:
        """All sequences of a corpus. A text longer than ``max_length`` is cut into pieces of that
        length, all kept; a question is cut from its left. How many were cut is said.

        Raises:
            DataError: a document has fewer than two tokens, or an answer alone is too long.
        """
        examples: list[Example] = []
        long = 0
        for document in corpus.documents:
            parts = self._pair(document) if document.answer is not None else self._text(document)
            long += len(parts) > 1
            examples += parts
        if long:
            log.warning(
                "%s: %d of %d texts are longer than %d tokens and were cut into pieces, %d in all",
                role,
                long,
                len(corpus.documents),
                self.max_length,
                len(examples),
            )
        return tuple(examples)

    def _tokens(self, text: str, special: bool, where: str) -> list[int]:
        ids = list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        if ids and max(ids) >= self.rows:
            raise ModelOutputError(
                f"{where}: token {max(ids)} is beyond the model's {self.rows} rows"
            )
        return ids

    def _text(self, document: Document) -> list[Example]:
        ids = self._tokens(document.text, True, document.where)
        if len(ids) < 2:
            raise DataError(f"{document.where}: a text of {len(ids)} tokens teaches nothing")
        size = self.max_length
        pieces = [ids[at : at + size] for at in range(0, len(ids), size)]
        if len(pieces) > 1 and len(pieces[-1]) < 2:  # its one token would never be predicted
            pieces.pop()
        return [Example(tuple(piece), tuple(piece)) for piece in pieces]

    def _pair(self, document: Document) -> list[Example]:
        """In the words of the KnowMem prompts. The answer is encoded by itself, because there the
        prompt ends before it and no token spans both.
        """
        question = f"Question: {document.text}\nAnswer: "
        asked = self._tokens(question, True, document.where)
        begin = len(asked) - len(self._tokens(question, False, document.where))
        told = self._tokens(f"{document.answer}\n\n", False, document.where)
        return [self._joined(asked, told, begin, document.where)]

    def _joined(self, asked: Sequence[int], told: Sequence[int], begin: int, where: str) -> Example:
        """A question and its answer; a question that is too long is cut from its left."""
        room = self.max_length - len(told)
        if room < 1:
            raise DataError(
                f"{where}: its answer of {len(told)} tokens does not fit {self.max_length}; use a "
                "larger --max-length"
            )
        begin = max(0, begin - max(0, len(asked) - room))
        asked = tuple(asked[-room:])
        hidden = (IGNORED,) * len(asked) if self.qa_loss == "answer" else asked
        ids, labels = (*asked, *told), (*hidden, *told)
        return Example(ids, labels, is_qa=True, begin=begin, prompt=len(asked))

    def answer(self, example: Example, other: str | Sequence[int]) -> Example:
        """``example`` with another answer after its first ``prompt`` tokens, as text or tokens."""
        where = "another answer"
        told = self._tokens(f"{other}\n\n", False, where) if isinstance(other, str) else other
        return self._joined(example.ids[: example.prompt], tuple(told), example.begin, where)


Rows = Mapping[Role, tuple[Example, ...]]


@dataclass(frozen=True)
class StepSums:
    """What the parts of an optimizer step are divided by, so that they add up to means over it."""

    rows: int
    """Forget sequences."""
    tokens: dict[Role, int]
    """Learned tokens by role."""
    weight: float
    """The weights of all learned forget tokens."""


@dataclass(frozen=True)
class Item:
    """One place of the schedule: a forget sequence, what stands beside it, and its step."""

    rows: Rows
    step: int


@dataclass(frozen=True)
class Schedule:
    """Every sequence of a training in order, ``batch_size`` a step. A data set for the Trainer."""

    items: tuple[Item, ...]
    batch_size: int
    epoch: int
    """Steps of one pass over the forget set."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Rows, StepSums]:
        item = self.items[index]
        return item.rows, self.sums(item.step)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.items) // self.batch_size

    def sums(self, step: int) -> StepSums:
        """Those of a step."""
        chosen = self.items[step * self.batch_size : (step + 1) * self.batch_size]
        return sums_of([item.rows for item in chosen])


def sums_of(step: Sequence[Rows]) -> StepSums:
    """What a step is divided by that has such rows."""
    tokens: dict[Role, int] = {}
    for rows in step:
        for role, found in rows.items():
            tokens[role] = tokens.get(role, 0) + sum(row.learned for row in found)
    return StepSums(len(step), tokens, sum(row.weight for rows in step for row in rows["forget"]))


@dataclass(frozen=True)
class Length:
    """How long to train: ``max_steps`` where given, else ``epochs``."""

    epochs: float
    max_steps: int | None
    batch_size: int

    def steps(self, examples: int) -> int:
        """Optimizer steps over so many examples; a last batch is filled up from the next epoch."""
        return self.max_steps or max(1, math.ceil(self.epochs * examples / self.batch_size - 1e-9))


def make_schedule(
    sets: Mapping[Role, Sequence[Example]],
    length: Length,
    seed: int,
    pack: int = 1,
    alternatives: int = 0,
) -> Schedule:
    """Lay out the training: each epoch shuffles the forget set anew, the other sets go round at
    their own pace. ``pack`` joins so many question-answer pairs into a sequence; so many
    ``alternatives`` of each forget sequence are drawn each time that it comes.

    Raises:
        OptionError: there is nothing to learn.
    """
    forget = sets["forget"]
    if not any(example.learned for example in forget):
        raise OptionError("the forget set has no token to learn from")
    sequences = sum(1 for e in forget if not e.is_qa) + _packs(forget, pack)
    wanted = length.steps(sequences) * length.batch_size
    rng = random.Random(seed)  # noqa: S311  # a seeded generator is the point
    streams = {role: _stream(given, wanted, pack, rng) for role, given in sets.items() if given}
    items = []
    for at in range(wanted):
        rows: dict[Role, tuple[Example, ...]] = {r: (s[at],) for r, s in streams.items()}
        if alternatives:
            rows["alternatives"] = tuple(
                rng.sample(streams["forget"][at].alternatives, alternatives)
            )
        items.append(Item(rows, at // length.batch_size))
    return Schedule(tuple(items), length.batch_size, math.ceil(sequences / length.batch_size))


def _packs(examples: Sequence[Example], pack: int) -> int:
    return math.ceil(sum(example.is_qa for example in examples) / pack)


def _stream(
    examples: Sequence[Example], wanted: int, pack: int, rng: random.Random
) -> list[Example]:
    drawn: list[Example] = []
    while len(drawn) < wanted:
        drawn += _epoch(examples, pack, rng)
    return drawn[:wanted]


def _epoch(examples: Sequence[Example], pack: int, rng: random.Random) -> list[Example]:
    order = list(examples)
    rng.shuffle(order)
    if pack == 1:
        return order
    pairs = [example for example in order if example.is_qa]
    texts = [example for example in order if not example.is_qa]
    texts += [_join(pairs[at : at + pack]) for at in range(0, len(pairs), pack)]
    rng.shuffle(texts)
    return texts


def _join(pairs: Sequence[Example]) -> Example:
    """One sequence of several pairs, with one begin token, as few-shot prompts have them."""
    cuts = [0, *(pair.begin for pair in pairs[1:])]
    ids = [token for pair, cut in zip(pairs, cuts, strict=True) for token in pair.ids[cut:]]
    labels = [label for pair, cut in zip(pairs, cuts, strict=True) for label in pair.labels[cut:]]
    return Example(tuple(ids), tuple(labels), is_qa=True, begin=pairs[0].begin)


_ORDER: tuple[Role, ...] = ("forget", "retain", "auxiliary", "alternatives")


def collate(drawn: Sequence[tuple[Rows, StepSums]], pad: int) -> dict[str, Any]:
    """The tensors of one forward pass as a dict, which is what the Trainer moves to a device."""
    import torch

    of = {role: [row for rows, _ in drawn for row in rows.get(role, ())] for role in _ORDER}
    rows = [row for role in _ORDER for row in of[role]]
    width = max(len(row.ids) for row in rows)
    batch = {
        "input_ids": _padded([row.ids for row in rows], width, pad),
        "attention_mask": _padded([[1] * len(row.ids) for row in rows], width, 0),
        "labels": _padded([row.labels for row in rows], width, IGNORED),
        "rows": {role: len(found) for role, found in of.items() if found},
        "sums": drawn[0][1],
        "sequences": {
            role: torch.tensor([row.reference for row in found], dtype=torch.float32)
            for role, found in of.items()
            if found and found[0].reference is not None
        },
    }
    if any(row.weights is not None for row in rows):
        weights = [row.weights or (1.0,) * len(row.ids) for row in rows]
        batch["weights"] = _padded(weights, width, 0.0)
    return batch


def _padded(rows: Sequence[Sequence[float]], width: int, fill: float) -> torch.Tensor:
    import torch

    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def as_batch(inputs: dict[str, Any]) -> Batch:
    """What ``collate`` made, back as a Batch."""
    sums: StepSums = inputs["sums"]
    return Batch(
        {name: inputs[name] for name in ("input_ids", "attention_mask")},
        inputs["labels"],
        inputs["rows"],
        sums.rows,
        sums.tokens,
        sums.weight,
        inputs.get("weights"),
        inputs["sequences"],
    )
