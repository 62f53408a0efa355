"""Distilled: a damaged copy of a model that has unlearned learns from it what it still knows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unlearnbench.methods.base import About, FrozenModel, PreTrainedModel, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.retain import klr
from unlearnbench.methods.rows import Batch, Part, Role, Tensor


@dataclass(frozen=True)
class UndoOptions:
    """The damage."""

    undo_alpha: float = option(0.3, "Share of the weights that is replaced.", least=0, most=1)
    undo_beta: float = option(0.1, "Size of the noise in their place.", least=0)


ABOUT = About(
    name="undo",
    title="UNDO: unlearn, noise, distil. --model is what another method has unlearned",
    equation="theta = (1 - alpha) theta_u + alpha beta N at first, N Xavier-uniform, for matrices; "
    "L = mean over tokens of KL(p_u || p), half on forget and half on retain texts",
    source="Lee et al. 2025, arXiv 2506.06278",
    options=UndoOptions,
    data=("retain",),
    cost="a forward pass of a frozen model in each step, and its memory; 60 to 80% of retraining, "
    "says the paper",
    stage="unlearn",
    differs="Released code (distillation-robustify-unlearning edbf111) has a noise seed that it "
    "does not use, and shrinks vectors, as norms, by 1 - alpha; here they stay. The paper distils "
    "on much general text until the retain loss is within 5% of the teacher's; here on the given "
    "sets, for --epochs.",
)


@dataclass(frozen=True)
class Distil:
    """The divergence from the teacher on both sets."""

    teacher: FrozenModel

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """Both halves and their sum."""
        ours = model(**batch.inputs, use_cache=False).logits
        theirs = {"target": self.teacher(model, batch.inputs).logits}
        roles: tuple[Role, ...] = ("forget", "retain")
        halves: dict[str, Tensor] = {}
        for role in roles:
            at, tokens = batch.slice(role), batch.all_tokens[role]
            known = {name: logits[at] for name, logits in theirs.items()}
            part = Part(ours[at], batch.labels[at], batch.all_rows, tokens, references=known)
            halves[role] = klr.loss(part, klr.KlrOptions(retain_weight=0.5))
        return {"loss": halves["forget"] + halves["retain"], **halves}


def damage(model: Any, options: UndoOptions, seed: int) -> None:
    """Mix noise into every matrix, in place; vectors stay."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() < 2:
                continue
            bound = math.sqrt(6 / (weight.shape[0] + weight[0].numel()))
            noise = bound * (2 * torch.rand(weight.shape, generator=generator) - 1)
            mixed = (1 - options.undo_alpha) * weight.double()
            mixed += options.undo_alpha * options.undo_beta * noise.to(weight.device).double()
            weight.copy_(mixed.to(weight.dtype))


def train(context: TrainingContext, options: UndoOptions) -> PreTrainedModel:
    """Damage the model and let it learn from a copy as it was. Without damage, where the divergence
    is 0, it is the model itself.
    """
    if not options.undo_alpha:
        return context.model
    teacher = context.freeze(context.copy_of_target())
    damage(context.model, options, context.seed)
    return context.fit(Distil(teacher))
