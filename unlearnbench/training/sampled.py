"""What a model under training writes, on token ids, in batches without padding where it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList

from unlearnbench.methods.base import Drawing
from unlearnbench.models.batches import generation_budget
from unlearnbench.models.generation import Chooser, Continuer, Ending
from unlearnbench.models.packable import find_continuer
from unlearnbench.requests import Sampling
from unlearnbench.training.passes import decoding
from unlearnbench.training.trainer import device

_ROWS = 64  # at most so many together


@dataclass(frozen=True)
class Writer:
    """How answers are drawn: each one's draws follow from the seed and its name alone."""

    how: Drawing
    seed: int
    ends: tuple[int, ...]
    pad: int

    def __call__(self, model: Any, prompts: Mapping[str, Sequence[int]]) -> list[tuple[int, ...]]:
        """New tokens of each prompt, its end token among them, in the order given."""
        if not prompts:
            return []
        model, sampling = model.to(device()), Sampling(self.how.temperature, 0, self.seed)
        names = sorted(prompts, key=lambda name: -len(prompts[name]))
        told: dict[str, list[int]] = {}
        with decoding(model, self.ends, self.pad):
            found = find_continuer(model, device(), list(prompts[names[0]]))
            longest = len(prompts[names[0]]) + self.how.most
            budget = generation_budget(model, torch.device(device()).type)
            size = max(1, min(_ROWS, budget.most // longest))
            for at in range(0, len(names), size):
                part = names[at : at + size]
                chooser = Chooser(part, "training", sampling, self.how.barred)
                rows = [list(prompts[name]) for name in part]
                if isinstance(found, str):
                    new = self._alone(model, chooser, rows)
                else:
                    new = self._packed(found, chooser, rows)
                told |= zip(part, new, strict=True)
        return [tuple(told[name]) for name in prompts]

    def _packed(
        self, continuer: Continuer, chooser: Chooser, rows: list[list[int]]
    ) -> list[list[int]]:
        new: list[list[int]] = [[] for _ in rows]

        def choose(logits: torch.Tensor, alive: Sequence[int]) -> list[int]:
            chosen = chooser.choose(logits, alive)
            for row, token in zip(alive, chosen, strict=True):
                new[row].append(token)
            return chosen

        ending = Ending(frozenset(self.ends), self.how.stopped, self.how.most)
        continuer.continue_rows(continuer.run_prefix(()), 0, rows, choose, ending)
        return new

    def _alone(self, model: Any, chooser: Chooser, rows: list[list[int]]) -> list[list[int]]:
        """Through transformers' own ``generate``, one by one: padding moves some models."""
        new = []
        for at, row in enumerate(rows):
            given = torch.tensor([row], device=model.device)

            def processed(_: torch.Tensor, scores: torch.Tensor, at: int = at) -> torch.Tensor:
                return chooser.scores(scores.float(), [at])

            written = model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=self.how.most,
                logits_processor=LogitsProcessorList([processed]),
            )[0, len(row) :].tolist()
            new.append(self._whole(written))
        return new

    def _whole(self, written: list[int]) -> list[int]:
        """Up to where it would have ended."""
        for n in range(1, len(written) + 1):
            if written[n - 1] in self.ends or self.how.stopped(written[:n]):
                return written[:n]
        return written
