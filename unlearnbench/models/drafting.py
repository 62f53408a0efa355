"""Answers verified against drafts: several tokens a forward pass, to the same text.

A draft is what is already known of an answer, as the same prompt's under another condition. A pass
runs a draft's next tokens at once, and what the model would have chosen itself is kept, so a draft
moves no text but by the last bits in which passes of different sizes differ, as batches do.

Source: Leviathan et al., arXiv 2211.17192 (the longest right beginning of a draft).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Protocol

import torch

from unlearnbench.errors import ModelOutputError
from unlearnbench.models import packable
from unlearnbench.models.batches import Tokens, is_out_of_memory
from unlearnbench.models.generation import (
    Alive,
    Choose,
    Continuer,
    Ending,
    PackedPrompts,
    Prompts,
)
from unlearnbench.models.guesses import Guesses
from unlearnbench.models.packed_rows import Packed, RowCache, Several
from unlearnbench.requests import Generate, Generated
from unlearnbench.util.process import explain

_LOGITS_BYTES = {"cpu": 2**26, "cuda": 2**29}
_ALONE = 1024  # products of a query and a key that cost what attending to one row by itself does
_CHARACTERS = 32  # of a draft for each token that may be answered: a draft may be anyone's text


class Guesser(Protocol):
    """Says what a row's next tokens may be, see ``Guesses``."""

    def guess(self, row: int, new: Sequence[int], most: int, rows: int) -> list[int]: ...

    def learn(self, row: int, guessed: Sequence[int], accepted: int) -> None: ...


@dataclass
class Count:
    """Of one row."""

    passes: int = 0
    """Forward passes in which it had a token."""
    drafted: int = 0
    """Tokens that were guessed."""
    accepted: int = 0
    """Those that were right."""


