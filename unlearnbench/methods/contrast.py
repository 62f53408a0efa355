"""The word that is to go, the generic word in its place, and rows where their gradients differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from unlearnbench.errors import MetricError, OptionError
from unlearnbench.methods.base import TrainingContext
from unlearnbench.methods.places import share_of
from unlearnbench.methods.rows import IGNORED, Example, Tensor
from unlearnbench.methods.whole.whp_ft import generic_labels
from unlearnbench.util.process import process_count

_STRENGTH = 5.0  # alpha of generic words, as in Who's Harry Potter


def contrasts(context: TrainingContext) -> tuple[Example, ...]:
    """The forget set with the learned tokens alone where the generic one is another, and beside
    each row the same row with the generic ones as labels. Raises MetricError where there is none.
    """
    models = context.copy_of_target(), context.reinforce()
    labelled = context.relabel(models, lambda b, r, y: generic_labels(b, r, y, _STRENGTH))
    made = []
    for example, other in zip(context.forget, labelled, strict=True):
        pairs = list(zip(example.labels, other.labels, strict=True))
        own, generic = (
            tuple(pair[way] if pair[0] != pair[1] else IGNORED for pair in pairs) for way in (0, 1)
        )
        row = replace(example, labels=own)
        if row.learned:
            made.append(replace(row, alternatives=(replace(row, labels=generic),)))
    if not made:
        raise MetricError(
            "the generic word is the true one everywhere, so no gradients can be told apart; train "
            "longer on what is to be forgotten (--epochs), or use another method"
        )
    return tuple(made)


def least_alike(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Which rows of two gradients have the least cosine, bool (rows,) by name, over all tensors
    together: a row is one candidate whatever its length, and a vector as a whole one. Of n
    candidates ceil(share x n) are chosen, ties by order; never one whose second gradient is 0:
    it has no step. Raises MetricError where all are, or one is not finite.
    """
    import torch

    found = []
    for name in first:
        rows = [g[name].double().reshape(_rows(g[name]), -1) for g in (first, second)]
        norms = rows[0].norm(dim=1), rows[1].norm(dim=1)
        cosines = (rows[0] * rows[1]).sum(dim=1) / (norms[0] * norms[1]).clamp(min=1e-300)
        if not bool((norms[0] + norms[1]).isfinite().all()):
            raise MetricError(f"the gradient of {name} is not finite, so it cannot choose weights")
        found.append(torch.where(norms[1] > 0, cosines, torch.inf))
    flat = torch.cat(found)
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    order = torch.argsort(flat, stable=True)
    chosen[order[: share_of(len(flat), share)]] = True
    chosen &= flat < torch.inf
    if not bool(chosen.any()):
        raise MetricError("all gradients are 0, so they cannot choose weights")
    parts = chosen.split([len(part) for part in found])
    return {n: p.expand(len(first[n])).clone() for n, p in zip(first, parts, strict=True)}


def _rows(tensor: Tensor) -> int:
    return len(tensor) if tensor.dim() > 1 else 1


def require_one_process(name: str) -> None:
    """A training that only the main process makes would wait for the others for ever."""
    if process_count() > 1:
        raise OptionError(f"{name} trains a model before it chooses; launch one process")
