"""Prompts continued, greedily or sampled: what they share is run once, the rest without padding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, TypeAlias

import torch
from transformers import GenerationConfig

from unlearnbench.errors import ModelOutputError
from unlearnbench.models.batches import Budget, Tokens, generation_budget, padded
from unlearnbench.models.packed_rows import Packed, RowCache, Step, attending
from unlearnbench.requests import Generate, Generated, Sampling
from unlearnbench.util.process import explain

_PACKED_TOKENS = {"cpu": 2048, "cuda": 16_384}
# Running a shorter prefix apart saves less than it costs.
_LEAST_PREFIX = 16

Prompts: TypeAlias = Sequence[tuple[Generate, list[int]]]
"""Requests, each with its prompt's token ids."""
Choose: TypeAlias = Callable[[torch.Tensor, Sequence[int]], list[int]]
"""(logits of shape (n, vocabulary), which rows of the batch they are of) -> the next token of each.
It raises ModelOutputError where a logit is NaN or infinite.
"""


def plain_config(ends: Collection[int], pad: int) -> GenerationConfig:
    """For a model, from which transformers takes what a call leaves open: a checkpoint's own may
    penalise or forbid words, which would pass for forgetting; only its ends are followed.
    """
    return GenerationConfig(do_sample=False, eos_token_id=list(ends) or None, pad_token_id=pad)


def shared_prefix(rows: Sequence[list[int]]) -> int:
    """How many token ids all rows begin with, at least one less than the shortest has: the last
    token of each has to be run for what follows it. 0 where running them apart would not pay.

    Example:
        >>> shared_prefix([[*range(20), 3, 4], [*range(20), 5]]), shared_prefix([[1, 2], [1, 3]])
        (20, 0)
    """
    ends = zip(min(rows), max(rows), strict=False)  # what these two share, all do
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    shared = min(shared, min(map(len, rows)) - 1)
    return shared if shared >= _LEAST_PREFIX and len(rows) > 1 else 0


