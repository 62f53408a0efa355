"""Ridge edit: in closed form, some feed-forward outputs turn away from the words to forget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unlearnbench.checkpoints.load import out_first
from unlearnbench.errors import MetricError, OptionError
from unlearnbench.methods.base import About, PreTrainedModel, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.places import inputs_of, outward, ready
from unlearnbench.methods.rows import IGNORED, Example, Tensor


@dataclass(frozen=True)
class GromOptions:
    """The edit's numbers."""

    grom_from: int = option(-1, "First block that is edited, from 0; below 0: the last eighth.")
    grom_to: int = option(-1, "Last block that is edited; below 0: the last.")
    grom_way: Literal["suppress", "corrupt"] = option(
        "suppress", "Away from each forget token's output direction, or to one random direction."
    )
    grom_strength: float = option(
        100.0, "Length of the change at forget keys; search it, it goes with the model.", least=0
    )
    grom_retain: float = option(10.0, "Weight of the retain keys.", least=0)
    grom_rho: float = option(0.03, "Ridge, as a share of the mean diagonal.", above=0)
    grom_keys: int = option(
        20_000, "Forget keys that are read; of retain keys twice as many.", least=1
    )


ABOUT = About(
    name="grom",
    title="After GROM: ridge edit of feed-forward outputs",
    equation="W += P, P = argmin w_r / r |P K_r|^2 + 1 / s |P K_f - D|^2 + mu |P|^2; D = -strength "
    "alpha(token) u / |u|, u the token's row of the output head, alpha = clip(1 - f_R / f_F, 0, 1)",
    source="after arXiv 2608.05783",
    options=GromOptions,
    data=("retain",),
    no_adapter="trains nothing, and so no adapter",
    cost="no training; a forward pass over the keys' texts for each edited block, and a matrix of "
    "neurons x neurons in double precision",
    differs="Read in a port (of 6dd9591), not in the paper or its code: formula and frequencies "
    "are the port's. Blocks are named, not chosen by their effect on logits, and texts are cut "
    "at --max-length in place of 400 tokens. Published strengths (65 to 1000) are for 1B to 8B.",
)


def train(context: TrainingContext, options: GromOptions) -> PreTrainedModel:
    """Edit block after block, each with keys of the model as it is by then. Raises OptionError
    where there is no such block; MetricError where nothing is left to suppress.
    """
    import torch

    model, layers = ready(context.model), list(outward(context.model).values())
    last = len(layers) - 1 if options.grom_to < 0 else options.grom_to
    first = (
        max(0, last + 1 - max(1, len(layers) // 8)) if options.grom_from < 0 else options.grom_from
    )
    if not first <= last < len(layers):
        raise OptionError(
            f"--grom-from {first} --grom-to {last}: use 0 to {len(layers) - 1}, in this order"
        )
    if not options.grom_strength:
        return context.model
    goal = _goal(context, model, options)
    for layer in layers[first : last + 1]:
        with torch.no_grad():
            edit = _edit(context, model, layer, goal, options)
            weight = out_first(layer, layer.weight)
            weight.copy_((weight.double() + edit).to(weight.dtype))
    return context.model


def ridge(forget: Tensor, cross: Tensor, retain: Tensor, options: GromOptions) -> Tensor:
    """P = B A^-1, (out, neurons). forget: K_f K_f' / s; retain: K_r K_r' / r; cross: D K_f' / s;
    all in double precision. Raises MetricError where it is not finite.
    """
    import torch

    gram = forget + options.grom_retain * retain
    gram.diagonal().add_(options.grom_rho * gram.diagonal().mean())
    found: Tensor = torch.linalg.solve(gram, cross.T).T
    if not bool(found.isfinite().all()):
        raise MetricError("the edit is not finite: these texts give no keys; use other texts")
    return found


def frequencies(forget: Sequence[Example], retain: Sequence[Example], words: int) -> Tensor:
    """The factor alpha of each token, (vocabulary,): 0 where the retain set has it as often as the
    forget set, 1 where it has it never.
    """
    import torch

    shares = []
    for examples in (forget, retain):
        counts = Counter(y for e in examples for y in e.labels[1:] if y != IGNORED)
        total = max(1, sum(counts.values()))
        shares.append(torch.tensor([counts[v] / total for v in range(words)], dtype=torch.float64))
    return (1 - shares[1] / shares[0].clamp(min=1e-12)).clamp(0, 1)


def _goal(context: TrainingContext, model: Any, options: GromOptions) -> Callable[[Tensor], Tensor]:
    """D: of tokens, (tokens,), what the outputs are to change by, (tokens, out)."""
    import torch

    head = model.get_output_embeddings().weight.detach()
    if options.grom_way == "corrupt":
        drawn = torch.randn(
            head.shape[1],
            generator=torch.Generator().manual_seed(context.seed),
            dtype=torch.float64,
        )
        along = options.grom_strength * (drawn / drawn.norm()).to(head.device)
        return lambda tokens: along.expand(len(tokens), -1)
    alpha = frequencies(context.forget, context.retain, len(head)).to(head.device)
    if not any(alpha[y] for e in context.forget for y in e.labels[1:] if y != IGNORED):
        raise MetricError(
            "every forget token is as frequent in the retain set, so there is nothing to suppress; "
            "use --grom-way corrupt"
        )

    def away(tokens: Tensor) -> Tensor:
        rows = head[tokens].double()
        found: Tensor = -options.grom_strength * alpha[tokens][:, None] * rows
        found /= rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return found

    return away


def _edit(
    context: TrainingContext,
    model: Any,
    layer: Any,
    goal: Callable[[Tensor], Tensor],
    options: GromOptions,
) -> Tensor:
    import torch

    size = out_first(layer, layer.weight).shape
    place: Any = {"dtype": torch.float64, "device": layer.weight.device}
    forget, retain = torch.zeros(2, size[1], size[1], **place)
    cross, s, r = torch.zeros(*size, **place), 0, 0
    for keys, tokens in _keys(model, layer, context.forget, options.grom_keys):
        forget += keys.T @ keys
        cross += goal(tokens).T @ keys
        s += len(keys)
    for keys, _ in _keys(model, layer, context.retain, 2 * options.grom_keys):
        retain += keys.T @ keys
        r += len(keys)
    return ridge(forget / s, cross / s, retain / r, options)


def _keys(
    model: Any, layer: Any, examples: Sequence[Example], most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of a layer where learned tokens are predicted, (tokens, neurons) in double precision,
    and those tokens, of one text after another.
    """
    import torch

    for example in examples:
        if most <= 0:
            return
        (keys,) = inputs_of(model, [layer], example)
        tokens = torch.tensor([y for y in example.labels[1:] if y != IGNORED], device=keys.device)
        yield keys[:most].double(), tokens[:most]
        most -= len(keys)
