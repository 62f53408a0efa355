"""A checkpoint under one condition, answering requests through transformers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from unlearnbench.checkpoints.load import end_tokens, pad_token
from unlearnbench.errors import ModelOutputError
from unlearnbench.models import budget
from unlearnbench.models.batches import Batches, Limit, Rows, batch_key, is_out_of_memory, padded
from unlearnbench.models.cache import KnownValues, known_ids
from unlearnbench.models.longrope import Side, side_of, turning_points
from unlearnbench.models.tokens import Tokens
from unlearnbench.requests import Generate, Generated, Score, Scored, cut_at_stop
from unlearnbench.results import Checkpoint, Condition
from unlearnbench.util.explain import explain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unlearnbench.checkpoints.source import Source
    from unlearnbench.models.generation import Continuer
    from unlearnbench.models.likelihood import Head, WholeLogits

log = logging.getLogger("unlearnbench")

T = TypeVar("T", Generated, Scored)
Prompts = Sequence[tuple[Generate, list[int]]]
Texts = Sequence[tuple[Score, list[int]]]

# Running a shorter prefix apart saves less than it costs.
_LEAST_PREFIX = 16
# Tokens whose figures are kept for another task: 24 bytes each, 96 MiB.
_KNOWN_TOKENS = 2**22


@dataclass
class HFModel:
    """Implements ``models.Model`` on a transformers causal language model."""

    _model: PreTrainedModel
    _source: Source
    condition: Condition
    dtype: str
    _device: str
    _batch_size: int | None
    _spare: int = 0
    _known: KnownValues[list[Scored]] = field(default_factory=lambda: KnownValues(_KNOWN_TOKENS))
    _head: Head | WholeLogits | None = None
    _continuer: Continuer | str | None = None
    _padding_moves: bool | None = None

    def __post_init__(self) -> None:
        from transformers import GenerationConfig

        tokenizer = self._source.tokenizer
        if self._device == "auto":  # spread over several: prompts go where the first layer is
            self._device = str(self._model.get_input_embeddings().weight.device)
        ends = end_tokens(self._model, tokenizer)
        config = self._source.config.get_text_config()
        pad = pad_token(tokenizer, ends)
        self._turns = turning_points(config)
        cut = self._source.options.truncate_left
        self._tokens = Tokens(tokenizer, config, ends, pad, cut, known_ids(tokenizer))
        # A checkpoint's own generation config may penalise or forbid words, which would pass for
        # forgetting; only its end-of-text ids are followed.
        model: Any = self._model
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=list(ends) or None, pad_token_id=self._tokens.pad
        )

    @property
    def network(self) -> PreTrainedModel:
        """The loaded transformers model, for lm-eval's adapter; not to be changed."""
        return self._model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer; not to be changed."""
        return self._source.tokenizer

    @property
    def checkpoint(self) -> Checkpoint:
        """See ``Model``."""
        return self._source.checkpoint

    @property
    def device(self) -> str:
        """See ``Model``."""
        return self._device.split(":")[0]

    @property
    def config(self) -> dict[str, object]:
        """See ``Model``."""
        return dict(self._source.config.to_dict())

    def truncate(self, text: str, max_tokens: int) -> str:
        """See ``Model``."""
        ids = self._encode(text)
        if len(ids) <= max_tokens:
            return text
        return self._decode(ids[:max_tokens])

    def _encode(self, text: str) -> list[int]:
        return self._tokens.encode(text)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokens.decode(ids)

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        """See ``Model``. Batches hold requests of one kind and of similar length."""
        kinds: dict[tuple[object, ...], list[tuple[Generate, list[int]]]] = {}
        for request in requests:
            ids, new = self.prompt_ids(request), request.max_new_tokens
            kind = (new, request.stop, request.sampling, side_of(self._turns, len(ids), new))
            kinds.setdefault(kind, []).append((request, ids))
        for items in kinds.values():
            longest = max(len(ids) + request.max_new_tokens for request, ids in items)
            continuer = self._find_continuer(items[0][1], longest)
            run = self._generate_packed if not isinstance(continuer, str) else self._generate_padded
            yield from run(items, continuer, skip)

    def prompt_ids(self, request: Generate) -> list[int]:
        """Token ids of a prompt.

        Raises:
            ModelOutputError: it does not fit, or cannot be continued.
        """
        ids = self._encode(request.prompt)
        ids = self._tokens.fit(request.id, ids, request.max_new_tokens)
        if ids[-1] in self._tokens.ends:
            raise ModelOutputError(
                f"{request.id}: the tokenizer ends prompts with an end-of-text token, after "
                "which any model writes something else; set add_eos_token to false"
            )
        return ids

    @property
    def ends(self) -> tuple[int, ...]:
        """Token ids at which texts end."""
        return self._tokens.ends

    def answer(self, request: Generate, tokens: list[int]) -> Generated:
        """The answer that new ``tokens`` make, up to where the request lets it end."""
        from unlearnbench.models.padded import cut_answer

        return cut_answer(self._tokens, request, tokens)

    def _generate_padded(
        self, items: Prompts, reason: Any, skip: Collection[str]
    ) -> Iterator[Generated]:
        new = items[0][0].max_new_tokens
        limit = budget.padded_budget(self._model, self._device)
        limit.cost = lambda lengths: padded([n + new for n in lengths])
        alone = self._runs_alone(items)
        how = "one prompt at a time" if alone else "padded"
        explain(f"generation through transformers' generate, {how}: {reason}")
        yield from self._in_batches(items, self._generate_batch, Rows(1) if alone else limit, skip)

    def _runs_alone(self, items: Prompts) -> bool:
        """Whether prompts beside a prompt would move its answer."""
        from unlearnbench.models.padded import padding_moves

        request, ids = items[0]
        if self._padding_moves is None:
            self._padding_moves = padding_moves(self._model, self._tokens, ids)
        return self._padding_moves or 1 in side_of(self._turns, len(ids), request.max_new_tokens)

    def _generate_packed(
        self, items: Prompts, continuer: Any, skip: Collection[str]
    ) -> Iterator[Generated]:
        from unlearnbench.models.generation import SharedStart, common_prefix

        new = items[0][0].max_new_tokens
        length = common_prefix([ids for _, ids in items]) if len(items) > 1 else 0
        start = SharedStart(continuer, items[0][1][: length if length >= _LEAST_PREFIX else 0])
        limit = budget.generation_budget(self._model, self._device, self._spare)
        # Keys and values of a batch have one shape, so each row takes what the longest does.
        limit.cost = lambda lengths: padded([n - start.length + new for n in lengths])
        shared = f"a prefix of {start.length} tokens run once" if start.length else "no prefix"
        explain(f"generation in rows without padding, {shared}, {limit.most:,} tokens a batch")
        run = partial(self._continue_batch, start)
        yield from self._in_batches(items, run, limit, skip)

    def _find_continuer(self, ids: list[int], longest: int) -> Continuer | str:
        import torch

        from unlearnbench.models.packable import find_continuer, short_window

        if self._continuer is None:
            with torch.no_grad():
                self._continuer = find_continuer(self._model, self._device, ids)
        if isinstance(self._continuer, str):
            return self._continuer
        return short_window(self._model, longest) or self._continuer

    def _continue_batch(self, start: Any, batch: Prompts) -> list[Generated]:
        from unlearnbench.models.decoding import Chooser
        from unlearnbench.models.generation import Stops

        first = batch[0][0]
        chooser = Chooser([r.id for r, _ in batch], self.condition.name, first.sampling)
        stopped = partial(self._tokens.stopped, first)
        stops = Stops(frozenset(self._tokens.ends), stopped, first.max_new_tokens)
        found = start.continue_rows([ids for _, ids in batch], chooser, stops)
        return [
            Generated(r.id, cut_at_stop(self._decode(tokens), r.stop), len(tokens))
            for (r, _), tokens in zip(batch, found, strict=True)
        ]

    def _generate_batch(self, batch: Prompts) -> list[Generated]:
        from unlearnbench.models.padded import generate_padded

        return generate_padded(self._model, self._tokens, self.condition.name, batch)

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        """See ``Model``. A batch of texts that was scored before, for another task, is not run
        again.
        """
        sides: dict[Side, list[tuple[Score, list[int]]]] = {}
        for request in requests:
            ids = self._tokens.fit(request.id, self._encode(request.text), 0)
            if len(ids) < 2:
                raise ModelOutputError(
                    f"{request.id}: a text of {len(ids)} tokens cannot be scored"
                )
            sides.setdefault(side_of(self._turns, len(ids), 0), []).append((request, ids))
        for items in sides.values():
            limit = self._scoring_limit(items[0][1])
            yield from self._in_batches(items, self._score_known, limit, skip)

    def _scoring_limit(self, ids: list[int]) -> Limit:
        from unlearnbench.models.rounding import mixes_rows

        found = self._find_head(ids).budget(self.device)
        if mixes_rows(self._model):
            explain("scoring: one text at a time, because others beside it would move its rounding")
            return Rows(1)
        explain(f"scoring: up to {found.most:,} tokens a batch, a longer text alone")
        return found

    def _find_head(self, ids: list[int]) -> Head | WholeLogits:
        import torch

        from unlearnbench.models.likelihood import find_head

        if self._head is None:
            few, _ = self._tokens.tensors([ids[:8]], self._device, left=False)
            with torch.no_grad():
                self._head = find_head(self._model, few)
        return self._head

    def _score_known(self, batch: Texts) -> list[Scored]:
        """Whole batches are remembered, not single texts, so that a text's figures never depend on
        which tasks an interrupted run had done before.
        """
        key = batch_key([ids for _, ids in batch])
        found = self._known.find(key)
        if found is None:
            size = sum(len(ids) for _, ids in batch)
            found = self._known.keep(key, self._score_batch(batch), size)
        return [
            Scored(request.id, known.logprobs, known.mean, known.std)
            for (request, _), known in zip(batch, found, strict=True)
        ]

    def _score_batch(self, batch: Texts) -> list[Scored]:
        head = self._find_head(batch[0][1])
        ids, mask = self._tokens.tensors([row for _, row in batch], self._device, left=False)
        states = head.states(ids, mask)
        answers = []
        for i, (request, row) in enumerate(batch):
            n = len(row) - 1
            where = f"{request.id} at {self.condition.name}"
            figures = head.statistics(states[i, :n], ids[i, 1 : n + 1], where)
            answers.append(Scored(request.id, *figures))
        return answers

    def _in_batches(
        self,
        items: Sequence[tuple[Any, list[int]]],
        run: Callable[[Sequence[tuple[Any, list[int]]]], list[T]],
        limit: Limit,
        skip: Collection[str],
    ) -> Iterator[T]:
        import torch

        if self._batch_size is not None and not isinstance(limit, Rows):
            limit = Rows(self._batch_size)
        batches = Batches(items, limit, lambda request: request.id in skip)
        while batch := batches.next():
            try:
                with torch.no_grad():  # quanto's 4-bit tensors fail in inference mode
                    answers = run(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._smaller(batches, batch)
                continue
            batches.fitted()
            yield from (answer for answer in answers if answer.id not in skip)

    def _smaller(self, batches: Batches[Any], batch: Sequence[Any]) -> None:
        if self._batch_size is not None or len(batch) == 1:
            hint = "use --batch-size auto" if len(batch) > 1 else "use a smaller model or a GPU"
            raise ModelOutputError(
                f"{self.condition.name}: out of memory with {len(batch)} texts in a batch; {hint}"
            )
        log.warning("out of memory with %d texts in a batch; halving it", len(batch))
        batches.halve(batch)
