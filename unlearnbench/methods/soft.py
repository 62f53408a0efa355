"""What teachers say of texts, kept in files: their likeliest tokens, and what these leave of 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from unlearnbench.errors import MetricError, TrainingError
from unlearnbench.methods.base import PreTrainedModel, TrainingContext
from unlearnbench.methods.rows import Example, Soft, Tensor, learned_logits
from unlearnbench.util.files import writing

_REMEDY = "free some space and add --resume"


def tell(
    context: TrainingContext, name: str, model: PreTrainedModel, rows: Sequence[Example], most: int
) -> list[Soft]:
    """What ``model`` says at the learned positions of each row, its ``most`` likeliest tokens (0:
    all), as views of two files called ``name``; made once. Raises MetricError where it is not
    finite, TrainingError where it cannot be written.
    """
    import numpy as np

    folder = context.home / "soft"
    paths = folder / f"{name}.ids", folder / f"{name}.probs"
    if not paths[1].exists():  # which is there once both are whole
        with writing(folder, TrainingError, _REMEDY):
            folder.mkdir(parents=True, exist_ok=True)
            parts = [path.with_suffix(path.suffix + ".part") for path in paths]
            _write(context, name, model, rows, most, parts)
            for part, path in zip(parts, paths, strict=True):
                part.replace(path)
    cuts = [0]
    for row in rows:
        cuts.append(cuts[-1] + row.learned)
    if not cuts[-1]:
        return [(np.zeros((0, 1), np.int32), np.zeros((0, 2), np.float32)) for _ in rows]
    ids = np.memmap(paths[0], np.int32, "r").reshape(cuts[-1], -1)
    probs = np.memmap(paths[1], np.float32, "r").reshape(cuts[-1], -1)
    return [(ids[a:b], probs[a:b]) for a, b in pairwise(cuts)]


def _write(
    context: TrainingContext,
    name: str,
    model: PreTrainedModel,
    rows: Sequence[Example],
    most: int,
    paths: Sequence[Path],
) -> None:
    import torch

    with paths[0].open("wb") as ids, paths[1].open("wb") as probs:

        def write(logits: Tensor, labels: Tensor) -> Tensor:
            known = learned_logits(logits, labels)[0].softmax(dim=-1)
            if not bool(known.isfinite().all()):
                raise MetricError(
                    f"what {name} says is not finite, so nothing can be learned from it; use a "
                    "smaller --teacher-lr, or --weights-dtype fp32"
                )
            words = known.shape[-1]
            top = known.topk(min(most or words, words), dim=-1)
            left = (1 - top.values.double().sum(dim=-1, keepdim=True)).clamp(min=0)
            if top.values.shape[-1] == words:
                left = torch.zeros_like(left)
            ids.write(top.indices.int().cpu().numpy().tobytes())
            probs.write(torch.cat([top.values, left], dim=-1).float().cpu().numpy().tobytes())
            return labels[:, :0]

        context.measure([model], rows, write)


def mean_of(rows: Sequence[tuple[Soft, ...]]) -> dict[str, Tensor]:
    """The mean of each row's teachers, as ``Part.soft`` has it."""
    import numpy as np
    import torch

    ids, probs, rest = [], [], []
    for row in rows:
        ids.append(np.concatenate([tokens for tokens, _ in row], axis=1))
        probs.append(np.concatenate([found[:, :-1] for _, found in row], axis=1) / len(row))
        rest.append(np.mean([found[:, -1] for _, found in row], axis=0))
    return {
        "ids": torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        "probs": torch.from_numpy(np.concatenate(probs)),
        "rest": torch.from_numpy(np.concatenate(rest)),
    }


def divergence(logits: Tensor, soft: Mapping[str, Tensor]) -> Tensor:
    """Sum over tokens of KL(q || p), in nats, q what teachers say: all tokens that they do not name
    are one outcome, and so is what a teacher gives to one that only another names. It is exact
    where they name all, and for one teacher never more than that. logits: (tokens, vocabulary).
    Its gradient is p - q, with what is left shared as p shares it.
    """
    import torch

    log_p = logits.log_softmax(dim=-1)
    probs = soft["probs"].to(log_p.dtype)
    q = torch.zeros_like(log_p).scatter_add(1, soft["ids"], probs)
    named = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, soft["ids"], True)
    total = torch.xlogy(q, q).sum() - (q * log_p).sum()
    rest = soft["rest"].to(log_p.dtype)
    open_ = (rest > 0) & ~named.all(dim=-1)
    left = log_p[open_].masked_fill(named[open_], -torch.inf).logsumexp(dim=-1)
    found: Tensor = total + (torch.xlogy(rest, rest)[open_] - rest[open_] * left).sum()
    return found