class Chooser:
    """Greedy decoding, or sampling by the Gumbel-max trick: argmax(logits / T + noise), each row's
    noise from the seed and the request's id alone, so that its batch does not matter.
    """

    def __init__(
        self,
        names: Sequence[str],
        where: str,
        sampling: Sampling | None,
        barred: Sequence[int] = (),
    ) -> None:
        self._names, self._where, self._sampling = names, where, sampling
        self._barred = list(barred)  # ids that are never chosen
        self._generators: list[torch.Generator] = []
        if sampling is not None:
            for name in names:
                text = f"{sampling.seed}:{name}".encode(errors="surrogatepass")
                seed = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
                self._generators.append(torch.Generator().manual_seed(seed))

    def choose(self, logits: torch.Tensor, rows: Sequence[int]) -> list[int]:
        chosen: list[int] = self.scores(logits.float(), rows).argmax(dim=-1).tolist()
        return chosen

    def scores(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """The largest is the next token. Raises ModelOutputError for NaN or infinite logits, whose
        argmax is some token: a broken model would score as one that forgot.
        """
        bad = ~logits.isfinite().all(dim=-1)
        if bool(bad.any()):
            name = self._names[rows[int(bad.nonzero()[0])]]
            raise ModelOutputError(not_finite(f"{name} at {self._where}"))
        if self._barred:
            logits = logits.clone()
            logits[:, self._barred] = float("-inf")
        if self._sampling is None:
            return logits
        kept = logits / self._sampling.temperature
        if 0 < self._sampling.top_k < kept.shape[-1]:
            floor = kept.topk(self._sampling.top_k, dim=-1).values[:, -1:]
            kept = kept.masked_fill(kept < floor, float("-inf"))
        # Exponential draws are -log(uniform) without a zero to take the logarithm of.
        width, generators = kept.shape[-1], [self._generators[row] for row in rows]
        draws = [torch.empty(width).exponential_(generator=g) for g in generators]
        return kept - torch.stack(draws).to(kept.device).log()


def not_finite(where: str) -> str:
    """What is said of logits that no score can be made of."""
    return (
        f"{where}: the model's logits are NaN or infinite; no score can be given. Try --dtype "
        "fp32; if that fails too, the checkpoint is broken"
    )


@dataclass(frozen=True)
class Ending:
    """A row ends at one of ``ids``, which is not kept, where ``found`` says so, or at ``most``."""

    ids: frozenset[int]
    found: Callable[[Sequence[int]], bool]
    most: int


@dataclass
class Alive:
    """Rows under way, as the cache has them: which, and how many own tokens each has."""

    cache: RowCache
    alive: list[int]
    lengths: list[int]


class Continuer:
    """Runs a model whose attention is ordinary (see ``packable``)."""

    def __init__(self, model: Any, device: str) -> None:
        self.model, self.device = model, device
        self.undrafted: str | None = None
        """Why it verifies no drafts (models/drafting.py); empty where it does, None not tried."""

    def run_prefix(self, ids: Sequence[int]) -> RowCache:
        """Keys and values of the tokens that all rows share; none for no tokens."""
        cache = RowCache()
        if ids:
            self._forward(cache, ids, range(len(ids)), [0])
        return cache

    def continue_rows(
        self,
        shared: RowCache,
        start: int,
        rows: Sequence[Sequence[int]],
        choose: Choose,
        ending: Ending,
    ) -> list[list[int]]:
        """New tokens of each row. start: length of the prefix, without which ``rows`` are given."""
        cache = RowCache(shared)
        batch = Alive(cache, [*range(len(rows))], [*map(len, rows)])
        new: list[list[int]] = [[] for _ in rows]
        logits = torch.cat([*self._run_prompts(cache, start, rows, ending.most)])
        while True:
            chosen = choose(logits, batch.alive)
            for at in reversed(range(len(chosen))):
                tokens = new[batch.alive[at]]
                ended = chosen[at] in ending.ids
                if not ended:
                    tokens.append(chosen[at])
                    ended = len(tokens) >= ending.most or ending.found(tokens)
                if ended:  # the last row takes its place
                    cache.drop(at, len(chosen) - 1)
                    for column in (batch.alive, batch.lengths, chosen):
                        column[at] = column[-1]
                        column.pop()
            if not batch.alive:
                return new
            logits = self._step(batch, start, chosen)

    def _run_prompts(
        self, cache: RowCache, start: int, rows: Sequence[Sequence[int]], most: int
    ) -> Iterator[torch.Tensor]:
        """Logits after the last token of each row, (rows, vocabulary), in parts."""
        room = max(map(len, rows)) + most
        for group in self._groups([*map(len, rows)]):
            ids: list[int] = []
            places: list[int] = []
            parts = []
            for row in group:
                parts.append((row, len(ids), len(ids) + len(rows[row])))
                ids += rows[row]
                places += range(start, start + len(rows[row]))
            cache.phase = Packed(parts, len(rows), room)
            yield self._forward(cache, ids, places, [end - 1 for _, _, end in parts])

    def _step(self, batch: Alive, start: int, chosen: Sequence[int]) -> torch.Tensor:
        lengths = torch.tensor(batch.lengths, device=self.device)
        places = torch.arange(max(batch.lengths) + 1, device=self.device)
        seen = (places[None] <= lengths[:, None])[:, None, None]
        batch.cache.phase = Step(lengths, seen)
        ids = torch.tensor(chosen, device=self.device)[:, None]
        with attending(self.model.config, batch.cache):
            logits: torch.Tensor = self.model(
                input_ids=ids,
                position_ids=(lengths + start)[:, None],
                past_key_values=batch.cache,
                use_cache=True,
            ).logits
        batch.lengths = [n + 1 for n in batch.lengths]
        return logits[:, -1]

    def _forward(
        self, cache: RowCache, ids: Sequence[int], places: Sequence[int], keep: Sequence[int]
    ) -> torch.Tensor:
        """Logits at the positions ``keep`` of one packed row, (len(keep), vocabulary)."""
        with attending(self.model.config, cache):
            logits: torch.Tensor = self.model(
                input_ids=torch.tensor([list(ids)], device=self.device),
                position_ids=torch.tensor([list(places)], device=self.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=torch.tensor(list(keep), device=self.device),
            ).logits
        return logits[0]

    def _groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Neighbouring rows of so many tokens together that a pass takes, or a longer one alone."""
        most = _PACKED_TOKENS[torch.device(self.device).type]
        group: list[int] = []
        taken = 0
        for row, length in enumerate(lengths):
            if group and taken + length > most:
                yield group
                group, taken = [], 0
            group.append(row)
            taken += length
        yield group


class PackedPrompts:
    """Prompts of one kind, continued in rows without padding; what all share is run once."""

    def __init__(self, continuer: Continuer, tokens: Tokens, where: str, prompts: Prompts) -> None:
        self._continuer, self._tokens, self._where = continuer, tokens, where
        self._new = prompts[0][0].max_new_tokens
        rows = [ids for _, ids in prompts]
        self._start = rows[0][: shared_prefix(rows)]
        self._cache: RowCache | None = None

    def budget(self) -> Budget:
        found = generation_budget(self._continuer.model, self._continuer.device)
        shared = len(self._start)
        # Keys and values of a batch have one shape, so each row takes what the longest does.
        found.cost = lambda lengths: padded([n - shared + self._new for n in lengths])
        said = f"a prefix of {shared} tokens run once" if shared else "no prefix"
        explain(f"generation in rows without padding, {said}, {found.most:,} tokens a batch")
        return found

    def run(self, batch: Prompts) -> list[Generated]:
        first = batch[0][0]
        names, barred = [request.id for request, _ in batch], self._tokens.barred
        chooser = Chooser(names, self._where, first.sampling, barred)
        stopped = partial(self._tokens.stopped, first)
        ending = Ending(frozenset(self._tokens.ends), stopped, self._new)
        if self._cache is None:
            self._cache = self._continuer.run_prefix(self._start)
        own = [ids[len(self._start) :] for _, ids in batch]
        found = self._continue(batch, own, chooser.choose, ending)
        return [self._tokens.finished(r, row) for (r, _), row in zip(batch, found, strict=True)]

    def _continue(
        self, batch: Prompts, rows: Sequence[list[int]], choose: Choose, ending: Ending
    ) -> list[list[int]]:
        """New tokens of each row, given without what all share."""
        shared = self._cache or RowCache()
        return self._continuer.continue_rows(shared, len(self._start), rows, choose, ending)
