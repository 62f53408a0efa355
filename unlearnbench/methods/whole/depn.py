"""Privacy neurons: feed-forward neurons that carry a text are found and set to 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unlearnbench.checkpoints.load import out_first
from unlearnbench.errors import MetricError
from unlearnbench.methods.base import About, PreTrainedModel, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.places import hooked, inputs_of, outward, predicted, ready, share_of
from unlearnbench.methods.rows import IGNORED, Example, Tensor


@dataclass(frozen=True)
class DepnOptions:
    """How neurons are found, and how many."""

    depn_top: float = option(0.005, "Share of all neurons that are erased.", least=0, most=1)
    depn_choice: Literal["attributed", "random"] = option(
        "attributed", "Which neurons; random: the control, as many by chance."
    )
    depn_path: Literal["layer", "all"] = option(
        "layer", "What grows from 0 together: the neurons of a layer, or of all layers."
    )
    depn_steps: int = option(20, "Steps of the integral.", least=1)
    depn_rows: int = option(64, "Forget texts that are read, the first ones.", least=1)
    depn_share: float = option(
        0.1, "A text votes for neurons of so much of its largest attribution.", least=0, most=1
    )


ABOUT = About(
    name="depn",
    title="Privacy neurons are erased",
    equation="attribution(l, k) = sum over predicting positions of b / m sum_{j=1..m} dP / dw at "
    "w = j b / m, P = sum of p(token), b = activation k of layer l; each text votes for its "
    "largest, and the columns of the most voted are 0",
    source="Wu et al. 2023, arXiv 2310.20138",
    options=DepnOptions,
    no_adapter="trains nothing, and so no adapter",
    cost="no training; depn_steps forward and backward passes over the texts that are read, with "
    "--depn-path layer so many for each layer",
    differs="The paper marks a secret; here every learned token counts, and all positions of a "
    "text grow together [derived]. Its formula moves one neuron at a time, its released code "
    "(793da18) all of a layer, as here. That code sums from 0 to m - 1, applies thresholds twice, "
    "and its script erases random neurons, since it reads False as true.",
)


def train(context: TrainingContext, options: DepnOptions) -> PreTrainedModel:
    """Find the neurons, or draw them, and set their columns to 0."""
    layers = outward(context.model)
    sizes = [out_first(part, part.weight).shape[1] for part in layers.values()]
    count = share_of(sum(sizes), options.depn_top)
    if options.depn_choice == "random":
        chosen = drawn(sum(sizes), count, context.seed)
    elif count:
        model = ready(context.model)
        texts = context.forget[: options.depn_rows]
        chosen = most_voted([attribution(model, e, options) for e in texts], count, options)
    else:
        chosen = []
    erase(layers, chosen)
    return context.model


def attribution(model: Any, example: Example, options: DepnOptions) -> Tensor:
    """Of each neuron, layer after layer, (neurons,), in double precision."""
    import torch

    layers = list(outward(model).values())
    activations = dict(zip(layers, inputs_of(model, layers, example), strict=True))
    at = torch.tensor([t for t, label in enumerate(example.labels[1:]) if label != IGNORED])
    groups = [layers] if options.depn_path == "all" else [[layer] for layer in layers]
    found = []
    for group in groups:
        clean = [activations[layer] for layer in group]
        sums = [torch.zeros_like(b[0], dtype=torch.float64) for b in clean]
        for step in range(1, options.depn_steps + 1):
            ways = [(step / options.depn_steps * b).requires_grad_() for b in clean]
            hooks = {m: _puts(way, at) for m, way in zip(group, ways, strict=True)}
            with torch.enable_grad(), hooked(hooks, inputs=True):
                logits, _, tokens = predicted(model, example)
                chances = logits[at].softmax(dim=-1).gather(1, tokens[:, None]).sum()
                slopes = torch.autograd.grad(chances, ways)
            for total, b, slope in zip(sums, clean, slopes, strict=True):
                total += (b.double() * slope.double()).sum(dim=0) / options.depn_steps
        found += sums
    return torch.cat(found)


def _puts(values: Tensor, at: Tensor) -> Any:
    def put(module: Any, given: Any) -> Any:
        moved = given[0].clone()
        moved[0, at] = values
        return (moved, *given[1:])

    return put


def most_voted(found: Sequence[Tensor], count: int, options: DepnOptions) -> list[int]:
    """The neurons with the most votes, ties by the sum of attributions, then by order. Raises
    MetricError where an attribution is not finite, or all are 0.
    """
    import numpy as np

    votes, total = np.zeros(len(found[0])), np.zeros(len(found[0]))
    for each in found:
        values = each.cpu().numpy()
        if not np.isfinite(values).all() or not values.any():
            raise MetricError("attributions are 0 or not finite, so they cannot choose neurons")
        votes += (values >= options.depn_share * values.max()) & (values > 0)
        total += values
    order = np.lexsort((-total, -votes))
    return sorted(order[:count].tolist())


def drawn(neurons: int, count: int, seed: int) -> list[int]:
    """So many neurons by chance."""
    import torch

    order = torch.randperm(neurons, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:count].tolist())


def erase(layers: Mapping[str, Any], chosen: Sequence[int]) -> None:
    """Set the column of each neuron to 0, by its number through all layers."""
    import torch

    first = 0
    with torch.no_grad():
        for layer in layers.values():
            weight = out_first(layer, layer.weight)
            own = [n - first for n in chosen if first <= n < first + weight.shape[1]]
            weight[:, own] = 0.0
            first += weight.shape[1]
