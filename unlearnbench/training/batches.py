"""From token sequences to the batches of every step.

The whole order of training is laid out before it starts, as a function of the seed alone. So a
resumed run sees the same rows, and so do two processes that share a step between them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from unlearnbench.errors import OptionError
from unlearnbench.methods.rows import IGNORED, Batch, Example, Role
from unlearnbench.methods.soft import mean_of
from unlearnbench.training.options import TrainOptions

Rows = Mapping[Role, tuple[Example, ...]]
"""A forget sequence and what stands beside it."""

Sums = dict[str, Any]
"""What the parts of an optimizer step are divided by, so that they add up to means over it: the
fields of a Batch that begin with ``all_``.
"""

_ORDER: tuple[Role, ...] = ("forget", "retain", "auxiliary", "alternatives")


@dataclass(frozen=True)
class Schedule:
    """Every sequence of a training in order, ``batch_size`` a step. A data set for the Trainer."""

    items: tuple[Rows, ...]
    batch_size: int
    epoch: int
    """Steps of one pass over the forget set."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Rows, Sums]:
        first = index - index % self.batch_size
        return self.items[index], sums_of(self.items[first : first + self.batch_size])

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.items) // self.batch_size


def sums_of(step: Sequence[Rows]) -> Sums:
    """What a step is divided by that has such rows."""
    tokens: dict[Role, int] = {}
    for rows in step:
        for role, found in rows.items():
            tokens[role] = tokens.get(role, 0) + sum(row.learned for row in found)
    weight = sum(row.weight for rows in step for row in rows["forget"])
    # A step may have nothing to learn, as outside of spans: then its terms are 0, not 0 / 0.
    tokens = {role: max(1, count) for role, count in tokens.items()}
    return {"all_rows": len(step), "all_tokens": tokens, "all_weight": weight or 1.0}


def make_schedule(
    sets: Mapping[Role, Sequence[Example]], options: TrainOptions, alternatives: int = 0
) -> Schedule:
    """Lay out the training: each epoch shuffles the forget set anew, the other sets go round at
    their own pace. So many ``alternatives`` of each forget sequence are drawn each time it comes.
    """
    forget, size = sets["forget"], options.batch_size
    if not any(example.learned for example in forget):
        raise OptionError("the forget set has no token to learn from")
    pairs = sum(example.is_qa for example in forget)
    sequences = len(forget) - pairs + math.ceil(pairs / options.pack)
    # A last batch is filled up from the next epoch.
    steps = options.max_steps or max(1, math.ceil(options.epochs * sequences / size - 1e-9))
    rng = random.Random(options.seed)  # noqa: S311  # a seeded generator is the point
    streams = {r: _stream(s, steps * size, options.pack, rng) for r, s in sets.items() if s}
    items = []
    for at in range(steps * size):
        rows: dict[Role, tuple[Example, ...]] = {role: (s[at],) for role, s in streams.items()}
        if alternatives:
            others = streams["forget"][at].alternatives
            rows["alternatives"] = tuple(rng.sample(others, alternatives))
        items.append(rows)
    return Schedule(tuple(items), size, math.ceil(sequences / size))


def _stream(
    examples: Sequence[Example], wanted: int, pack: int, rng: random.Random
) -> list[Example]:
    """So many sequences, epoch after epoch; ``pack`` joins so many question-answer pairs in one."""
    drawn: list[Example] = []
    while len(drawn) < wanted:
        order = list(examples)
        rng.shuffle(order)
        if pack > 1:
            pairs = [example for example in order if example.is_qa]
            order = [example for example in order if not example.is_qa]
            order += [_join(pairs[at : at + pack]) for at in range(0, len(pairs), pack)]
            rng.shuffle(order)
        drawn += order
    return drawn[:wanted]


def _join(pairs: Sequence[Example]) -> Example:
    """One sequence of several pairs, with one begin token, as few-shot prompts have them."""
    cuts = [0, *(pair.begin for pair in pairs[1:])]
    ids = [token for pair, cut in zip(pairs, cuts, strict=True) for token in pair.ids[cut:]]
    labels = [label for pair, cut in zip(pairs, cuts, strict=True) for label in pair.labels[cut:]]
    return Example(tuple(ids), tuple(labels), is_qa=True, begin=pairs[0].begin)


def collate(drawn: Sequence[tuple[Rows, Sums]], pad: int) -> dict[str, Any]:
    """The tensors of one forward pass as a dict, which is what the Trainer moves to a device."""
    of = {role: [row for rows, _ in drawn for row in rows.get(role, ())] for role in _ORDER}
    rows = [row for found in of.values() for row in found]

    def padded(
        values: Sequence[Sequence[float]], fill: float, kind: torch.dtype = torch.int64
    ) -> torch.Tensor:
        return pad_sequence([torch.tensor(v, dtype=kind) for v in values], True, fill)

    batch = {
        "input_ids": padded([row.ids for row in rows], pad),
        "attention_mask": padded([[1] * len(row.ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], IGNORED),
        "rows": {role: len(found) for role, found in of.items() if found},
        **drawn[0][1],
        "sequences": {
            role: torch.tensor([row.reference for row in found], dtype=torch.float32)
            for role, found in of.items()
            if found and found[0].reference is not None
        },
    }
    if any(row.weights is not None for row in rows):
        weights = [row.weights or (1.0,) * len(row.ids) for row in rows]
        batch["weights"] = padded(weights, 0.0, torch.float32)
    if all(row.soft for row in of["forget"]):
        batch["soft"] = mean_of([row.soft for row in of["forget"]])
    return batch


def as_batch(inputs: Mapping[str, Any]) -> Batch:
    """What ``collate`` made, back as a Batch."""
    rest = dict(inputs)
    given = {name: rest.pop(name) for name in ("input_ids", "attention_mask")}
    return Batch(given, **rest)
