"""Texts as token ids, run in batches of similar length that are halved when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from unlearnbench.checkpoints.tokenizer import REWARD_PLACES
from unlearnbench.errors import ModelOutputError, one_line
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.util.text import cut_at_stop, open_thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("unlearnbench")

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER
)
_SMALLER = "use a smaller model or a GPU"
# Sixteen rows of 1,100 tokens of SmolLM2-135M in fp32 take 810 MB; more rows cost as much each.
_CPU_CACHE = 768 * 2**20


Q = TypeVar("Q", Generate, Score)
A = TypeVar("A", Generated, Scored)


def padded(lengths: Sequence[int]) -> int:
    """Tokens of a batch in which every text is as long as the longest."""
    return max(lengths, default=0) * len(lengths)


@dataclass
class Budget:
    """How much one batch may hold. It follows from the batches before alone, so an interrupted run
    forms the same ones again wherever memory suffices for the first.
    """

    tokens: int
    """Of a batch; twice as many after each that fitted. One that did not fit halves it for good."""
    most: int
    """Where doubling ends."""
    cost: Callable[[Sequence[int]], int] = sum
    """The tokens that texts of given lengths take in one batch. ``len``: texts are counted."""
    rows: int = 2**31
    """Texts of a batch, unbounded until memory runs out."""

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether texts of these lengths, longest first, may stand in one batch."""
        return len(lengths) <= self.rows and self.cost(lengths) <= self.tokens

    def grow(self) -> None:
        """A batch was done."""
        self.tokens = min(self.most, 2 * self.tokens)

    def shrink(self, lengths: Sequence[int]) -> None:
        """A batch of these lengths ran out of memory."""
        self.tokens = self.most = max(1, self.cost(lengths) // 2)
        self.rows = max(1, len(lengths) // 2)


def texts_budget(texts: int) -> Budget:
    """So many texts, whatever their length."""
    return Budget(texts, texts, len)


def run_in_batches(
    items: Sequence[tuple[Q, list[int]]],
    run: Callable[[Sequence[tuple[Q, list[int]]]], list[A]],
    budget: Budget,
    done: Collection[str],
    where: str,
    is_fixed: bool,
) -> Iterator[A]:
    """What ``run`` answers to pairs of a request and its token ids, the longest first.

    done: ids of requests that need no answer; they keep their places, so that the other batches are
    the same. where: what an error is said of. is_fixed: batches must not shrink. ModelOutputError
    where one text alone, or a batch of fixed size, runs out of memory.
    """
    # A stable order: the same requests always form the same batches.
    waiting = sorted(items, key=lambda item: -len(item[1]))
    while waiting:
        lengths: list[int] = []
        for _, ids in waiting:
            if lengths and not budget.fits([*lengths, len(ids)]):
                break
            lengths.append(len(ids))
        batch = waiting[: len(lengths)]
        answers: list[A] = []
        if not all(request.id in done for request, _ in batch):
            try:
                with torch.no_grad():  # quanto's 4-bit tensors fail in inference mode
                    answers = run(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if is_fixed or len(batch) == 1:
                    few = "use --batch-size auto" if len(batch) > 1 else _SMALLER
                    raise ModelOutputError(
                        f"{where}: out of memory with {len(batch)} texts in a batch; {few}"
                    ) from None
                log.warning("out of memory with %d texts in a batch; halving it", len(batch))
                budget.shrink(lengths)
                continue
        budget.grow()  # as it did when a batch that is done was run
        waiting = waiting[len(lengths) :]
        yield from (answer for answer in answers if answer.id not in done)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has a class for its own allocator, else only messages."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)


def layer_configs(config: Any) -> list[Any]:
    """The config of each layer; where they differ (Gemma 4), the model as a whole has none."""
    if getattr(config, "is_heterogeneous", False):
        return list(config.per_layer_config)
    return [config] * (getattr(config, "num_hidden_layers", None) or 1)


def generation_budget(model: Any, device: str) -> Budget:
    """Tokens in the cache; on CPU by the model's sizes: the same command, the same batches."""
    if device == "cpu":
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        room = int(_CPU_CACHE + 0.15 * weights)
    else:
        free, _ = torch.cuda.mem_get_info(device)
        # What earlier tasks took and torch keeps for reuse is free too: else a task's batches would
        # depend on which tasks this process had run before it.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        room = int(0.6 * free)
    numbers = 0  # keys and values that one token takes in all layers
    for layer in layer_configs(model.config.get_text_config()):
        heads = getattr(layer, "num_attention_heads", None) or 1
        kept = getattr(layer, "num_key_value_heads", None) or heads
        hidden = getattr(layer, "hidden_size", None) or 1024
        numbers += 2 * kept * (getattr(layer, "head_dim", None) or hidden // heads)
    most = max(1, room // (numbers * model.dtype.itemsize))
    if device == "cpu":
        return Budget(most, most)
    power = 2 ** (most.bit_length() - 1)  # the same from run to run, whatever else is there
    return Budget(max(1, power // 4), power)


@dataclass(frozen=True)
class Tokens:
    """Token ids of a model's texts."""

    tokenizer: PreTrainedTokenizerBase
    config: Any
    """The text model's."""
    ends: tuple[int, ...]
    """At these ids texts end."""
    pad: int
    """An id to fill up with."""
    truncate_left: bool = False
    """Cut what exceeds the context on the left, behind its special tokens."""
    max_length: int | None = None
    """The context, where it is less than the model's."""
    thought_end: int | None = None
    """The id behind which answers begin."""
    barred: tuple[int, ...] = ()
    """Ids that steer, and are neither written nor scored."""
    masked: int | None = None
    """The id that no token attends to, wherever it stands (open-unlearning's mask)."""

    def encode(self, text: str) -> list[int]:
        """Token ids, special ones too; ModelOutputError for one that the model has not."""
        ids = list(self.tokenizer(text, add_special_tokens=True)["input_ids"])
        rows = int(self.config.vocab_size)
        if ids and max(ids) >= rows:
            raise ModelOutputError(
                f"token {max(ids)} of {one_line(text, 60)!r} is beyond the model's {rows} rows"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text if isinstance(text, str) else "".join(text)

    def prompt(self, request: Generate) -> list[int]:
        """Token ids of a prompt; ModelOutputError where it does not fit or cannot be continued."""
        ids = [*request.tokens] or self.encode(request.prompt)
        ids = self.fit(request.id, ids, request.max_new_tokens)
        if ids[-1] in self.ends:
            raise ModelOutputError(
                f"{request.id}: the prompt ends with an end-of-text token, after which any model "
                "writes something else; take it out of the task's prompt, or the chat template"
            )
        return ids

    def answer_ids(self, request: Score) -> tuple[list[int], int]:
        """Token ids of a text, and the place of the first that is scored. Behind a prompt: the
        first that the prompt's own ids have not, so a token that both share is the answer's.

        ModelOutputError for a text that has no token to score, or exceeds the context.
        """
        ids = self.encode(request.prompt + request.text)
        # The tokens that are scored without one that steers, whatever begin tokens stand before it.
        steers = [at for at, n in enumerate(ids[:REWARD_PLACES]) if n in self.barred]
        start = max(2, steers[-1] + 1) if steers else 1
        if request.prompt:
            pairs = zip(ids, self.encode(request.prompt), strict=False)
            start = max(start, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        if len(ids) <= start:
            said = f"a text of {len(ids)} tokens cannot be scored"
            raise ModelOutputError(f"{request.id}: {said}" + " behind its prompt" * (start > 1))
        if request.end:
            if self.tokenizer.eos_token_id is None:
                raise ModelOutputError(f"{request.id}: the tokenizer has no end token to be scored")
            ids.append(int(self.tokenizer.eos_token_id))
        fitted = self.fit(request.id, ids, 0)
        if request.prompt:
            start -= len(ids) - len(fitted)
        if start < 1:
            raise ModelOutputError(f"{request.id}: the answer alone exceeds the model's context")
        return fitted, start

    def fit(self, name: str, ids: list[int], new: int) -> list[int]:
        """The ids, cut where asked for; ModelOutputError for none, or beyond the context."""
        context = self.max_length or getattr(self.config, "max_position_embeddings", None)
        if not ids:
            raise ModelOutputError(f"{name}: the prompt has no tokens")
        if not isinstance(context, int) or context <= 0 or len(ids) + new <= context:
            return ids
        special = set(self.tokenizer.all_special_ids)
        kept = next((at for at, token in enumerate(ids) if token not in special), 0)
        room = context - new - kept
        if not self.truncate_left or room < 1:
            raise ModelOutputError(
                f"{name}: {len(ids)} tokens and {new} new ones do not fit the model's context of "
                f"{context}; use a task with shorter texts, a model with a longer context, or "
                "--truncate-left"
            )
        log.warning("%s: %d tokens cut on the left to %d", name, len(ids), kept + room)
        return [*ids[:kept], *ids[-room:]]

    def stopped(self, request: Generate, new: Sequence[int]) -> bool:
        """Whether a continuation holds one of the request's stop strings; a thought may."""
        if not request.stop or (self.thought_end is not None and self.thought_end not in new):
            return False
        text = self._behind_thought(new)
        return any(stop in text for stop in request.stop)

    def answer(self, request: Generate, new: Sequence[int]) -> Generated:
        """The answer that new tokens make, up to where it ended, whatever was added behind that."""
        ends = [at for at, token in enumerate(new) if token in self.ends]
        kept = new[: min(ends, default=len(new))]
        for n in range(1, len(kept) + 1) if request.stop else ():
            if self.stopped(request, kept[:n]):
                kept = kept[:n]
                break
        return self.finished(request, kept)

    def finished(self, request: Generate, kept: Sequence[int]) -> Generated:
        """The answer of a continuation that is no longer than it should be; ModelOutputError for a
        thought that did not end: there is no answer.
        """
        if self.thought_end is not None and self.thought_end not in kept:
            begun = str(self.tokenizer.decode(list(kept[:16]), skip_special_tokens=False))
            if open_thought(request.prompt, begun):
                raise ModelOutputError(
                    f"{request.id}: the thought did not end within {len(kept)} tokens, so there is "
                    "no answer; give it more (--gen-kwargs max_gen_toks=N), or do not ask for one"
                )
        text = cut_at_stop(self._behind_thought(kept), request.stop)
        return Generated(request.id, text, len(kept))

    def _behind_thought(self, new: Sequence[int]) -> str:
        """The text of new tokens, that behind a thought without the blanks before it."""
        if self.thought_end is None or self.thought_end not in new:
            return self.decode(new)
        end = max(at for at, token in enumerate(new) if token == self.thought_end)
        return self.decode(new[end + 1 :]).lstrip()

    def tensors(
        self, rows: Sequence[list[int]], device: str, left: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, each of shape (rows, longest); ``left`` pads there."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            where = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, where] = torch.tensor(row)
            mask[i, where] = 1
        if self.masked is not None:
            from unlearnbench.models.masked import hidden

            mask = hidden(self.masked, ids, mask, rows)
        return ids.to(device), mask.to(device)
