"""``--alternative own``: other answers that the target writes itself, as in AltPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from unlearnbench.checkpoints.tokenizer import end_tokens
from unlearnbench.errors import DataError, one_line
from unlearnbench.methods.base import TrainingContext
from unlearnbench.methods.places import ready
from unlearnbench.methods.rows import Example
from unlearnbench.training.alternatives import DRAWN, answers_of_tasks, plain
from unlearnbench.training.passes import decoding

_LONGEST = 200  # tokens of an answer
_ROUNDS = 20  # of draws for a text, where what was written may not be learned


class _First(LogitsProcessor):
    """Holds some tokens back as the first one."""

    def __init__(self, prompt: int, barred: torch.Tensor) -> None:
        self._prompt, self._barred = prompt, barred

    def __call__(self, ids: Any, scores: Any) -> Any:
        if ids.shape[1] == self._prompt:
            scores = scores.masked_fill(self._barred.to(scores.device), -torch.inf)
        return scores


def with_own(context: Any) -> tuple[Example, ...]:
    """Beside each row ``DRAWN`` answers of the target at temperature 1, which begin with another
    token than the true one does, and not with a blank; of a text as long as its second half. The
    true answer, or an evaluation's, is drawn again; DataError where little else comes. context: a
    TrainerContext.
    """
    model, made = ready(context.model), []
    words = int(model.config.get_text_config().vocab_size)
    ends, blank = end_tokens(model, context.tokenizer), _blanks(context, words)
    taken = answers_of_tasks(context.corpus)
    with torch.random.fork_rng(), decoding(model, ends, context.pad):
        for number, example in enumerate(context.forget):
            torch.manual_seed(context.seed + number)
            true = _text(context, example, example.ids[example.prompt :])
            barred, told = {"", plain(true), *taken}, list[Example]()
            for _ in range(_ROUNDS):
                for ids in _written(context, model, example, blank, ends):
                    text = _text(context, example, ids)
                    if plain(text) not in barred:
                        told.append(context.answer(example, text if example.is_qa else ids))
                if len(told) >= DRAWN:
                    break
            else:
                asked = one_line(context.tokenizer.decode(example.ids[: example.prompt]), 100)
                raise DataError(
                    f"--alternative own: nearly all that the target says to {asked} is the true "
                    "answer or an evaluation's; use another --alternative"
                )
            made.append(replace(example, alternatives=tuple(told[:DRAWN])))
    return tuple(made)


def _blanks(context: TrainingContext, words: int) -> torch.Tensor:
    """Bool (words,): which begin no word: blanks, special tokens, those without a text."""
    known = min(words, len(context.tokenizer))
    texts = context.tokenizer.batch_decode([[t] for t in range(known)], skip_special_tokens=True)
    return torch.tensor([not text.strip() for text in texts] + [True] * (words - known))


def _written(
    context: TrainingContext, model: Any, example: Example, blank: torch.Tensor, ends: Sequence[int]
) -> list[list[int]]:
    """The tokens of its answers, without an end token."""
    prompt, true = example.ids[: example.prompt], example.ids[example.prompt :]
    barred = blank.clone()
    barred[true[0]] = True
    given = torch.tensor([prompt], device=model.get_input_embeddings().weight.device)
    rows = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=_LONGEST if example.is_qa else len(true),
        num_return_sequences=DRAWN,
        logits_processor=LogitsProcessorList([_First(len(prompt), barred)]),
    )[:, len(prompt) :].tolist()
    return [list(takewhile(lambda token: token not in ends, row)) for row in rows]


def _text(context: TrainingContext, example: Example, ids: Sequence[int]) -> str:
    """What some tokens say: of an answer the first line."""
    words = str(context.tokenizer.decode(ids, skip_special_tokens=True)).strip()
    return words.split("\n")[0].strip() if example.is_qa else words
