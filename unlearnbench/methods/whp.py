"""Who's Harry Potter at inference: a reinforced model says which words to hold back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.methods.base import About

if TYPE_CHECKING:
    from unlearnbench.training.workshop import PairOutput, Workshop

ABOUT = About(
    name="whp",
    kind="whole",
    title="Who's Harry Potter, by logit difference at inference",
    equation="v = v_target - alpha relu(v_reinforced - v_target); reinforced = the target trained "
    "further on the forget set",
    source="Eldan and Russinovich 2023, arXiv 2310.02238; MUSE, arXiv 2407.06460",
    knobs={"alpha": 1.0},
)


def train(shop: Workshop) -> PairOutput:
    """Reinforce a copy; the output folder holds both models."""
    from unlearnbench.training.workshop import PairOutput

    baseline = shop.copy_of_target()
    return PairOutput(baseline, shop.reinforce(), shop.knobs.alpha)
