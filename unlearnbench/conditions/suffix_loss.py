"""How unlikely a suffix behind the question leaves the answers, on a loaded model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import ModelOutputError, PrecisionError, one_line

if TYPE_CHECKING:
    import torch

    from unlearnbench.models.batches import Tokens
    from unlearnbench.models.hf import HFModel

TARGET_TOKENS = 16
"""So many of an answer's first tokens are made likely."""
log = logging.getLogger("unlearnbench")

LENGTH = 10
"""Tokens that a suffix begins with: exclamation marks."""
_FIRST, _OTHER = " !", " ?"
_ROWS, _NUMBERS = 64, 2**26  # of a batch: rows, and logits
_SAME = 0.02  # nats that two ways to one loss may differ by


@dataclass(frozen=True)
class Question:
    """A prompt parted where the suffix goes, and the answer that it should bring."""

    id: str
    before: str
    after: str
    answer: str

    def prompt(self, suffix: str) -> str:
        """With a suffix, which brings the blank before it, and a blank behind it."""
        return f"{self.before}{suffix} {self.after}"


@dataclass(frozen=True)
class _Row:
    """A question's token ids round the suffix."""

    head: list[int]
    tail: list[int]
    """Behind it, to the end of the prompt."""
    read: list[int]
    """The same, without what the tokenizer joins with the answer."""
    answer: list[int]


def read_rows(
    tokens: Tokens, questions: Sequence[Question], where: str
) -> tuple[list[_Row], list[int]]:
    """The ids round a suffix behind each question, and those of the suffix that searches begin
    with. Raises PrecisionError where the tokenizer reads it otherwise behind each, or an answer has
    no token of its own.
    """
    found = [_read(tokens, question, where) for question in questions]
    if any(first != found[0][1] for _, first in found):
        raise PrecisionError(
            f"{where}: the tokenizer reads one suffix in several ways behind the questions"
        )
    return [row for row, _ in found], found[0][1]


def _read(tokens: Tokens, question: Question, where: str) -> tuple[_Row, list[int]]:
    """A question's ids, and those of the first suffix: what differs from another suffix."""
    text = question.prompt(_FIRST * LENGTH)
    ids, other = (tokens.encode(question.prompt(mark * LENGTH)) for mark in (_FIRST, _OTHER))
    head = _common(ids, other)
    end = len(ids) - min(_common(ids[::-1], other[::-1]), len(ids) - head)
    whole = tokens.encode(text + question.answer)
    answered = _common(ids, whole)
    if end == head or answered < end or answered == len(whole):
        raise PrecisionError(f"{where}: {question.id}: its answer has no token of its own")
    answer = whole[answered:][:TARGET_TOKENS]
    return _Row(ids[:head], ids[end:], ids[end:answered], answer), ids[head:end]


