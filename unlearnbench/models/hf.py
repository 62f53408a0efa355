"""A checkpoint under one condition, answering requests through transformers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from unlearnbench.checkpoints.tokenizer import (
    end_tokens,
    masked_id,
    padding_id,
    require_open_end,
    reward_ids,
    thought_end,
)
from unlearnbench.errors import ModelOutputError
from unlearnbench.models import generation, packable, padded
from unlearnbench.models.batches import A, Budget, Q, Tokens, run_in_batches, texts_budget
from unlearnbench.models.generation import Continuer, PackedPrompts, Prompts
from unlearnbench.models.likelihood import Head, find_head
from unlearnbench.models.packable import side_of, turning_points
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.results import Condition
from unlearnbench.util.process import explain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearnbench.checkpoints.source import Source


class HFModel:
    """Implements ``models.Model`` on a transformers causal language model."""

    def __init__(
        self,
        network: PreTrainedModel,
        source: Source,
        condition: Condition,
        dtype: str,
        device: str,
        batch_size: int | None = None,
    ) -> None:
        self.network = network
        """The loaded transformers model; not to be changed."""
        self.checkpoint, self.condition, self.dtype = source.checkpoint, condition, dtype
        self.config: dict[str, object] = source.config.to_dict()
        self.tokenizer = source.tokenizer
        """Not to be changed."""
        self._batch_size = batch_size
        if device == "auto":  # spread over several: prompts go where the first layer is
            first: Any = network.get_input_embeddings()
            device = str(first.weight.device)
        self._device, self.device = device, device.split(":")[0]
        require_open_end(source.tokenizer, network)
        ends = end_tokens(network, source.tokenizer)
        config = source.config.get_text_config()
        pad = padding_id(source.tokenizer, config.vocab_size, next(iter(ends), 0))
        self.options = options = source.options
        last = thought_end(source.tokenizer, options.think_end_token)
        cut, barred = options.truncate_left, reward_ids(source.tokenizer, config.vocab_size)
        masked = masked_id(source.tokenizer) if options.mask_pad_id else None
        self.tokens = Tokens(
            source.tokenizer, config, ends, pad, cut, options.max_length, last, barred, masked
        )
        """Between its texts and token ids."""
        self._turns = turning_points(config)
        self._head: Head | None = None
        self._continuer: Continuer | str | None = None
        self._padding_moves: bool | None = None
        self._is_quick = False
        self.products: str | None = None
        """By which libraries layers multiply, where not all by torch's own; see ``quicken``."""
        network.generation_config = generation.plain_config(ends, pad)

    def truncate(self, text: str, max_tokens: int) -> str:
        ids = self.tokens.encode(text)
        return text if len(ids) <= max_tokens else self.tokens.decode(ids[:max_tokens])

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        """Continue prompts. Batches hold requests of one kind and of similar length."""
        self.quicken()
        kinds: dict[tuple[object, ...], list[tuple[Generate, list[int]]]] = {}
        for request in requests:
            ids, new = self.tokens.prompt(request), request.max_new_tokens
            kind = (new, request.stop, request.sampling, side_of(self._turns, len(ids), new))
            kinds.setdefault(kind, []).append((request, ids))
        for prompts in kinds.values():
            longest = max(len(ids) + request.max_new_tokens for request, ids in prompts)
            continuer = self.find_continuer(prompts[0][1], longest)
            if isinstance(continuer, str):
                yield from self._generate_padded(prompts, continuer, skip)
            else:
                packed = self._open(continuer, prompts)
                yield from self._in_batches(prompts, packed.run, packed.budget(), skip)

    def quicken(self) -> None:
        """On CPU: choose how large layers multiply, before the first answer, behind the proof."""
        if self._is_quick or self.device != "cpu":
            return
        self._is_quick = True
        sizes = (p.numel() for p in self.network.parameters() if p.dim() == 2)
        if max(sizes, default=0) >= packable.LARGE:
            from unlearnbench.models.products import quicken

            self.products = quicken(self.network)

    def _open(self, continuer: Continuer, prompts: Prompts) -> PackedPrompts:
        where = self.condition.name
        if not any(request.drafts for request, _ in prompts):
            return PackedPrompts(continuer, self.tokens, where, prompts)
        from unlearnbench.models.drafting import open_prompts

        return open_prompts(self.network, continuer, self.tokens, where, prompts)

    def find_continuer(self, ids: list[int], longest: int) -> Continuer | str:
        """What runs prompts like ``ids`` unpadded, or why nothing can. longest: with the answer."""
        if self.tokens.masked is not None:
            return "--mask-pad-id masks tokens between others"
        if self._continuer is None:
            self._require_causal(ids)
            with torch.no_grad():
                self._continuer = packable.find_continuer(self.network, self._device, ids)
        if isinstance(self._continuer, str):
            return self._continuer
        return packable.short_window(self.network, longest) or self._continuer

    def _generate_padded(
        self, prompts: Prompts, reason: str, skip: Collection[str]
    ) -> Iterator[Generated]:
        request, ids = prompts[0]
        new = request.max_new_tokens
        if self._padding_moves is None:
            self._padding_moves = packable.padding_moves(self.network, self.tokens, ids)
        alone = self._padding_moves or 1 in side_of(self._turns, len(ids), new)
        how = "one prompt at a time" if alone else "padded"
        explain(f"generation through transformers' generate, {how}: {reason}")
        run = partial(padded.run_padded, self.network, self.tokens, self.condition.name)
        budget = padded.padded_budget(self.network, self._device, new, alone)
        yield from self._in_batches(prompts, run, budget, skip)

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        self.quicken()
        sides: dict[tuple[int, ...], list[tuple[Score, list[int]]]] = {}
        starts: dict[str, int] = {}
        for request in requests:
            ids, starts[request.id] = self.tokens.answer_ids(request)
            sides.setdefault(side_of(self._turns, len(ids), 0), []).append((request, ids))
        for texts in sides.values():
            if self._head is None:
                self._require_causal(texts[0][1])
                few, _ = self.tokens.tensors([texts[0][1][:8]], self._device, left=False)
                with torch.no_grad():
                    self._head = find_head(self.network, few, self.tokens.masked is not None)
            run = partial(self._head.score, self.tokens, self._device, self.condition.name, starts)
            budget = self._head.budget(self.network, self.device)
            answers = self._in_batches(texts, run, budget, skip)
            yield from _with_gradients(self, texts, starts, answers)

    def _require_causal(self, ids: list[int]) -> None:
        known = self._head is not None or self._continuer is not None
        if not known and packable.sees_ahead(self.network, self._device, ids):
            raise ModelOutputError(
                f"{self.condition.name}: the model is no causal language model: later tokens move "
                "what it says of earlier ones; if it was trained as a decoder, set is_decoder to "
                "true in config.json"
            )

    def _in_batches(
        self,
        items: Sequence[tuple[Q, list[int]]],
        run: Callable[[Sequence[tuple[Q, list[int]]]], list[A]],
        budget: Budget,
        skip: Collection[str],
    ) -> Iterator[A]:
        is_fixed = self._batch_size is not None
        if self._batch_size is not None and budget.cost is not len:  # else one text at a time
            budget = texts_budget(self._batch_size)
        return run_in_batches(items, run, budget, skip, self.condition.name, is_fixed)


def _with_gradients(
    model: HFModel,
    texts: Sequence[tuple[Score, list[int]]],
    starts: Mapping[str, int],
    answers: Iterator[Scored],
) -> Iterator[Scored]:
    asked = {r.id: (ids, starts[r.id]) for r, ids in texts if r.gradient}
    if not asked:
        return answers
    from unlearnbench.models.gradients import add_gradients

    return add_gradients(model.network, model.condition, model.tokens, asked, answers)
