"""``--alternative own``: other answers that the target writes itself, as in AltPO."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from unlearnbench.errors import DataError
from unlearnbench.methods.places import ready
from unlearnbench.methods.rows import Example

if TYPE_CHECKING:
    from unlearnbench.methods.base import TrainingContext

log = logging.getLogger("unlearnbench")

DRAWN = 5  # beside each forget text
_LONGEST = 200  # tokens of an answer
_TRIES = 4


class _NotTheTruth(LogitsProcessor):
    """Holds the true answer's first token back as the first one, so that none is the true one."""

    def __init__(self, prompt: int, token: int) -> None:
        self._prompt, self._token = prompt, token

    def __call__(self, ids: Any, scores: Any) -> Any:
        if ids.shape[1] == self._prompt:
            scores[:, self._token] = -torch.inf
        return scores


def with_own(context: TrainingContext) -> tuple[Example, ...]:
    """Beside each row ``DRAWN`` answers of the target at temperature 1, which begin with another
    token than the true one does; of a text as long as its second half. Raises DataError where it
    writes nothing but blanks.
    """
    model, made = ready(context.model), []
    with torch.random.fork_rng(), torch.no_grad():
        for number, example in enumerate(context.forget):
            torch.manual_seed(context.seed + number)
            told = [_answer(context, example, ids) for ids in _written(context, model, example)]
            made.append(replace(example, alternatives=tuple(told)))
    same = sum(len({e.ids for e in row.alternatives}) == 1 for row in made)
    if same:
        log.warning("all %d answers of the target's own are one in %d rows", DRAWN, same)
    return tuple(made)


def _written(context: TrainingContext, model: Any, example: Example) -> list[list[int]]:
    """The tokens of its answers, without an end token."""
    prompt, true = example.ids[: example.prompt], example.ids[example.prompt :]
    ends = context.tokenizer.eos_token_id
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=_LONGEST if example.is_qa else len(true),
        num_return_sequences=DRAWN,
        eos_token_id=ends,
        pad_token_id=ends if context.tokenizer.pad_token_id is None else None,
    )
    given = torch.tensor([prompt], device=model.get_input_embeddings().weight.device)
    bars = LogitsProcessorList([_NotTheTruth(len(prompt), true[0])])
    found: list[list[int]] = []
    for _ in range(_TRIES):
        rows = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            generation_config=settings,
            logits_processor=bars,
        )[:, len(prompt) :].tolist()
        rows = [row[: row.index(ends)] if ends in row else row for row in rows]
        found += [row for row in rows if _text(context, row)]
        if len(found) >= DRAWN:
            return found[:DRAWN]
    raise DataError(
        "--alternative own: the target writes blanks for a forget text; use a file, refuse or "
        "retain"
    )


def _text(context: TrainingContext, ids: list[int]) -> str:
    """An answer's first line."""
    words = str(context.tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return words.split("\n")[0].strip()


def _answer(context: TrainingContext, example: Example, ids: list[int]) -> Example:
    return context.answer(example, _text(context, ids) if example.is_qa else ids)
