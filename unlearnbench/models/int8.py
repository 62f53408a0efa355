"""LLM.int8() on CPU: bitsandbytes' products, with the steps before their rounding done in fp32.

bitsandbytes 0.50 casts activations to fp16 and there takes their magnitudes, compares these with
the threshold and finds each row's largest (the rounding itself is in fp32). CPUs have no vector
instructions for that, and it takes longer than the products. Every fp16 number is an fp32 number,
so the same steps in fp32 give the same bits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_PRODUCTS = 6.200124e-05  # bitsandbytes' 1 / 127^2
_WEIGHTS = 7.874015718698502e-3  # and 1 / 127


def quicken(model: nn.Module) -> None:
    """Let every ``Linear8bitLt`` of ``model`` compute so, in place. For models on CPU."""
    for module in int8_modules(model):
        module.forward = partial(_forward, module)


def int8_modules(model: nn.Module) -> list[Any]:
    """LLM.int8()'s layers in ``model``."""
    library = sys.modules.get("bitsandbytes.nn.modules")
    if library is None:  # then none of the modules is its own
        return []
    return [part for part in model.modules() if isinstance(part, library.Linear8bitLt)]


@contextmanager
def dense_products(model: nn.Module) -> Iterator[None]:
    """Meanwhile LLM.int8()'s layers multiply by their dequantized weights and round nothing."""
    modules = int8_modules(model)
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = partial(_dense, module)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def _dense(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import linear

    weight = module.weight.data.float() * (_scale(module)[:, None] * _WEIGHTS)
    bias = None if module.bias is None else module.bias.to(inputs.dtype)
    return linear(inputs, weight.to(inputs.dtype), bias)


def _scale(module: Any) -> Any:
    """Of each row of the weight: bitsandbytes moves it at the first forward pass."""
    own = getattr(module.weight, "SCB", None)
    return own if own is not None else module.state.SCB


def _forward(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The steps of bitsandbytes' ``int8_vectorwise_quant`` and ``int8_mixed_scaled_mm``."""
    import torch

    codes, scale = module.weight.data, _scale(module)
    rows = inputs.reshape(-1, inputs.shape[-1])
    known = rows.to(torch.float16).float()
    sizes, columns = known.abs(), None
    if module.state.threshold > 0.0:
        outliers = sizes >= module.state.threshold
        columns = outliers.any(dim=0).nonzero().view(-1)
        sizes.masked_fill_(outliers, 0.0)
    largest = sizes.amax(dim=1)
    rounded = torch.round(known * (127.0 / largest[:, None])).to(torch.int8)
    if columns is not None:  # the outliers' own codes, which mean nothing, are among them
        rounded[:, columns] = 0
    sums = torch.ops.bitsandbytes.int8_linear_matmul.default(rounded, codes)
    output = sums.float().mul_(largest[:, None] * scale[None]).mul_(_PRODUCTS)
    if module.bias is not None:
        output += module.bias.to(inputs.dtype)
    output = output.to(inputs.dtype)
    if columns is not None and columns.numel():
        taken = codes[:, columns] * scale[:, None] * _WEIGHTS
        output = output.addmm(rows[:, columns], taken.to(inputs.dtype).t())
    shaped: torch.Tensor = output.reshape(*inputs.shape[:-1], codes.shape[0])
    return shaped
