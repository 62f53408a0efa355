"""``--alternative own``: other answers that the target writes itself, as in AltPO."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from unlearnbench.methods.places import ready
from unlearnbench.methods.rows import Example

if TYPE_CHECKING:
    from unlearnbench.methods.base import TrainingContext

DRAWN = 5  # beside each forget text
_LONGEST = 200  # tokens of an answer


class _First(LogitsProcessor):
    """Holds some tokens back as the first one."""

    def __init__(self, prompt: int, barred: torch.Tensor) -> None:
        self._prompt, self._barred = prompt, barred

    def __call__(self, ids: Any, scores: Any) -> Any:
        if ids.shape[1] == self._prompt:
            scores = scores.masked_fill(self._barred.to(scores.device), -torch.inf)
        return scores


def with_own(context: TrainingContext) -> tuple[Example, ...]:
    """Beside each row ``DRAWN`` answers of the target at temperature 1, which begin with another
    token than the true one does, and not with a blank; of a text as long as its second half.
    """
    model, made = ready(context.model), []
    blank = _blanks(context, int(model.config.get_text_config().vocab_size))
    with torch.random.fork_rng(), torch.no_grad():
        for number, example in enumerate(context.forget):
            torch.manual_seed(context.seed + number)
            written = _written(context, model, example, blank)
            told = [_answer(context, example, ids) for ids in written]
            made.append(replace(example, alternatives=tuple(told)))
    return tuple(made)


def _blanks(context: TrainingContext, words: int) -> torch.Tensor:
    """Which tokens are no word's beginning: blanks, special ones, those without a text; bool
    (words,).
    """
    known = min(words, len(context.tokenizer))
    texts = context.tokenizer.batch_decode([[t] for t in range(known)], skip_special_tokens=True)
    return torch.tensor([not text.strip() for text in texts] + [True] * (words - known))


def _written(
    context: TrainingContext, model: Any, example: Example, blank: torch.Tensor
) -> list[list[int]]:
    """The tokens of its answers, without an end token."""
    prompt, true = example.ids[: example.prompt], example.ids[example.prompt :]
    ends, pad = context.tokenizer.eos_token_id, context.tokenizer.pad_token_id
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=_LONGEST if example.is_qa else len(true),
        num_return_sequences=DRAWN,
        eos_token_id=ends,
        pad_token_id=ends if pad is None else pad,
    )
    barred = blank.clone()
    barred[true[0]] = True
    given = torch.tensor([prompt], device=model.get_input_embeddings().weight.device)
    rows = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        generation_config=settings,
        logits_processor=LogitsProcessorList([_First(len(prompt), barred)]),
    )[:, len(prompt) :].tolist()
    return [row[: row.index(ends)] if ends in row else row for row in rows]


def _text(context: TrainingContext, ids: list[int]) -> str:
    """An answer's first line."""
    words = str(context.tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return words.split("\n")[0].strip()


def _answer(context: TrainingContext, example: Example, ids: list[int]) -> Example:
    return context.answer(example, _text(context, ids) if example.is_qa else ids)
