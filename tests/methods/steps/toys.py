"""Steps whose losses have closed forms, to hold ways of making a gradient against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from unlearnbench.methods.base import Gradient

Loss = Callable[[torch.Tensor], torch.Tensor]


class ToyStep:
    """One weight vector in double precision; losses are functions of it."""

    def __init__(self, weight: list[float], forget: Loss, retain: Loss, other: Loss) -> None:
        self.weights = {"w": torch.tensor(weight, dtype=torch.float64, requires_grad=True)}
        self._forget, self._retain, self._other = forget, retain, other
        self.number, self.state, self.whole = 1, dict[str, float](), 1.0

    def _of(self, name: str, loss: Loss) -> Gradient:
        with torch.enable_grad():
            value = loss(self.weights["w"])
            (found,) = torch.autograd.grad(value, [self.weights["w"]])
        return Gradient({name: value.item()}, {"w": found})

    def forget(self, within: Any = None) -> Gradient:
        return self._of("forget", self._forget)

    def retain(self) -> Gradient:
        return self._of("retain", self._retain)

    def usual(self) -> Gradient:
        return self.forget() + self.retain()

    def term(self, role: str, loss: Any) -> Gradient:
        return self._of(role, self._other)

    @contextmanager
    def restored(self) -> Iterator[None]:
        kept = self.weights["w"].detach().clone()
        yield
        with torch.no_grad():
            self.weights["w"].copy_(kept)


def toy_step(
    weight: list[float],
    forget: Loss,
    retain: Loss = lambda w: 0.0 * w.sum(),
    other: Loss = lambda w: 0.0 * w.sum(),
) -> Any:
    return ToyStep(weight, forget, retain, other)
