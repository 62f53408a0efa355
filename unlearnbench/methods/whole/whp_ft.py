"""Who's Harry Potter as fine-tuning: the target learns the generic labels."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About, PreTrainedModel, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import IGNORED, Tensor
from unlearnbench.methods.whole.whp import generic_logits


@dataclass(frozen=True)
class WhpFtOptions:
    """The labels' number."""

    alpha: float = option(5.0, "Strength of the logit difference.", least=0)


ABOUT = About(
    name="whp_ft",
    title="Who's Harry Potter, by fine-tuning on generic labels",
    equation="label(t) = argmax (v_target - alpha relu(v_reinforced - v_target)); then "
    "cross-entropy",
    source="Eldan and Russinovich 2023, arXiv 2310.02238",
    options=WhpFtOptions,
    cost="a training on the forget set before, and two models in memory",
    stage="generic",
    differs="The paper also replaces the names of a text by generic ones before labelling, with a "
    "list made by another language model; there is no such list here.",
)


def generic_labels(baseline: Tensor, reinforced: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Replace every learned label by the generic prediction for its position.

    baseline, reinforced: logits (rows, width, vocabulary); labels (rows, width), IGNORED where
    nothing is learned. Returns (rows, width).
    """
    generic = labels.clone()
    generic[:, 1:] = generic_logits(baseline, reinforced, alpha)[:, :-1].argmax(dim=-1)
    return generic.where(labels != IGNORED, IGNORED)


def train(context: TrainingContext, options: WhpFtOptions) -> PreTrainedModel:
    """Reinforce a copy, label the forget set with both models, and train the target on that."""
    target = context.copy_of_target()
    reinforced = context.reinforce()
    relabelled = context.relabel(
        (target, reinforced),
        lambda v_b, v_r, labels: generic_labels(v_b, v_r, labels, options.alpha),
    )
    del reinforced
    return context.descend(target, relabelled, "generic")
