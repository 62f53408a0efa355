"""Representation misdirection: forget texts are led to a random direction in one layer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from unlearnbench.errors import OptionError
from unlearnbench.methods.base import About, FrozenModel, PreTrainedModel, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import IGNORED, Batch, Tensor


@dataclass(frozen=True)
class RmuOptions:
    """RMU's numbers."""

    rmu_layer: int = option(-1, "Decoder layer whose output moves, from 0; below 0: 7/32 of depth.")
    rmu_scale: float = option(6.5, "Length of the vector that it moves to.", least=0)
    retain_weight: float = option(1200.0, "Factor of the retain term.", least=0)


ABOUT = About(
    name="rmu",
    title="Representation misdirection for unlearning",
    equation="L = E_forget ||h(x) - c u||^2 + w E_retain ||h(x) - h_target(x)||^2, h = output of "
    "one layer, u = a fixed random unit vector; only layers l-2, l-1 and l learn",
    source="Li et al. 2024, arXiv 2403.03218, section 4",
    options=RmuOptions,
    data=("retain",),
    cost="a forward pass of a frozen model in each step, and its memory",
    stage="unlearn",
    differs="Released code divides both squared norms by the hidden size and trains one MLP matrix "
    "of each of the three layers; here all weights of the three learn.",
)


def direction(size: int, seed: int) -> Tensor:
    """A unit vector (size,), uniform draws in [0, 1) normalized, the same for the same seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    drawn: Tensor = torch.rand(size, generator=generator, dtype=torch.float64)
    return drawn.div(drawn.norm()).float()


def default_layer(layers: int) -> int:
    """Layer 7 of 32, as the paper uses for 7B models, at the same relative depth elsewhere."""
    return min(layers - 1, round(7 / 32 * layers))


@dataclass(frozen=True)
class Steering:
    """RMU's loss. Means are over the learned tokens of a text, then over texts, as in the paper."""

    layer: int
    goal: Tensor
    """c u, shape (hidden,)."""
    retain_weight: float
    reference: FrozenModel

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss: forget and retain, weighted, and their sum."""
        ours = self._hidden(model(**batch.inputs, use_cache=False, output_hidden_states=True))
        theirs = self._hidden(self.reference(model, batch.inputs_of("retain"), hidden=True))
        n = batch.rows["forget"]
        goal = self.goal.to(ours)
        forget = _distance(ours[:n] - goal, batch.labels[:n]) / batch.all_rows
        retain = _distance(ours[n:] - theirs, batch.labels[n:]) / batch.all_rows
        retain = self.retain_weight * retain
        return {"loss": forget + retain, "forget": forget, "retain": retain}

    def _hidden(self, output: Any) -> Tensor:
        import torch

        hidden: Tensor = output.hidden_states[self.layer + 1]  # 0 is the embedding
        return hidden if hidden.dtype == torch.float64 else hidden.float()


def _distance(difference: Tensor, labels: Tensor) -> Tensor:
    """The sum over texts of the mean squared norm over each text's learned tokens."""
    learned = labels[:, 1:] != IGNORED  # the first is never predicted
    squares = difference.square().sum(dim=-1)[:, 1:] * learned
    return (squares.sum(dim=1) / learned.sum(dim=1).clamp(min=1)).sum()


def train(context: TrainingContext, options: RmuOptions) -> PreTrainedModel:
    """Train three layers of the target. Raises OptionError where there is no such layer."""
    config: Any = context.model.config.get_text_config()
    layers = int(config.num_hidden_layers)
    layer = default_layer(layers) if options.rmu_layer < 0 else options.rmu_layer
    # The output of the last layer is normalized before it can be seen.
    if layer >= layers - 1 and layers > 1:
        raise OptionError(
            f"--rmu-layer {layer}: use 0 to {layers - 2} in a model of {layers} layers"
        )
    goal = options.rmu_scale * direction(int(config.hidden_size), context.seed)
    objective = Steering(layer, goal, options.retain_weight, context.freeze())

    def learns(parameter: str) -> bool:
        found = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", f".{parameter}")
        return found is not None and max(0, layer - 2) <= int(found[1]) <= layer

    return context.fit(objective, learns)
