"""The linear layers of a language model but its output head: what quantization, pruning and masks
act on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from unlearnbench.errors import NotInForceError, one_line

if TYPE_CHECKING:
    from torch import nn


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of an unquantized model but its output head, by name."""
    from torch import nn

    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def require_most(what: str, sizes: Mapping[str, int], covered: Collection[str]) -> None:
    """Refuse a model whose knowledge lies outside the modules ``covered``, as fused experts do.
    ``sizes``: weights of every matrix but the embeddings and the output head, by module name.

    Raises:
        NotInForceError: names the largest matrix that is left.
    """
    left = {name: size for name, size in sizes.items() if name not in covered}
    if sum(left.values()) > 0.1 * sum(sizes.values()):
        largest = max(left, key=lambda name: left[name])
        raise NotInForceError(
            f"{what} leaves {sum(left.values()):,} of {sum(sizes.values()):,} weights as they "
            f"are, the most in {one_line(largest, 120)}; this kind of model cannot be measured "
            "at a quantized precision"
        )
