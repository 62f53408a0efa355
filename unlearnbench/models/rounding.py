"""Products that round activations: which models have them, and how to look past them.

Rounding turns a difference in the last bit into a whole step, and LLM.int8() chooses columns from
all rows of a pass; so where two ways of attending are compared, such products hide what is looked
for. Measured on SmolLM2-135M, packed rows against its own forward in bf16, as a share of the
logits' spread: 0.98 with LLM.int8()'s products where all is right, and 0.99 with a wrong mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from unlearnbench.models.int8 import dense_products, int8_modules

if TYPE_CHECKING:
    from torch import nn


def mixes_rows(model: nn.Module) -> bool:
    """Whether a row of a pass moves the others: LLM.int8() computes a column in 16 bits in which
    any row has an outlier, some schemes of compressed-tensors scale a whole pass by its largest.
    """
    roundings = [found for module in _compressed(model) for found in _roundings(module)]
    return bool(int8_modules(model)) or any(
        bool(found.dynamic) and found.strategy == "tensor" for found in roundings
    )


def rounds_to_bf16(model: nn.Module) -> bool:
    """Whether bitsandbytes' 4-bit kernel for CPUs with bf16 products is at work: it computes in
    bf16 whatever its inputs are.
    """
    return any(
        getattr(part, "support_avx512bf16_for_cpu", False) and part.weight.device.type == "cpu"
        for part in model.modules()
    )


@contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """Meanwhile no layer of ``model`` rounds its inputs: the same weights, multiplied as they are,
    so that a row does not depend on the others of its pass.
    """
    with ExitStack() as stack:
        stack.enter_context(dense_products(model))
        for module in _compressed(model):
            before = getattr(module, "quantization_enabled", True)  # as the library reads it
            stack.callback(setattr, module, "quantization_enabled", before)
            module.quantization_enabled = False
        yield


def _compressed(model: nn.Module) -> list[Any]:
    """Layers of compressed-tensors that quantize activations."""
    return [module for module in model.modules() if _roundings(module)]


def _roundings(module: Any) -> list[Any]:
    """How a layer rounds what goes in and what comes out, as its scheme says."""
    scheme = getattr(module, "quantization_scheme", None)
    parts = (getattr(scheme, f"{side}_activations", None) for side in ("input", "output"))
    return [part for part in parts if part is not None]
