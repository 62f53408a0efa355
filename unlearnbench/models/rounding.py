"""Products that round activations: which models have them, how to look past them, and LLM.int8()'s
on CPU.

Rounding turns a difference in the last bit into a whole step, and LLM.int8() chooses columns from
all rows of a pass; so where two ways of attending are compared, such products hide what is looked
for. Measured on SmolLM2-135M, packed rows against its own forward in bf16, as a share of the
logits' spread: 0.98 with LLM.int8()'s products where all is right, and 0.99 with a wrong mask.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

_PRODUCTS = 6.200124e-05  # bitsandbytes' 1 / 127^2
_WEIGHTS = 7.874015718698502e-3  # and 1 / 127


def mixes_rows(model: nn.Module) -> bool:
    """Whether a row of a pass moves the others: LLM.int8() computes a column in 16 bits in which
    any row has an outlier, some schemes of compressed-tensors scale a whole pass by its largest.
    """
    roundings = [found for module in model.modules() for found in _roundings(module)]
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
        for module in int8_modules(model):
            if "forward" in vars(module):
                stack.callback(setattr, module, "forward", module.forward)
            else:
                stack.callback(delattr, module, "forward")
            module.forward = partial(_dense, module)
        layers: list[Any] = [module for module in model.modules() if _roundings(module)]
        for module in layers:
            before = getattr(module, "quantization_enabled", True)  # as the library reads it
            stack.callback(setattr, module, "quantization_enabled", before)
            module.quantization_enabled = False
        yield


def _roundings(module: Any) -> list[Any]:
    """How a layer of compressed-tensors rounds what goes in and what comes out, as its scheme says;
    nothing for other layers.
    """
    scheme = getattr(module, "quantization_scheme", None)
    parts = (getattr(scheme, f"{side}_activations", None) for side in ("input", "output"))
    return [part for part in parts if part is not None]


def int8_modules(model: nn.Module) -> list[Any]:
    """LLM.int8()'s layers in ``model``."""
    library = sys.modules.get("bitsandbytes.nn.modules")
    if library is None:  # then none of the modules is its own
        return []
    return [part for part in model.modules() if isinstance(part, library.Linear8bitLt)]


def quicken_int8(model: nn.Module) -> None:
    """Let LLM.int8()'s layers of a ``model`` on CPU take the steps before their rounding in fp32,
    in place.

    bitsandbytes 0.50 casts activations to fp16 and there takes their magnitudes, compares these
    with the threshold and finds each row's largest (the rounding itself is in fp32). CPUs have no
    vector instructions for that, and it takes longer than the products. Every fp16 number is an
    fp32 number, so the same steps in fp32 give the same bits.
    """
    for module in int8_modules(model):
        module.forward = partial(_forward, module)


def _dense(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """By the dequantized weights, without rounding."""
    weight = module.weight.data.float() * (_scale(module)[:, None] * _WEIGHTS)
    bias = None if module.bias is None else module.bias.to(inputs.dtype)
    return linear(inputs, weight.to(inputs.dtype), bias)


def _scale(module: Any) -> Any:
    """Of each row of the weight: bitsandbytes moves it at the first forward pass."""
    own = getattr(module.weight, "SCB", None)
    return own if own is not None else module.state.SCB


def _forward(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The steps of bitsandbytes' ``int8_vectorwise_quant`` and ``int8_mixed_scaled_mm``."""
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
