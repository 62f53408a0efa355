"""A checkpoint at one precision, answering requests through transformers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from unlearnbench.errors import (
    CheckpointError,
    ModelOutputError,
    one_line,
)
from unlearnbench.models.batching import Batches, is_out_of_memory
from unlearnbench.requests import Generate, Generated, Score, Scored, cut_at_stop
from unlearnbench.results import Checkpoint, Precision

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unlearnbench.models.source import Source

__all__ = ["HFModel"]

log = logging.getLogger("unlearnbench")

T = TypeVar("T", Generated, Scored)


@dataclass
class HFModel:
    """Implements ``models.Model`` on a transformers causal language model."""

    _model: PreTrainedModel
    _source: Source
    precision: Precision
    dtype: str
    _device: str
    _batch_size: int | None

    def __post_init__(self) -> None:
        from transformers import GenerationConfig

        tokenizer = self._tokenizer
        self._eos = _end_tokens(self._model, tokenizer)
        self._pad = _pad_token(tokenizer, self._eos)
        # A checkpoint's own generation config may penalise or forbid words, which would pass for
        # forgetting; only its end-of-text ids are followed.
        model: Any = self._model
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=list(self._eos) or None, pad_token_id=self._pad
        )

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self._source.tokenizer

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
        """Token ids with the tokenizer's own special tokens, as it adds them by itself."""
        ids = list(self._tokenizer(text, add_special_tokens=True)["input_ids"])
        rows = self._source.config.get_text_config().vocab_size
        if ids and max(ids) >= rows:
            raise ModelOutputError(
                f"token {max(ids)} of {one_line(text, 60)!r} is beyond the model's {rows} rows"
            )
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text if isinstance(text, str) else "".join(text)

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        """See ``Model``. Batches hold requests of one kind and of similar length."""
        kinds: dict[tuple[object, ...], list[tuple[Generate, list[int]]]] = {}
        for request in requests:
            ids = self._encode(request.prompt)
            self._require_fit(request.id, len(ids), request.max_new_tokens)
            if ids[-1] in self._eos:
                raise ModelOutputError(
                    f"{request.id}: the tokenizer ends prompts with an end-of-text token, after "
                    "which any model writes something else; set add_eos_token to false"
                )
            kind = (request.max_new_tokens, request.stop, request.sampling)
            kinds.setdefault(kind, []).append((request, ids))
        for items in kinds.values():
            width = max(len(ids) for _, ids in items) + items[0][0].max_new_tokens
            rows = self._generation_rows(width)
            yield from self._in_batches(items, self._generate_batch, rows, skip)

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        """See ``Model``."""
        items = []
        for request in requests:
            ids = self._encode(request.text)
            if len(ids) < 2:
                raise ModelOutputError(
                    f"{request.id}: a text of {len(ids)} tokens cannot be scored"
                )
            self._require_fit(request.id, len(ids), 0)
            items.append((request, ids))
        width = max((len(ids) for _, ids in items), default=1)
        yield from self._in_batches(items, self._score_batch, self._scoring_rows(width), skip)

    def _require_fit(self, name: str, length: int, new: int) -> None:
        context = getattr(self._source.config.get_text_config(), "max_position_embeddings", None)
        if length == 0:
            raise ModelOutputError(f"{name}: the prompt has no tokens")
        if isinstance(context, int) and length + new > context:
            raise ModelOutputError(
                f"{name}: {length} tokens and {new} new ones do not fit the model's context of "
                f"{context}; use a task with shorter texts or a model with a longer context"
            )

    # Sizes of the first try; halved when memory runs out.
    def _generation_rows(self, width: int) -> int:
        budget = 16_384 if self.device == "cpu" else 131_072
        return max(1, min(64, budget // width))

    def _scoring_rows(self, width: int) -> int:
        logits = width * int(self._source.config.get_text_config().vocab_size) * 4
        budget = 2**30 if self.device == "cpu" else 2**33
        return max(1, min(64, budget // logits))

    def _in_batches(
        self,
        items: Sequence[tuple[Any, list[int]]],
        run: Callable[[Sequence[tuple[Any, list[int]]]], list[T]],
        rows: int,
        skip: Collection[str],
    ) -> Iterator[T]:
        import torch

        batches = Batches(items, self._batch_size or rows, lambda request: request.id in skip)
        while batch := batches.next():
            try:
                with torch.no_grad():  # quanto's 4-bit tensors fail in inference mode
                    answers = run(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._smaller(batches, batch)
                continue
            yield from (answer for answer in answers if answer.id not in skip)

    def _smaller(self, batches: Batches[Any], batch: Sequence[Any]) -> None:
        if self._batch_size is not None or len(batch) == 1:
            hint = "use --batch-size auto" if len(batch) > 1 else "use a smaller model or a GPU"
            raise ModelOutputError(
                f"{self.precision.name}: out of memory with {len(batch)} texts in a batch; {hint}"
            )
        log.warning("out of memory with %d texts in a batch; halving it", len(batch))
        batches.halve(batch)

    def _tensors(self, rows: Sequence[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, each of shape (rows, longest)."""
        import torch

        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            where = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, where] = torch.tensor(row)
            mask[i, where] = 1
        return ids.to(self._device), mask.to(self._device)

    def _generate_batch(self, batch: Sequence[tuple[Generate, list[int]]]) -> list[Generated]:
        from unlearnbench.models.decoding import logits_processors, stopping_criteria

        first = batch[0][0]
        names = [request.id for request, _ in batch]
        ids, mask = self._tensors([row for _, row in batch], left=True)
        model: Any = self._model
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=first.max_new_tokens,
            logits_processor=logits_processors(names, self.precision.name, first.sampling),
            stopping_criteria=stopping_criteria(first.stop, ids.shape[1], self._decode),
        )
        rows = output[:, ids.shape[1] :].tolist()
        return [
            self._generated(request, row) for (request, _), row in zip(batch, rows, strict=True)
        ]

    def _generated(self, request: Generate, row: list[int]) -> Generated:
        ends = [at for at, token in enumerate(row) if token in self._eos]
        tokens = row[: min(ends, default=len(row))]
        for n in range(1, len(tokens) + 1) if request.stop else ():
            # Where the row met a stop string, whatever its neighbours made the batch add to it.
            if any(stop in self._decode(tokens[:n]) for stop in request.stop):
                tokens = tokens[:n]
                break
        text = cut_at_stop(self._decode(tokens), request.stop)
        return Generated(request.id, text, len(tokens))

    def _score_batch(self, batch: Sequence[tuple[Score, list[int]]]) -> list[Scored]:
        from unlearnbench.models.decoding import token_statistics

        ids, mask = self._tensors([row for _, row in batch], left=False)
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if logits.shape[:2] != ids.shape:
            raise ModelOutputError(
                f"the model gives logits for {logits.shape[1]} positions of {ids.shape[1]} tokens"
            )
        answers = []
        for i, (request, row) in enumerate(batch):
            n = len(row) - 1
            where = f"{request.id} at {self.precision.name}"
            figures = token_statistics(logits[i, :n], ids[i, 1 : n + 1], where)
            answers.append(Scored(request.id, *figures))
        return answers


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """End-of-text ids: the tokenizer's and the generation config's, if they mark an end.

    Raises:
        CheckpointError: the generation config ends texts at an ordinary word, which would empty
            outputs and pass for forgetting.
    """
    for token in dict.fromkeys(map(str, tokenizer.all_special_tokens)):
        if re.fullmatch(r"[Ġ▁ ]?\w+", token):
            raise CheckpointError(
                f"the tokenizer lists {one_line(token, 40)!r}, an ordinary word, as a special "
                "token; outputs would lose it. Correct tokenizer_config.json"
            )
    config: Any = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    listed = [named] if isinstance(named, int) else list(named or [])
    special = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    special |= set(getattr(tokenizer, "added_tokens_decoder", {}))
    odd = [token for token in listed if token not in special]
    if odd:
        raise CheckpointError(
            f"generation_config.json ends texts at token {odd[0]}, an ordinary word of the "
            "tokenizer; correct its eos_token_id"
        )
    ids = [*listed, tokenizer.eos_token_id]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def _pad_token(tokenizer: PreTrainedTokenizerBase, eos: Sequence[int]) -> int:
    """Padding is masked, so any id serves where the tokenizer has none."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return eos[0] if eos else 0