class DraftedRows(Continuer):
    """One batch of rows, continued as ``Continuer`` does, with what a guesser says."""

    def __init__(
        self,
        own: Continuer,
        rows: Sequence[Sequence[int]],
        choose: Choose,
        ending: Ending,
        guesser: Guesser,
    ) -> None:
        """rows: without what all share."""
        super().__init__(own.model, own.device)
        self._rows, self._choose, self._ending, self._guesser = rows, choose, ending, guesser
        self._new: list[list[int]] = [[] for _ in rows]
        self.counts = [Count() for _ in rows]

    def run(self, shared: RowCache, start: int) -> list[list[int]]:
        """New tokens of each row. start: how many tokens all share."""
        batch = Alive(RowCache(shared), [*range(len(self._rows))], [*map(len, self._rows)])
        ended: set[int] = set()
        for group in self._groups(batch.lengths):
            ended |= self._begin(batch, start, group)
        _drop(batch, ended)
        while batch.alive:
            _drop(batch, self._go_on(batch, start))
        return self._new

    def _begin(self, batch: Alive, start: int, group: Sequence[int]) -> set[int]:
        """One pass over some prompts and their drafts. Returns the rows that end with it."""
        most = self._ending.most - 1
        drafts = [self._guesser.guess(row, (), most, len(group)) for row in group]
        ids: list[int] = []
        places: list[int] = []
        keep: list[int] = []
        parts = []
        for row, draft in zip(group, drafts, strict=True):
            whole = [*self._rows[row], *draft]
            end = len(ids) + len(whole)
            parts.append((row, len(ids), end))
            keep += range(end - len(draft) - 1, end)
            places += range(start, start + len(whole))
            ids += whole
        room = max(map(len, self._rows)) + self._ending.most
        batch.cache.phase = Packed(parts, len(self._rows), room)
        logits = self._forward(batch.cache, ids, places, keep)
        return self._settle(batch, group, drafts, logits)

    def _go_on(self, batch: Alive, start: int) -> set[int]:
        """One pass over the last token of each row and its draft."""
        lengths, most = [*batch.lengths], self._ending.most - 1
        drafts = []
        for row in batch.alive:
            new = self._new[row]
            drafts.append(self._guesser.guess(row, new, most - len(new), len(batch.alive)))
        last = [self._new[row][-1] for row in batch.alive]
        if not any(drafts):
            logits = self._step(batch, start, last)
        else:
            parts = [[token, *draft] for token, draft in zip(last, drafts, strict=True)]
            batch.cache.phase, places = _several(lengths, [*map(len, parts)], self.device, start)
            ids = [token for part in parts for token in part]
            at = [start + place for place in places]
            logits = self._forward(batch.cache, ids, at, range(len(ids)))
            batch.lengths = [n + 1 for n in lengths]
        return self._settle(batch, batch.alive, drafts, logits)

    def _settle(
        self, batch: Alive, rows: Sequence[int], drafts: Sequence[list[int]], logits: torch.Tensor
    ) -> set[int]:
        """Take what the model chooses, as far as drafts are right. logits: of each row behind its
        last token and behind each of its draft.
        """
        first = [0]
        for draft in drafts:
            first.append(first[-1] + len(draft) + 1)
        right, depth = [0] * len(rows), 0
        ended: set[int] = set()
        going = [*range(len(rows))]
        while going:
            there = logits[[first[at] + depth for at in going]]
            chosen = self._choose(there, [rows[at] for at in going])
            agreeing = []
            for at, token in zip(going, chosen, strict=True):
                is_right = depth < len(drafts[at]) and drafts[at][depth] == token
                right[at] += is_right
                if self._ends(self._new[rows[at]], token):
                    ended.add(rows[at])
                elif is_right:
                    agreeing.append(at)
            going, depth = agreeing, depth + 1
        self._learn(batch, rows, drafts, right)
        return ended

    def _ends(self, tokens: list[int], token: int) -> bool:
        """Add a token to a row's; whether the row ends with it."""
        if token in self._ending.ids:
            return True
        tokens.append(token)
        return len(tokens) >= self._ending.most or self._ending.found(tokens)

    def _learn(
        self,
        batch: Alive,
        rows: Sequence[int],
        drafts: Sequence[list[int]],
        right: Sequence[int],
    ) -> None:
        """Rows are longer by what was right, and nothing stays of the rest."""
        slots = {row: at for at, row in enumerate(batch.alive)}
        wrong: list[tuple[int, int]] = []
        for row, draft, accepted in zip(rows, drafts, right, strict=True):
            count, slot = self.counts[row], slots[row]
            count.passes += 1
            count.drafted += len(draft)
            count.accepted += accepted
            self._guesser.learn(row, draft, accepted)
            batch.lengths[slot] += accepted
            begin = batch.lengths[slot]
            wrong += [(slot, begin + n) for n in range(len(draft) - accepted)]
        if wrong:
            batch.cache.forget(*torch.tensor(wrong, device=self.device).t())


def _drop(batch: Alive, ended: set[int]) -> None:
    for at in reversed(range(len(batch.alive))):
        if batch.alive[at] in ended:  # the last row takes its place
            batch.cache.drop(at, len(batch.alive) - 1)
            for column in (batch.alive, batch.lengths):
                column[at] = column[-1]
                column.pop()


def _several(
    lengths: Sequence[int], counts: Sequence[int], device: str, shared: int
) -> tuple[Several, list[int]]:
    """The phase in which so many tokens of each row follow those that it has, and their places.
    shared: how many tokens all have before these.
    """
    most = max(counts)
    rows: list[int] = []
    places: list[int] = []
    back: list[int] = []
    grid = []
    parts = []
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        parts.append((len(rows), len(rows) + count, length + count))
        grid.append([len(rows) + min(n, count - 1) for n in range(most)])
        back += range(row * most, row * most + count)
        rows += [row] * count
        places += range(length, length + count)
    tensors = (torch.tensor(part, device=device) for part in (rows, places, grid, back))
    of_row, of_place, filled, behind = tensors
    there = torch.arange(max(places) + 1, device=device)
    seen = (there <= of_place[filled][..., None])[:, None]
    filled_up = (most * len(counts) - len(rows)) * (shared + len(there))
    alone = torch.device(device).type == "cpu" and filled_up > _ALONE * len(counts)
    return Several(of_row, of_place, filled, behind, seen, parts if alone else ()), places


