"""One optimizer step as a file in ``methods/steps`` is given it: gradients of the terms of the loss
at whatever the weights are just then, over all batches that are accumulated.

Imports torch at once, so only functions import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from unlearnbench.errors import OptionError
from unlearnbench.methods.base import BatchLoss, Gradient, OptimizerStep, inner_linears
from unlearnbench.methods.rows import Batch, Role
from unlearnbench.util.process import process_count


class WholeStep(OptimizerStep):
    """An ``OptimizerStep``; what its methods do is said there. It leaves ``.grad`` alone, and
    computes on the bare model, so that no wrapper reduces a gradient that is only tried.
    """

    def __init__(
        self,
        model: Any,
        loss: BatchLoss,
        batches: Sequence[Batch],
        number: int,
        state: dict[str, float],
    ) -> None:
        self._model, self._loss, self._batches = model, loss, batches
        self.number, self.state = number, state
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def forget(self) -> Gradient:
        return self._gradient("forget", "alternatives")

    def retain(self) -> Gradient:
        return self._gradient("retain", "auxiliary")

    def _gradient(self, *roles: Role) -> Gradient:
        of = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        terms: dict[str, torch.Tensor] = {}
        for batch in self._batches:
            if not any(role in batch.rows for role in roles):
                continue
            with torch.enable_grad():  # also where a method moves weights meanwhile
                found = self._loss(self._model, batch.only(*roles))
                loss = found.pop("loss")
                shares = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
            for name, share in zip(of, shares, strict=True):
                if share is not None:
                    of[name] += share
            for name, value in found.items():
                terms[name] = terms.get(name, torch.zeros_like(value)) + value.detach()
        if process_count() > 1:
            for tensor in (*of.values(), *terms.values()):
                torch.distributed.all_reduce(tensor)
        return Gradient({name: float(value) for name, value in terms.items()}, of)

    @contextmanager
    def restored(self) -> Iterator[None]:
        kept = [weight.detach().clone() for weight in self.weights.values()]
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(self.weights.values(), kept, strict=True):
                    weight.copy_(value)

    @contextmanager
    def through(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """A block in which inner linear layers compute with ``function(weight)``.

        Raises:
            OptionError: an adapter learns, and its products are no weights of the model.
        """
        if hasattr(self._model, "peft_config"):
            raise OptionError("this method works on the weights themselves; leave LoRA out")
        modules: list[Any] = list(inner_linears(self._model).values())
        for module in modules:
            module.forward = partial(_forward, module, function)
        try:
            yield
        finally:
            for module in modules:
                del module.forward


def _forward(
    module: Any, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    with torch.no_grad():
        value = function(module.weight)
    weight = _StraightThrough.apply(module.weight, value)  # type: ignore[no-untyped-call]
    return torch.nn.functional.linear(x, weight, module.bias)


class _StraightThrough(torch.autograd.Function):
    """The value of the second; its gradient goes to the first unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None
