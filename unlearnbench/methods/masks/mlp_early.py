"""Only the feed-forward layers at some depth may change: where facts are said to be looked up."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.errors import OptionError
from unlearnbench.methods.base import About, Masks, TrainingContext, inner_linears
from unlearnbench.methods.options import option
from unlearnbench.methods.places import feed_forward


@dataclass(frozen=True)
class EarlyOptions:
    """Which blocks."""

    mlp_from: float = option(0.06, "Depth of the first block that learns, 0 to 1.", least=0, most=1)
    mlp_to: float = option(0.25, "Depth of the last block that learns, 0 to 1.", least=0, most=1)


ABOUT = About(
    name="mlp_early",
    title="Mechanistic unlearning: only early feed-forward layers learn",
    equation="theta = theta_target + mask x change; mask = 1 for the feed-forward matrices of the "
    "blocks from one depth to another; unlikelihood_gdr_mlp_early with its loss",
    source="Guo et al. 2024, arXiv 2410.12949",
    options=EarlyOptions,
    differs="The paper finds its layers by probes and path patching (2 to 8 of 26 to 42); here "
    "they are a share of the depth, or mlp_traced finds them. Its third term, cross-entropy on the "
    "Pile, is left out. Released code (a36be56) trains other layers than the paper says.",
)


def choose(context: TrainingContext, options: EarlyOptions) -> Masks:
    """All rows of the feed-forward matrices of the blocks in between, at least one block; of every
    other inner matrix none. Raises OptionError where the depths are the wrong way round.
    """
    if options.mlp_from > options.mlp_to:
        raise OptionError(f"--mlp-from {options.mlp_from:g} is beyond --mlp-to {options.mlp_to:g}")
    last = len(feed_forward(context.model)) - 1
    first, end = round(options.mlp_from * last), round(options.mlp_to * last)
    return whole(context, list(range(first, end + 1)))


def whole(context: TrainingContext, numbers: list[int]) -> Masks:
    """The mask of the feed-forward matrices of some blocks."""
    import torch

    from unlearnbench.checkpoints.load import out_first

    layers = feed_forward(context.model)
    learns = {name for number in numbers for name in layers[number]}
    return {
        f"{name}.weight": torch.full((len(out_first(part, part.weight)),), name in learns)
        for name, part in inner_linears(context.model).items()
    }
