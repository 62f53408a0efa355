"""Where in a model methods act that do not take all of it: decoder blocks and their feed-forward
parts; and passes of single sequences through hooks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import LinearLayer, out_first, text_modules
from unlearnbench.errors import CheckpointError, OptionError
from unlearnbench.methods.base import inner_linears
from unlearnbench.methods.rows import IGNORED, Example, Tensor

if TYPE_CHECKING:
    from torch import nn

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)$")


def blocks(model: Any) -> dict[str, nn.Module]:
    """The decoder blocks, by name, in order. Raises CheckpointError where there is none."""
    bare = model.get_base_model() if hasattr(model, "peft_config") else model
    found = {name: part for name, part in text_modules(bare).items() if _BLOCK.search(name)}
    # What is numbered inside of a block, as its experts, is no block.
    outer = {n: p for n, p in found.items() if not any(n.startswith(f"{o}.") for o in found)}
    if not outer:
        raise CheckpointError(
            f"no decoder blocks are known in {type(bare).__name__}, which this method works on; "
            "use another method"
        )
    return outer


def at_depth(model: Any, asked: int, share: float, flag: str) -> int:
    """The number of the block that was asked for; below 0: that at a share of the depth. Raises
    OptionError where there is no such block.
    """
    count = len(blocks(model))
    if asked >= count:
        raise OptionError(f"{flag} {asked}: use 0 to {count - 1} in a model of {count} blocks")
    return min(count - 1, round(share * count)) if asked < 0 else asked


def feed_forward(model: Any) -> list[dict[str, LinearLayer]]:
    """Of each block the linear layers of its feed-forward part: those outside of attention. Raises
    CheckpointError where a block has none.
    """
    linear = inner_linears(model)
    found = []
    for block in blocks(model):
        inside = {n: part for n, part in linear.items() if n.startswith(f"{block}.")}
        names = [n for n in inside if not re.search("attn|attention", n[len(block) :])]
        if not names:
            raise CheckpointError(
                f"{block} has no feed-forward part that is known; use another method"
            )
        found.append({name: inside[name] for name in names})
    return found


def outward(model: Any) -> dict[str, LinearLayer]:
    """The last linear layer of each block's feed-forward part, whose inputs are its neurons, by
    name. Raises CheckpointError where a block has several parts, as experts.
    """
    wide = int(model.config.get_text_config().hidden_size)
    found = {}
    for layers in feed_forward(model):
        sizes = {n: len(out_first(part, part.weight)) for n, part in layers.items()}
        last = [name for name, size in sizes.items() if size == wide][-1:]
        if not last or len(layers) > 3:
            first = next(iter(layers))
            raise CheckpointError(
                f"{first}: {len(layers)} linear layers stand beside it in one block's feed-forward "
                "part, and which one leads out of it is not known; use another method"
            )
        found[last[0]] = layers[last[0]]
    return found


def share_of(count: int, share: float) -> int:
    """How many of ``count`` a share is: at least one where it is above 0."""
    return min(count, math.ceil(share * count - 1e-9))


@contextmanager
def hooked(modules: Mapping[Any, Callable[..., Any]], inputs: bool = False) -> Iterator[None]:
    """A block in which modules have forward hooks, or with ``inputs`` hooks before forward."""
    handles = [
        module.register_forward_pre_hook(hook) if inputs else module.register_forward_hook(hook)
        for module, hook in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ready(model: Any) -> Any:
    """The model where it computes fastest, in evaluation."""
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def inputs_of(model: Any, layers: Sequence[Any], example: Example) -> list[Tensor]:
    """What each of some layers is given where a sequence's learned tokens are predicted, (tokens,
    in), without gradients.
    """
    import torch

    seen: dict[Any, Tensor] = {}

    def keep(module: Any, given: Any) -> None:
        seen[module] = given[0][0].detach()

    with torch.no_grad(), hooked(dict.fromkeys(layers, keep), inputs=True):
        _, at, _ = predicted(model, example)
    return [seen[layer][at] for layer in layers]


def predicted(model: Any, example: Example) -> tuple[Tensor, Tensor, Tensor]:
    """Of one sequence: the logits of every position, (width, vocabulary); the positions that
    predict learned tokens; and those tokens.
    """
    import torch

    place = model.get_input_embeddings().weight.device
    ids, labels = (torch.tensor(row, device=place) for row in (example.ids, example.labels))
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    at = (labels[1:] != IGNORED).nonzero()[:, 0]
    return logits, at, labels[1:][at]
