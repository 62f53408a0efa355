"""Unlearning layers: small linear layers behind the feed-forward parts; several are fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from unlearnbench.checkpoints.load import out_first
from unlearnbench.errors import MetricError, OptionError
from unlearnbench.methods.base import About, FrozenModel, PreTrainedModel, TrainingContext
from unlearnbench.methods.forget import ga
from unlearnbench.methods.options import option
from unlearnbench.methods.places import inputs_of, outward, ready
from unlearnbench.methods.retain import gdr, klr
from unlearnbench.methods.rows import Batch, Example, Part, Role, Tensor


@dataclass(frozen=True)
class EulOptions:
    """The factors of the losses, and the requests."""

    eul_stay: float = option(0.8, "Factor of staying close to the target on retain texts.", least=0)
    eul_task: float = option(1.0, "Factor of the cross-entropy of retain texts.", least=0)
    eul_ascent: float = option(0.2, "Factor of the ascent on forget texts.", least=0)
    eul_requests: int = option(1, "Parts of the forget set, a layer each, fused at last.", least=1)
    eul_ridge: float = option(1e-4, "Ridge of the fusion, share of the mean diagonal.", above=0)


ABOUT = About(
    name="eul",
    title="EUL: unlearning layers, and their fusion",
    equation="L = a KL_retain(p_target || p) - KL_forget(p_target || p) + lam CE_retain - gam "
    "CE_forget, only layers of rank --lora-rank (32) behind the feed-forward parts learn; several "
    "are fused: W = (sum W_i G_i) (sum G_i)^-1, G_i = X_i' X_i of request i's inputs",
    source="Chen and Yang 2023, arXiv 2310.20150",
    options=EulOptions,
    data=("retain",),
    stage="unlearn",
    rank=32,
    cost="a frozen forward pass in each step (without memory); with several requests a training "
    "each, and matrices of neurons x neurons in double precision",
    differs="No code of the method was released. The paper's layer has a nonlinearity and stays "
    "beside the model; here it is linear and merged, so that the output is an ordinary checkpoint "
    "[derived]. It alternates epochs on retain and forget texts; here each step has both. The "
    "ridge draws towards the mean of the layers [derived].",
)


@dataclass(frozen=True)
class Unlearning:
    """The three losses, with a frozen model to compare with."""

    options: EulOptions
    target: FrozenModel

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """What forgets, what stays, and their sum."""
        ours = model(**batch.inputs, use_cache=False).logits
        theirs = self.target(model, batch.inputs).logits
        o = self.options
        far, near = (self._part(role, batch, ours, theirs) for role in ("forget", "retain"))
        ascent = o.eul_ascent * ga.loss(far, ga.ABOUT.options())
        forget = ascent - klr.loss(far, klr.KlrOptions())
        stay = klr.loss(near, klr.KlrOptions(o.eul_stay))
        retain = stay + gdr.loss(near, gdr.GdrOptions(o.eul_task))
        return {"loss": forget + retain, "forget": forget, "retain": retain}

    def _part(self, role: Role, batch: Batch, ours: Tensor, theirs: Tensor) -> Part:
        at = batch.slice(role)
        known = {"target": theirs[at]}
        tokens = batch.all_tokens[role]
        return Part(ours[at], batch.labels[at], batch.all_rows, tokens, references=known)


def train(context: TrainingContext, options: EulOptions) -> PreTrainedModel:
    """Train one layer, or one for each part of the forget set from the target and fuse them. Raises
    OptionError where there are more requests than texts.
    """
    loss, names = Unlearning(options, context.freeze()), tuple(outward(context.model))
    count = options.eul_requests
    if count == 1:
        return context.fit(loss, adapts=names)
    if count > len(context.forget):
        raise OptionError(f"--eul-requests {count}: there are {len(context.forget)} forget texts")
    cuts = [i * len(context.forget) // count for i in range(count + 1)]
    requests = [context.forget[a:b] for a, b in pairwise(cuts)]
    grams = [gram(ready(context.model), part) for part in requests]
    target = [_weight(layer).detach().clone() for layer in outward(context.model).values()]
    changes: list[list[Tensor]] = []
    model = context.model
    for number, part in enumerate(requests):
        model = context.fit(loss, forget=part, adapts=names, stage=f"request{number}")
        pairs = zip(map(_weight, outward(model).values()), target, strict=True)
        changes.append([made.double() - t.double() for made, t in pairs])
        _set(model, target)
    fused = [
        t.double() + fuse([c[i] for c in changes], [g[i] for g in grams], options.eul_ridge)
        for i, t in enumerate(target)
    ]
    _set(model, fused)
    return model


def fuse(changes: Sequence[Tensor], grams: Sequence[Tensor], ridge: float) -> Tensor:
    """D = argmin sum_i |(D - D_i) X_i'|^2 + mu |D - mean|^2, (out, in); changes: D_i; grams: X_i'
    X_i; mu = ridge x the mean diagonal of their sum. Raises MetricError where it is not finite.
    """
    import torch

    mean = torch.stack(list(changes)).mean(dim=0)
    total = torch.stack(list(grams)).sum(dim=0)
    pulls = torch.stack([(c - mean) @ g for c, g in zip(changes, grams, strict=True)]).sum(dim=0)
    total.diagonal().add_(ridge * total.diagonal().mean())
    found: Tensor = mean + torch.linalg.solve(total, pulls.T).T
    if not bool(found.isfinite().all()):
        raise MetricError("the fused layer is not finite; use a larger --eul-ridge")
    return found


def gram(model: Any, examples: Sequence[Example]) -> list[Tensor]:
    """X' X of the inputs of each feed-forward part's last layer, (neurons, neurons), in double
    precision, over the predicting positions of some texts.
    """
    import torch

    layers = list(outward(model).values())
    sums = [
        torch.zeros(w.shape[1], w.shape[1], dtype=torch.float64, device=w.device)
        for w in map(_weight, layers)
    ]
    with torch.no_grad():
        for example in examples:
            for total, keys in zip(sums, inputs_of(model, layers, example), strict=True):
                total += keys.double().T @ keys.double()
    return sums


def _weight(layer: Any) -> Tensor:
    return out_first(layer, layer.weight)


def _set(model: Any, weights: Sequence[Tensor]) -> None:
    import torch

    with torch.no_grad():
        for layer, weight in zip(outward(model).values(), weights, strict=True):
            _weight(layer).copy_(weight.to(layer.weight))
