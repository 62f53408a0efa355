"""Only the feed-forward layers may change that causal tracing finds to hold a forget answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlearnbench.errors import MetricError
from unlearnbench.methods.base import About, Masks, TrainingContext
from unlearnbench.methods.masks.mlp_early import whole
from unlearnbench.methods.options import option
from unlearnbench.methods.places import hooked, outward, predicted, ready, share_of
from unlearnbench.methods.rows import IGNORED, Example, Tensor


@dataclass(frozen=True)
class TracedOptions:
    """How blocks are found, and how many."""

    mlp_top: float = option(0.2, "Share of blocks that may change.", above=0, most=1)
    mlp_noise: float = option(3.0, "Noise on embeddings, in their standard deviations.", above=0)
    mlp_rows: int = option(32, "Forget texts that are traced, the first ones.", least=1)


ABOUT = About(
    name="mlp_traced",
    title="Mechanistic unlearning: only the feed-forward layers learn that causal tracing finds",
    equation="mask = 1 for the feed-forward matrices of the blocks with the largest mean of log "
    "p(y | noisy x, this block's output as without noise) - log p(y | noisy x)",
    source="Guo et al. 2024, arXiv 2410.12949; tracing: Meng et al. 2022, arXiv 2202.05262",
    options=TracedOptions,
    cost="a forward pass for each block and traced text, and two more, before training",
    differs="The paper localises by probes on the subject and by path patching, and compares with "
    "causal tracing, which it finds weaker; here all of the feed-forward part's outputs are given "
    "back, and noise is on all tokens before the answer (of a text: on its first half) [derived].",
)


def choose(context: TrainingContext, options: TracedOptions) -> Masks:
    """The blocks with the largest effects, ties by order. Raises MetricError where one is not
    finite, or no text has any.
    """
    import numpy as np

    model, rows = ready(context.model), context.forget[: options.mlp_rows]
    seeded = enumerate(rows, context.seed)
    found = [trace(model, example, options.mlp_noise, seed) for seed, example in seeded]
    if not any(found):
        raise MetricError("no token of the first texts' answers is learned, so none can be traced")
    effects = np.sum([each for each in found if each], axis=0)
    if not np.isfinite(effects).all():
        raise MetricError("an effect of causal tracing is not finite, so it cannot choose blocks")
    order = np.argsort(-effects, kind="stable")
    return whole(context, sorted(order[: share_of(len(effects), options.mlp_top)].tolist()))


def trace(model: Any, example: Example, noise: float, seed: int) -> list[float]:
    """What giving back each block's feed-forward output adds to the noisy answer's mean
    log-probability; nothing where no token of it is learned.
    """
    import torch

    prompt = example.prompt or (len(example.ids) + 1) // 2
    if all(label == IGNORED for label in example.labels[prompt:]):
        return []
    layers, table = list(outward(model).values()), model.get_input_embeddings()
    clean: dict[Any, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(prompt, table.weight.shape[1], generator=generator)
    drawn = (noise * table.weight.float().std() * drawn.to(table.weight.device)).to(table.weight)

    def spoil(module: Any, given: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[0, :prompt] += drawn
        return output

    def answer() -> float:
        logits, at, tokens = predicted(model, example)
        late = at >= prompt - 1
        logprobs = logits[at[late]].double().log_softmax(dim=-1)
        return float(logprobs.gather(1, tokens[late][:, None]).mean())

    def keep(module: Any, given: Any, output: Tensor) -> None:
        clean[module] = output

    with torch.no_grad():
        with hooked(dict.fromkeys(layers, keep)):
            answer()
        with hooked({table: spoil}):
            noisy = answer()
            effects = []
            for layer in layers:
                with hooked({layer: lambda module, given, output: clean[module]}):
                    effects.append(answer() - noisy)
    return effects