class DraftedPrompts(PackedPrompts):
    """Prompts of one kind, with the drafts that their requests bring."""

    def _continue(
        self, batch: Prompts, rows: Sequence[list[int]], choose: Choose, ending: Ending
    ) -> list[list[int]]:
        model, device = self._continuer.model, torch.device(self._continuer.device).type
        width = 4 * int(model.config.get_text_config().vocab_size)  # a logit in fp32
        drafts = [draft_ids(self._tokens, request) for request, _ in batch]
        guesses = Guesses([ids for _, ids in batch], drafts, _LOGITS_BYTES[device] // width)
        drafted = DraftedRows(self._continuer, rows, choose, ending, guesses)
        found = drafted.run(self._cache or RowCache(), len(self._start))
        self._counts = drafted.counts
        return found

    def run(self, batch: Prompts) -> list[Generated]:
        answers = super().run(batch)
        return [
            replace(answer, **vars(count))
            for answer, count in zip(answers, self._counts, strict=True)
        ]


def open_prompts(
    network: Any, continuer: Continuer, tokens: Tokens, where: str, prompts: Prompts
) -> PackedPrompts:
    """Prompts with drafts, which are left out where the model cannot verify them."""
    if continuer.undrafted is None:
        continuer.undrafted = _unfit(network, continuer, prompts[0][1])
    if continuer.undrafted:
        explain(f"answers known from elsewhere are left out: {continuer.undrafted}")
        return PackedPrompts(continuer, tokens, where, prompts)
    explain("generation verifies what is known of the answers, several tokens a pass")
    return DraftedPrompts(continuer, tokens, where, prompts)


def _unfit(network: Any, continuer: Continuer, ids: Sequence[int]) -> str:
    """Why drafts cannot be verified; else empty: ``packable``'s comparison, with drafts."""
    if packable.mixes_rows(network):
        return "other tokens of a pass would move an answer's rounding"

    def drafted(shared: RowCache, start: int, *given: Any) -> object:
        rows, choose, ending, forced = given
        return DraftedRows(continuer, rows, choose, ending, _Trial(forced)).run(shared, start)

    try:
        with torch.no_grad(), packable.unrounded(network):
            return packable.compare(continuer, network, ids, drafted) or ""
    except Exception as error:  # an unusual model may fail anywhere; its plain steps are there
        if is_out_of_memory(error):
            raise
        return f"its attention is computed otherwise ({type(error).__name__})"


class _Trial:
    """Right and wrong guesses, in a prompt's pass and later ones, for three rows."""

    def __init__(self, forced: Sequence[list[int]]) -> None:
        self._forced = forced

    def guess(self, row: int, new: Sequence[int], most: int, rows: int) -> list[int]:
        right, at = self._forced[row], len(new)
        if row == 1:
            return [] if new else [right[0], right[0]]
        if not new or not most:
            return []
        return right[at : at + 1] if row == 0 else right[:1]

    def learn(self, row: int, guessed: Sequence[int], accepted: int) -> None: ...


def draft_ids(tokens: Tokens, request: Generate) -> list[list[int]]:
    """Token ids of a request's drafts, as they follow its prompt; none for one that has none."""
    found = []
    for draft in request.drafts:
        text = draft[: _CHARACTERS * request.max_new_tokens]
        try:
            prompt, whole = tokens.encode(request.prompt), tokens.encode(request.prompt + text)
        except ModelOutputError:
            continue
        if whole[: len(prompt)] == prompt:
            found.append(whole[len(prompt) :])
        else:  # the text's first token reaches into the prompt
            ids = tokens.tokenizer(text, add_special_tokens=False)["input_ids"]
            found.append([*takewhile(int(tokens.config.vocab_size).__gt__, ids)])
    return found
