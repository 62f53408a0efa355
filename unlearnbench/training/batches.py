"""From documents to token sequences, and from those to the batches of every step.

The whole order of training is laid out before it starts, as a function of the seed alone. So a
resumed run sees the same rows, and so do two processes that share a step between them.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import DataError, ModelOutputError, OptionError
from unlearnbench.methods.base import IGNORED
from unlearnbench.training.corpus import Corpus, Document

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class Example:
    """One sequence: token ids, and the same with IGNORED where nothing is learned.

    begin: special tokens at the start of a pair, of which a prompt of several has one set.
    reference: the target model's log-probability of the learned tokens, where a loss reads it.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    is_qa: bool = False
    begin: int = 0
    reference: float | None = None

    @property
    def learned(self) -> int:
        """Tokens that are learned; the first is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


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
        told = self._tokens(f"{document.answer}\n\n", False, document.where)
        room = self.max_length - len(told)
        if room < 1:
            raise DataError(
                f"{document.where}: its answer of {len(told)} tokens does not fit "
                f"{self.max_length}; use a larger --max-length"
            )
        begin = len(asked) - len(self._tokens(question, False, document.where))
        begin = max(0, begin - max(0, len(asked) - room))
        asked = asked[-room:]
        hidden = [IGNORED] * len(asked) if self.qa_loss == "answer" else asked
        return [Example((*asked, *told), (*hidden, *told), is_qa=True, begin=begin)]


@dataclass(frozen=True)
class Item:
    """One place of the schedule: a forget sequence, its retain partner, and its step's sums."""

    forget: Example
    retain: Example | None
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

    def __getitem__(self, index: int) -> tuple[Item, tuple[int, int, int]]:
        item = self.items[index]
        return item, self.sums(item.step)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.items) // self.batch_size

    def sums(self, step: int) -> tuple[int, int, int]:
        """Rows, learned forget tokens and learned retain tokens of a step."""
        chosen = self.items[step * self.batch_size : (step + 1) * self.batch_size]
        retain = sum(item.retain.learned for item in chosen if item.retain is not None)
        return len(chosen), sum(item.forget.learned for item in chosen), retain


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
    forget: Sequence[Example], retain: Sequence[Example], length: Length, seed: int, pack: int = 1
) -> Schedule:
    """Lay out the training: each epoch shuffles the forget set anew, the retain set goes round at
    its own pace. ``pack`` joins so many question-answer pairs into a sequence.

    Raises:
        OptionError: there is nothing to learn.
    """
    if not any(example.learned for example in forget):
        raise OptionError("the forget set has no token to learn from")
    sequences = sum(1 for e in forget if not e.is_qa) + _packs(forget, pack)
    wanted = length.steps(sequences) * length.batch_size
    rng = random.Random(seed)  # noqa: S311  # a seeded generator is the point
    firsts = _stream(forget, wanted, pack, rng)
    partners = _stream(retain, wanted, pack, rng) if retain else [None] * wanted
    items = [
        Item(first, partner, at // length.batch_size)
        for at, (first, partner) in enumerate(zip(firsts, partners, strict=True))
    ]
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


@dataclass(frozen=True)
class Batch:
    """One forward pass: forget rows first, then as many retain rows (or none).

    inputs: input_ids and attention_mask, each (rows, width), padded on the right. labels: (rows,
    width). reference: (forget_rows,) or None. The other numbers are those of the whole step.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    forget_rows: int
    reference: torch.Tensor | None
    all_rows: int
    all_forget_tokens: int
    all_retain_tokens: int

    @property
    def retain_inputs(self) -> dict[str, torch.Tensor]:
        """The retain rows of ``inputs``."""
        return {name: tensor[self.forget_rows :] for name, tensor in self.inputs.items()}


def collate(drawn: Sequence[tuple[Item, tuple[int, int, int]]], pad: int) -> dict[str, Any]:
    """The tensors of one forward pass as a dict, which is what the Trainer moves to a device."""
    import torch

    items = [item for item, _ in drawn]
    rows = [item.forget for item in items]
    rows += [item.retain for item in items if item.retain is not None]
    width = max(len(row.ids) for row in rows)
    batch = {
        "input_ids": _padded([row.ids for row in rows], width, pad),
        "attention_mask": _padded([[1] * len(row.ids) for row in rows], width, 0),
        "labels": _padded([row.labels for row in rows], width, IGNORED),
        "forget_rows": len(items),
        "sums": torch.tensor(drawn[0][1]),
    }
    references = [item.forget.reference for item in items]
    known = [reference for reference in references if reference is not None]
    if known:
        batch["reference"] = torch.tensor(known, dtype=torch.float32)
    return batch


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> torch.Tensor:
    import torch

    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def as_batch(inputs: dict[str, Any]) -> Batch:
    """What ``collate`` made, back as a Batch."""
    rows, forget_tokens, retain_tokens = inputs["sums"].tolist()
    return Batch(
        {name: inputs[name] for name in ("input_ids", "attention_mask")},
        inputs["labels"],
        int(inputs["forget_rows"]),
        inputs.get("reference"),
        rows,
        forget_tokens,
        retain_tokens,
    )
