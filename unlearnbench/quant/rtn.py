"""Uniform round-to-nearest, our own: symmetric, one absmax scale per output channel.

Weights are quantized and dequantized into the compute dtype: the numbers are those of an integer
kernel with exact products, on any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.quant.base import Loaded, PrecisionSpec, Seen, prove

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unlearnbench.models.source import Source

__all__ = ["PRECISIONS", "load", "quantize", "unavailable"]

PRECISIONS = tuple(
    PrecisionSpec(
        f"rtn-int{bits}",
        bits,
        "uniform round-to-nearest, symmetric absmax per output channel",
        "unlearnbench",
        {"kernel": "dequantized"},
    )
    for bits in (8, 4)
)


def unavailable(spec: PrecisionSpec, device: str) -> str | None:
    """Runs wherever torch does."""
    return None


def quantize(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight of shape (out, in) to codes (out, in) and steps (out, 1), both float32.

    step = absmax / (2^(bits-1) - 1), code = clamp(round-half-even(w / step)); an all-zero channel
    has codes 0. The weight in force is code x step. Source: docs/protocol.md, rtn-intN.
    """
    top = 2 ** (bits - 1) - 1
    exact = weight.float()
    step = exact.abs().amax(dim=1, keepdim=True) / top
    codes = (exact / step.where(step > 0, 1.0)).round().clamp(-top, top)
    return codes, step


def load(spec: PrecisionSpec, source: Source, dtype: torch.dtype, device: str) -> Loaded:
    """Quantize every linear layer but the output head.

    Raises:
        NotInForceError: no layer was quantized.
    """
    from torch.nn import Linear, Parameter

    before = source.state_dict()
    model = source.build(dtype, device)
    head = model.get_output_embeddings()
    found: dict[int, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear) and module is not head:
            # From the checkpoint's own weight, not from one already rounded to the compute dtype.
            codes, step = quantize(before[f"{name}.weight"], int(spec.bits or 0))
            weight = (codes * step).to(device=module.weight.device, dtype=dtype)
            module.weight = Parameter(weight, requires_grad=False)
            found[id(module)] = len(codes.unique())

    def inspect(module: nn.Module) -> Seen | None:
        if id(module) not in found or not isinstance(module, Linear):
            return None
        return Seen(module.weight, found[id(module)])

    return Loaded(model, prove(spec, model, before, inspect))
