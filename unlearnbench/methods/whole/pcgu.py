"""Partitioned contrastive gradients: plain steps on weights where two words' gradients differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unlearnbench.checkpoints.load import LinearLayer, out_first
from unlearnbench.methods.base import (
    About,
    Gradient,
    OptimizerStep,
    PreTrainedModel,
    TrainingContext,
    inner_linears,
)
from unlearnbench.methods.contrast import contrasts, least_alike
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Batch, Part, Tensor, learned_logits


@dataclass(frozen=True)
class PcguOptions:
    """What may change in a step."""

    pcgu_top: float = option(0.086, "Share of weight vectors that change.", above=0, most=1)
    pcgu_over: Literal["linear", "all"] = option(
        "linear", "Candidates: rows of inner linear layers, or of all weights."
    )


ABOUT = About(
    name="pcgu",
    title="Partitioned contrastive gradient unlearning",
    equation="theta_i <- theta_i - lr g2_i, plain SGD, on the vectors with the least cos(g1_i, "
    "g2_i), chosen anew in each step; g1 = gradient of sum z[generic word], g2 = of sum z[true "
    "word]",
    source="Yu et al. 2023, Findings of ACL",
    options=PcguOptions,
    stage="unlearn",
    cost="a training on the forget set before; two forward and backward passes in a step",
    differs="The paper has two sentences that differ in one word, for a masked model; here the "
    "words are a forget token and what whp_ft would teach in its place [derived]. It takes all "
    "weights and 10,000 of 115,646 vectors; here rows of inner linear layers (--pcgu-over) and as "
    "large a share. --max-grad-norm 0 is the paper's, which does not clip. Released code "
    "(CharlesYu2000 407b6e1) takes the two gradients under different dropout, and chooses rows of "
    "gradient 0.",
)


def total(part: Part) -> Tensor:
    """The sum of the labels' raw logits over a step."""
    logits, labels = learned_logits(part.logits, part.labels)
    return logits.gather(1, labels[:, None]).sum()


def truth(model: Any, batch: Batch) -> dict[str, Tensor]:
    """The sum over the words that are to go."""
    logits = model(**batch.inputs_of("forget"), use_cache=False).logits
    labels = batch.labels[batch.slice("forget")]
    value = total(Part(logits, labels, batch.all_rows, batch.all_tokens["forget"]))
    return {"loss": value, "forget": value}


def train(context: TrainingContext, options: PcguOptions) -> PreTrainedModel:
    """Label the forget set with generic words, then take plain steps."""
    rows = contrasts(context)
    linear = {f"{name}.weight": layer for name, layer in inner_linears(context.model).items()}

    def is_candidate(parameter: str) -> bool:
        return options.pcgu_over == "all" or parameter in linear

    def gradient(step: OptimizerStep) -> Gradient:
        context.model.eval()  # else the two would differ by their dropout
        generic, true = step.term("alternatives", total), step.forget()
        context.model.train()
        return Gradient(true.terms, held(generic.of, true.of, linear, options.pcgu_top))

    return context.fit(truth, is_candidate, forget=rows, gradient=gradient, sgd=True)


def held(
    generic: Mapping[str, Tensor],
    true: Mapping[str, Tensor],
    linear: Mapping[str, LinearLayer],
    top: float,
) -> dict[str, Tensor]:
    """The gradient of the true words at the chosen vectors, 0 elsewhere."""

    def turned(name: str, tensor: Tensor) -> Tensor:
        return out_first(linear[name], tensor) if name in linear else tensor

    first, second = ({n: turned(n, g) for n, g in of.items()} for of in (generic, true))
    chosen = least_alike(first, second, top)
    return {
        name: turned(name, grad * chosen[name].reshape(-1, *[1] * (grad.dim() - 1)))
        for name, grad in second.items()
    }
