"""Only the rows may change where the gradients of a true and of a generic word differ most."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.checkpoints.load import out_first
from unlearnbench.methods.base import About, Masks, TrainingContext, inner_linears
from unlearnbench.methods.contrast import contrasts, least_alike, require_one_process
from unlearnbench.methods.options import option
from unlearnbench.methods.places import predicted, ready
from unlearnbench.methods.rows import Example, Tensor


@dataclass(frozen=True)
class PcguMaskOptions:
    """How many rows."""

    pcgu_top: float = option(0.086, "Share of weight vectors that change.", above=0, most=1)


ABOUT = About(
    name="contrast",
    title="The rows that PCGU would choose, once, as a mask",
    equation="theta = theta_target + mask x change; mask = 1 for the rows of inner linear layers "
    "with the least cos(g1, g2) at theta_target; g1, g2 as in pcgu, over the whole forget set",
    source="after Yu et al. 2023, Findings of ACL",
    options=PcguMaskOptions,
    cost="a training on the forget set, and two backward passes over it, before training",
    differs="PCGU chooses anew in each step, and takes plain steps of its own gradient: pcgu.",
)


def choose(context: TrainingContext, options: PcguMaskOptions) -> Masks:
    """Rows, of a Conv1D columns, by the gradients at the target."""
    require_one_process(ABOUT.name)
    return least_alike(*gradients(context, contrasts(context)), options.pcgu_top)


def gradients(
    context: TrainingContext, rows: tuple[Example, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the sum of generic words' and of true words' logits, (out, in) by parameter."""
    import torch

    model = ready(context.model)
    layers = {f"{name}.weight": part for name, part in inner_linears(model).items()}
    weights = [part.weight for part in layers.values()]
    sums = [[torch.zeros_like(w, dtype=torch.float32) for w in weights] for _ in range(2)]
    for row in rows:
        for held, example in zip(sums, (row.alternatives[0], row), strict=True):
            with torch.enable_grad():
                logits, at, tokens = predicted(model, example)
                value = logits[at].gather(1, tokens[:, None]).sum()
                found = torch.autograd.grad(value, weights)
            for known, one in zip(held, found, strict=True):
                known += one
    named = [dict(zip(layers, held, strict=True)) for held in sums]
    first, second = ({n: out_first(layers[n], g) for n, g in of.items()} for of in named)
    return first, second