class SuffixLoss:
    """How unlikely a suffix leaves the answers: the mean over questions of an answer token's
    negative log-probability. Counts what it runs.
    """

    def __init__(self, model: HFModel, questions: Sequence[Question], where: str) -> None:
        """where: what an error is said of. Raises PrecisionError where the tokenizer reads a suffix
        otherwise behind each question.
        """
        import torch

        self.questions, self.where = questions, where
        self.network: Any = model.network
        self.tokens = model.tokens
        if self.tokens.masked is not None:
            raise PrecisionError(f"{where}: searches run with a true mask; leave --mask-pad-id out")
        self.table: Any = model.network.get_input_embeddings()
        self.device = next(iter(self.table.parameters())).device
        with torch.no_grad():
            self.width = int(self.table(torch.tensor([0], device=self.device)).shape[-1])
        self.forward_passes = self.backward_passes = 0
        self.rows, self.first = read_rows(self.tokens, questions, where)
        self._lead, known = "", _FIRST * LENGTH
        if not known.endswith(self.text(self.first)):
            raise PrecisionError(f"{where}: the tokenizer does not give a suffix's text back")
        self._lead = known.removesuffix(self.text(self.first))
        self.shared = 0
        self._cache: Any = None
        self._try_cache()
        self.forward_passes = 0  # of steps: those a search that goes on does not repeat

    def _try_cache(self) -> None:
        """Keep keys and values of what all questions begin with, unless that moves the loss."""
        import torch

        from unlearnbench.models.generation import shared_prefix

        plain = self.of_ids([self.first])[0]
        self.shared = shared_prefix([row.head for row in self.rows])
        if not self.shared:
            return
        try:
            with torch.no_grad():
                ids = torch.tensor([self.rows[0].head[: self.shared]], device=self.device)
                self._cache = self.network(input_ids=ids, use_cache=True).past_key_values
            found = self.of_ids([self.first])[0]
        except Exception as error:  # an unusual cache may fail anywhere, and is not needed
            log.info("the search goes without a cache, slower: %s", one_line(error, 200))
            found = float("nan")
        if not abs(found - plain) <= _SAME:
            self.shared, self._cache = 0, None

    def text(self, suffix: Sequence[int]) -> str:
        """A suffix's text, with the blank before it, which may be a token of the head's."""
        near = self.rows[0].head[-4:]
        return self._lead + self.tokens.decode([*near, *suffix])[len(self.tokens.decode(near)) :]

    def survives(self, suffix: Sequence[int], every: bool = False) -> bool:
        """Whether the suffix is read again from its text: behind the first question, or each."""
        text = self.text(suffix)
        pairs = [*zip(self.questions, self.rows, strict=True)]
        return all(
            self.tokens.encode(question.prompt(text))
            == [*row.head, *suffix, *row.tail]
            for question, row in (pairs if every else pairs[:1])
        )  # fmt: skip

    def of_ids(self, suffixes: Sequence[Sequence[int]]) -> list[float]:
        """The loss of each suffix. Raises ModelOutputError where one is not finite."""
        import torch

        every = [(row, suffix) for suffix in suffixes for row in self.rows]
        found: list[float] = []
        with torch.no_grad():
            for start in range(0, len(every), self._at_once(len(suffixes[0]))):
                part = every[start : start + self._at_once(len(suffixes[0]))]
                ids, mask, answers = self._batch(part)
                found += self._losses({"input_ids": ids}, mask, answers).tolist()
        self.forward_passes += len(every)
        n = len(self.rows)
        losses = [sum(found[at : at + n]) / n for at in range(0, len(found), n)]
        return [_finite(loss, self.where) for loss in losses]

    def with_gradient(self, suffix: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The loss of a suffix of embeddings (length, width), and its gradient, in fp32."""
        import torch

        total, gradient = 0.0, torch.zeros_like(suffix, dtype=torch.float32)
        length = len(suffix)
        with torch.enable_grad():
            leaf = suffix.detach().to(self.device).float().requires_grad_()
            for start in range(0, len(self.rows), self._at_once(length)):
                rows = self.rows[start : start + self._at_once(length)]
                ids, mask, answers = self._batch([(row, [0] * length) for row in rows])
                embedded = self.table(ids).detach().clone()
                for at, row in enumerate(rows):
                    begin = len(row.head) - self.shared
                    embedded[at, begin : begin + length] = leaf.to(embedded.dtype)
                try:
                    losses = self._losses({"inputs_embeds": embedded}, mask, answers)
                except (TypeError, ValueError) as error:
                    raise PrecisionError(
                        f"{self.where}: the model takes no embeddings ({one_line(error, 100)})"
                    ) from None
                part = losses.sum() / len(self.rows)
                gradient += torch.autograd.grad(part, leaf)[0].cpu()
                total += float(part.detach())
        self.forward_passes += len(self.rows)
        self.backward_passes += len(self.rows)
        return _finite(total, self.where), gradient

    def _at_once(self, length: int) -> int:
        longest = max(len(row.head) + len(row.tail) + len(row.answer) for row in self.rows)
        numbers = (longest + length - self.shared) * int(self.tokens.config.vocab_size)
        return max(1, min(_ROWS, _NUMBERS // numbers))

    def _batch(
        self, rows: Sequence[tuple[_Row, Sequence[int]]]
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, list[int]]]]:
        """Ids and mask, padded on the right; where each answer begins, and its ids."""
        import torch

        listed = [[*r.head[self.shared :], *suffix, *r.read, *r.answer] for r, suffix in rows]
        ids, mask = self.tokens.tensors(listed, str(self.device), left=False)
        seen = torch.ones(len(rows), self.shared, dtype=mask.dtype, device=mask.device)
        answers = [
            (len(all_ids) - len(row.answer), row.answer)
            for all_ids, (row, _) in zip(listed, rows, strict=True)
        ]
        return ids, torch.cat([seen, mask], dim=1), answers

    def _losses(
        self, inputs: dict[str, Any], mask: torch.Tensor, answers: list[tuple[int, list[int]]]
    ) -> torch.Tensor:
        import torch

        if self.shared:
            cache = copy.deepcopy(self._cache)
            cache.batch_repeat_interleave(len(answers))
            inputs = {**inputs, "past_key_values": cache, "use_cache": True}
        else:
            inputs = {**inputs, "use_cache": False}
        logits = self.network(**inputs, attention_mask=mask).logits
        losses = []
        for row, (begin, ids) in zip(logits, answers, strict=True):
            log = row[begin - 1 : begin - 1 + len(ids)].float().log_softmax(dim=-1)
            losses.append(-log[range(len(ids)), ids].mean())
        return torch.stack(losses)


def _finite(loss: float, where: str) -> float:
    from unlearnbench.models.generation import not_finite

    if not abs(loss) < float("inf"):
        raise ModelOutputError(not_finite(where))
    return loss


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
