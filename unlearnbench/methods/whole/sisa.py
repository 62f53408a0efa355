"""SISA: an ensemble whose models saw disjoint texts, so that forgetting one is to train one model
again, from before it saw the text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from unlearnbench.methods.base import About, Ensemble, NoOptions, TrainingContext
from unlearnbench.methods.rows import Tensor

ABOUT = About(
    name="sisa",
    title="SISA: shards are trained again without the rows",
    equation="p = mean of the shards' p_s; stage r of shard s trains for 2 epochs / (slices + 1) "
    "epochs on its slices 1 to r; a deletion goes back to before the slice of the row",
    source="Bourtoule et al. 2021, arXiv 1912.03817",
    data=("retain",),
    base=True,
    stage="shard",
    cost="training each touched shard again from its first touched slice; --model is an ensemble "
    "of finetune --shards, --base what that began with, where a first slice is touched",
    differs="Released code (50a3ada) trains the last slice to the shard's end but names its "
    "checkpoint after the rows of equal slices, so that deleting a row of the remainder changes "
    "nothing; its stages have whole epochs, and votes count by default. Here every row has a "
    "slice, passes are fractions, rounded up to whole steps, and AdamW starts anew at each slice.",
)


def combine(logits: Sequence[Tensor], numbers: Mapping[str, float]) -> Tensor:
    """Log of the mean of the models' probabilities, in float32 or wider; each (..., vocabulary)."""
    import torch

    kind = torch.promote_types(logits[0].dtype, torch.float32)
    total = logits[0].log_softmax(-1, dtype=kind)
    for each in logits[1:]:
        total = torch.logaddexp(total, each.log_softmax(-1, dtype=kind))
    return total - math.log(len(logits))


def train(context: TrainingContext, options: NoOptions) -> Ensemble:
    """Train the shards that are asked for, each from where it is said to begin, one in memory at a
    time. A stage without rows leaves the model as it is.
    """
    for shard in context.shards:
        model = context.base() if shard.begin is None else shard.begin()
        epochs = 2 * context.epochs / (len(shard.slices) + 1)
        for number in range(shard.first, len(shard.slices)):
            rows = [row for part in shard.slices[: number + 1] for row in part]
            stage, seed = f"{shard.name}-stage-{number}", shard.seed + number
            if rows:
                model = context.descend(model, rows, stage, epochs=epochs, seed=seed)
            context.keep(shard.state(number), model)
    return Ensemble({}, kept=tuple(context.members))
