"""Dense products of few rows on CPU, with their operands in the faster order."""

from __future__ import annotations

from types import MethodType

import torch
from torch import nn
from torch.nn.functional import linear

# MKL takes X W^T of 8 to 48 rows, as decoding has them, by a kernel that is up to 2.5 times slower
# than W X^T (fp32, weights of 576 x 576 to 8192 x 2048; AVX-512). Fewer or more rows: not faster.
_LEAST, _MOST = 8, 48


def quicken_products(model: nn.Module) -> None:
    """Let every plain linear layer of ``model`` compute so, in place. For models on CPU; where
    torch has no MKL, nothing is changed.
    """
    if not torch.backends.mkl.is_available():
        return
    for module in model.modules():
        if _is_plain(module):
            module.forward = MethodType(_forward, module)


def _is_plain(module: nn.Module) -> bool:
    """Whether it is torch's own layer with its own forward and an ordinary weight: libraries put
    classes, forwards (compressed-tensors, which rounds there) or weights (torchao) of theirs in.
    """
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and type(module.weight) is nn.Parameter
        and type(module.weight.data) is torch.Tensor
    )


def _forward(module: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    weight, bias = module.weight, module.bias
    rows = inputs.numel() // max(1, inputs.shape[-1])
    dtypes = {inputs.dtype, weight.dtype}
    if not _LEAST <= rows <= _MOST or dtypes != {torch.float32}:
        return linear(inputs, weight, bias)
    found = (weight @ inputs.reshape(rows, -1).t()).t().contiguous()
    if bias is not None:
        found += bias
    return found.view(*inputs.shape[:-1], -1)
