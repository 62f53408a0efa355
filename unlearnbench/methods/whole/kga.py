"""KGA: the distance of the model to a specialist of the forget set is made the distance of the
target to a specialist of texts that it never saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlearnbench.methods.base import (
    About,
    FrozenModel,
    Gradient,
    OptimizerStep,
    PreTrainedModel,
    TrainingContext,
)
from unlearnbench.methods.options import option
from unlearnbench.methods.retain import klr
from unlearnbench.methods.rows import IGNORED, Batch, Part, Role, Tensor


@dataclass(frozen=True)
class KgaOptions:
    """The retain term's factor, and how long specialists learn."""

    retain_weight: float = option(0.3, "Factor of the retain term.", least=0)
    specialist_epochs: float = option(3.0, "Passes over the texts of each specialist.", above=0)


ABOUT = About(
    name="kga",
    title="Knowledge gap alignment",
    equation="L = |E_forget KL(p_f || p) - G| + w E_retain KL(p_target || p), G = E_unseen "
    "KL(p_n || p_target); p_f, p_n = --base trained on the forget set, on unseen texts",
    source="Wang et al. 2023, arXiv 2305.06535",
    options=KgaOptions,
    data=("retain", "unseen"),
    base=True,
    stage="unlearn",
    cost="two trainings of --base before; forward passes of two frozen models in each step, and "
    "their memory",
    differs="Which way the paper's divergences go is [memory]: the model first. Here, as in its "
    "released code (703dd79) for translation, the specialist and the target come first, in all "
    "three. That code takes the gap of each batch, with padding in it, and divides by rows; here "
    "it is the mean over learned tokens of the whole step, whose sign decides the direction. "
    "Specialists begin at --base; where it is absent, at the target, which knows the rest already "
    "[derived], and unlearning.json has no base.",
)


def divergence(known: Tensor, ours: Tensor, labels: Tensor) -> Tensor:
    """(rows,): the sum over each row's learned tokens of KL(p_known || p_ours), in nats, in double
    precision. Logits (rows, width, vocabulary); labels (rows, width).
    """
    learned = labels[:, 1:] != IGNORED
    log_q, log_p = (z[:, :-1].double().log_softmax(-1) for z in (known, ours))
    return ((log_q.exp() * (log_q - log_p)).sum(-1) * learned).sum(1)


def gap(context: TrainingContext, specialist: PreTrainedModel) -> float:
    """G: the mean over the learned tokens of unseen texts of KL(p_n || p_target)."""
    models = (specialist, context.model)
    found = context.measure(models, context.unseen, divergence)
    return float(sum(found) / sum(example.learned for example in context.unseen))


@dataclass(frozen=True)
class Distances:
    """The two terms, without the gap."""

    specialist: FrozenModel
    target: FrozenModel
    retain_weight: float

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """``forget``: the distance to the specialist; ``retain``, weighted; those that the batch
        has rows for, and their sum.
        """
        logits = model(**batch.inputs, use_cache=False).logits
        compared: dict[Role, tuple[FrozenModel, float]] = {
            "forget": (self.specialist, 1.0),
            "retain": (self.target, self.retain_weight),
        }
        terms: dict[str, Tensor] = {}
        for role, (known, weight) in compared.items():
            if role in batch.rows:
                where, sums = batch.slice(role), (batch.all_rows, batch.all_tokens[role])
                theirs = {"target": known(model, batch.inputs_of(role)).logits}
                part = Part(logits[where], batch.labels[where], *sums, references=theirs)
                terms[role] = klr.loss(part, klr.KlrOptions(weight))
        first, *others = terms.values()
        return {"loss": sum(others, first), **terms}


def aligned(step: OptimizerStep, goal: float) -> Gradient:
    """Towards the gap: along the distance's gradient above it, against it below, neither at it."""
    distance = step.forget()
    over = distance.terms["forget"] - goal
    towards = distance * float((over > 0) - (over < 0))
    return Gradient({"forget": abs(over)}, towards.of) + step.retain()


def train(context: TrainingContext, options: KgaOptions) -> PreTrainedModel:
    """Train both specialists, then the target."""
    changed: dict[str, Any] = {"epochs": options.specialist_epochs, "max_steps": None}
    unseen = context.descend(context.base(), context.unseen, "unseen", **changed)
    goal = gap(context, unseen)
    del unseen
    forget = context.descend(context.base(), context.forget, "specialist", **changed)
    loss = Distances(context.freeze(forget), context.freeze(), options.retain_weight)
    return context.fit(loss, gradient=lambda step: aligned(step, goal))
