"""Numbers of float32 put on those of bf16."""

from __future__ import annotations

import torch


def round_nearest(values: torch.Tensor) -> torch.Tensor:
    """The nearest numbers of bf16, halves to even, in the dtype given."""
    return values.to(torch.bfloat16).to(values.dtype)


def round_stochastic(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One of the two numbers of bf16 around each of float32: the farther one with the probability
    that keeps the mean. bf16 is float32 without its last 16 bits; drawn bits are added to those,
    which carry over as often as they should, and they are cut off.
    """
    bits = values.float().view(torch.int32)
    drawn = torch.randint(
        2**16, bits.shape, generator=generator, dtype=torch.int32, device=bits.device
    )
    return ((bits + drawn) & -(2**16)).view(torch.float32)
