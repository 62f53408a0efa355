"""Losses at rounded weights: a model whose inner linear layers compute with another weight while
the gradient goes to their own, and ``--survive``, which takes every term there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch

from unlearnbench.checkpoints.load import out_first
from unlearnbench.conditions.base import ConditionSpec, encode, resolve
from unlearnbench.errors import OptionError
from unlearnbench.methods.base import inner_linears
from unlearnbench.training.options import TrainOptions

Rounding: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""A weight of shape (out, in) as a quantizer would leave it."""


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass: where the weights are what, and how much its terms count."""

    block: AbstractContextManager[None]
    factor: float = 1.0
    forget: float = 1.0
    """Of the forget term; ``factor`` is that of all others."""

    def weighted(self, terms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Every term times its factor, and their sum as ``loss``."""
        if self.forget == self.factor:
            return {name: self.factor * term for name, term in terms.items()}
        named = {n: self._of(n) * term for n, term in terms.items() if n != "loss"}
        first, *others = named.values()
        return {"loss": sum(others, first), **named}

    def _of(self, name: str) -> float:
        return self.forget if name == "forget" else self.factor


@dataclass(frozen=True)
class Survive:
    """Where every term of a loss is taken beside the weights as they are."""

    roundings: Sequence[Rounding]
    weight: float = 1.0
    """Factor of the terms at each."""
    worst: bool = False
    """The forget term counts only where it is largest, once."""

    @property
    def whole(self) -> float:
        """What the factors of all places add up to."""
        return 1.0 + self.weight * len(self.roundings)

    def places(
        self, model: Any, forget: Callable[[], torch.Tensor | None] = lambda: None
    ) -> list[ForwardPass]:
        """As the weights are, then rounded. ``forget``: makes the forget term on the texts that
        are to be read, None without such; asked at every place where the worst one alone counts.
        """
        rounded = self.roundings if self.weight else ()

        def blocks() -> list[AbstractContextManager[None]]:
            return [nullcontext(), *(through(model, f) for f in rounded)]

        factors = [1.0, *(self.weight for _ in rounded)]
        terms: list[float] = []
        for block in blocks() if self.worst and rounded else ():
            with torch.no_grad(), block:
                term = forget()
            if term is not None:
                terms.append(float(term))
        if not terms:
            return [ForwardPass(block, f, f) for block, f in zip(blocks(), factors, strict=True)]
        largest = terms.index(max(terms))
        counts = [float(n == largest) for n in range(len(terms))]
        return [ForwardPass(*each) for each in zip(blocks(), factors, counts, strict=True)]


PLAIN = Survive(())
"""Only at the weights as they are."""


def survival(options: TrainOptions) -> Survive:
    """What ``--survive`` asks for; its names are checked already."""
    if options.survive is None:
        return PLAIN
    specs = resolve(options.survive.split(","))
    weight = 1.0 if options.survive_weight is None else options.survive_weight
    worst = options.survive_forget == "worst"
    return Survive([partial(_values, spec) for spec in specs], weight, worst)


def _values(spec: ConditionSpec, weight: torch.Tensor) -> torch.Tensor:
    return encode(spec, weight).values


@contextmanager
def through(model: Any, function: Rounding) -> Iterator[None]:
    """A block in which inner linear layers compute with ``function(weight)``, and its gradient goes
    to the weight unchanged. The weight of a layer with a LoRA adapter is the merged one, so that
    the gradient goes to the adapter; with its adapter off a layer computes as it always does.
    Raises OptionError inside another such block.
    """
    layers = _layers(model)
    if any("forward" in vars(layer) for layer in layers):
        raise OptionError("weights are rounded already; --survive goes with no method that does so")
    for layer in layers:
        layer.forward = partial(_forward, layer, function)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _layers(model: Any) -> list[Any]:
    if not hasattr(model, "peft_config"):
        return list(inner_linears(model).values())
    from peft.tuners.lora import LoraLayer

    inner = {id(layer) for layer in inner_linears(model.get_base_model()).values()}
    adapted: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    return [layer for layer in adapted if id(layer.base_layer) in inner]


def _forward(layer: Any, function: Rounding, x: torch.Tensor) -> torch.Tensor:
    own = layer
    if hasattr(layer, "base_layer"):
        own = layer.base_layer
        if layer.disable_adapters:  # a frozen reference, not the model under training
            return own(x)  # type: ignore[no-any-return]
    weight = own.weight
    for name in getattr(layer, "active_adapters", ()):
        weight = weight + layer.get_delta_weight(name).to(weight.dtype)
    weight = out_first(own, weight)
    with torch.no_grad():
        value = function(weight.detach()).to(weight.dtype)
    rounded = _StraightThrough.apply(weight, value)  # type: ignore[no-untyped-call]
    return torch.nn.functional.linear(x, rounded, own.bias)


class _StraightThrough(torch.autograd.Function):
    """The value of the second; its gradient goes to the first unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None
