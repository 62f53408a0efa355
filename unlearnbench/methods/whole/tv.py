"""Task vector: away from what further training on the forget set would change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unlearnbench.methods.base import About, PreTrainedModel, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Tensor


@dataclass(frozen=True)
class TaskVectorOptions:
    """The task vector's numbers."""

    alpha: float = option(1.0, "Strength of the task vector.", least=0)


ABOUT = About(
    name="tv",
    title="Task vector",
    equation="theta = theta_target - alpha (theta_reinforced - theta_target); reinforced = the "
    "target trained further on the forget set",
    source="Ilharco et al. 2023, arXiv 2212.04089; MUSE, arXiv 2407.06460",
    options=TaskVectorOptions,
    cost="a training on the forget set, and the target twice in memory",
    differs="Released code of arXiv 2410.16454 scores the same for every alpha: its weights do not "
    "change.",
)


def negate(
    target: Mapping[str, Tensor], reinforced: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Target - alpha (reinforced - target), tensor by tensor, in float64, in the target's dtype.
    Where nothing changes, as at alpha 0, and in what is no floating-point number, it is the target.
    """
    import torch

    moved = dict(target)
    for name, tensor in target.items():
        if tensor.is_floating_point():
            change = alpha * (reinforced[name].double() - tensor.double())
            # -0.0 - 0.0 is -0.0, but -0.0 - (-0.0) is 0.0: where nothing changes, the bits stay.
            there = (tensor.double() - change).to(tensor.dtype)
            moved[name] = torch.where(change == 0, tensor, there)
    return moved


def train(context: TrainingContext, options: TaskVectorOptions) -> PreTrainedModel:
    """Reinforce a copy of the target, then move the other way."""
    target = {name: tensor.cpu().clone() for name, tensor in context.model.state_dict().items()}
    reinforced = context.reinforce()
    moved = negate(target, {n: t.cpu() for n, t in reinforced.state_dict().items()}, options.alpha)
    reinforced.load_state_dict(moved)
    return reinforced
