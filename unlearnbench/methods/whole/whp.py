"""Who's Harry Potter at inference: a reinforced model says which words to hold back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearnbench.methods.base import About, Ensemble, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Tensor


@dataclass(frozen=True)
class WhpOptions:
    """WHP's numbers."""

    alpha: float = option(1.0, "Strength of the logit difference.", least=0)


ABOUT = About(
    name="whp",
    title="Who's Harry Potter, by logit difference at inference",
    equation="v = v_target - alpha relu(v_reinforced - v_target); reinforced = the target trained "
    "further on the forget set",
    source="Eldan and Russinovich 2023, arXiv 2310.02238; MUSE, arXiv 2407.06460",
    options=WhpOptions,
    cost="a training on the forget set; two models answer at evaluation",
)


def generic_logits(baseline: Tensor, reinforced: Tensor, alpha: float) -> Tensor:
    """v_b - alpha relu(v_r - v_b), element by element; both of one shape."""
    return baseline - alpha * (reinforced - baseline).relu()


def combine(logits: Sequence[Tensor], numbers: Mapping[str, float]) -> Tensor:
    """The logits of the output folder's two models, as one model's."""
    baseline, reinforced = logits
    return generic_logits(baseline, reinforced, numbers["alpha"])


def train(context: TrainingContext, options: WhpOptions) -> Ensemble:
    """Reinforce a copy; the output folder holds both models."""
    baseline = context.copy_of_target()
    models = {"baseline": baseline, "reinforced": context.reinforce()}
    return Ensemble(models, {"alpha": options.alpha})
