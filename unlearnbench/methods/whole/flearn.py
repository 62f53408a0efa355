"""F-Learning: forget by subtraction of what training on the old facts would add, then learn."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About, PreTrainedModel, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.whole.tv import negate


@dataclass(frozen=True)
class FLearnOptions:
    """The strength of forgetting, and its adapter."""

    alpha: float = option(0.5, "Strength of the task vector.", least=0)
    forget_lora_rank: int = option(
        -1, "Rank of the adapter that is subtracted; 0: none; below: --lora-rank.", least=-1
    )


ABOUT = About(
    name="flearn",
    title="F-Learning: forget by subtraction, then learn",
    equation="theta' = theta_target - alpha (FT(theta_target, forget) - theta_target); theta = "
    "FT(theta', other answers, or the retain set)",
    source="Ni et al. 2024, arXiv 2311.08011",
    options=FLearnOptions,
    data=("retain",),
    alternatives=1,
    stage="learn",
    cost="two trainings, one after another; the target twice in memory; theta' is saved too, in "
    "forgotten/",
    differs="The paper's default of alpha, its rates and ranks were not found: 0.5 is ours. It "
    "learns new facts in the place of the old ones: give them as --alternative FILE; without, the "
    "retain set is learned, and it is a task vector with a fine-tuning behind it. With other "
    "answers a text's second half is what is forgotten [derived].",
)


def train(context: TrainingContext, options: FLearnOptions) -> PreTrainedModel:
    """Forget, keep that state, then learn. Other answers or a retain set that are empty leave it
    at the first: a task vector.
    """
    new = context.others() or context.retain
    rank = options.forget_lora_rank
    own = {} if rank < 0 else {"lora_rank": rank or None}
    target = {name: tensor.cpu().clone() for name, tensor in context.model.state_dict().items()}
    tuned = context.descend(context.copy_of_target(), context.forget, "forget", **own)
    moved = negate(target, {n: t.cpu() for n, t in tuned.state_dict().items()}, options.alpha)
    tuned.load_state_dict(moved)
    context.keep("forgotten", tuned)
    return context.descend(tuned, new, "learn") if new else tuned
