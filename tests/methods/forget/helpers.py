"""Parts to hold losses against closed forms with."""

from __future__ import annotations

from typing import Any

import torch

from unlearnbench.methods import pieces
from unlearnbench.methods.rows import IGNORED, Part

ROWS, WIDTH, WORDS = 3, 6, 9


def part(logits: torch.Tensor, target: torch.Tensor | None = None, seed: int = 0) -> Part:
    """Random tokens, of which the first of each row is predicted by nothing and one is padding."""
    torch.manual_seed(seed)
    labels = torch.randint(WORDS, logits.shape[:2])
    labels[0, -1] = IGNORED
    known = {} if target is None else {"target": target}
    tokens = int((labels[:, 1:] != IGNORED).sum())
    return Part(logits, labels, len(labels), tokens, references=known)


def drawn(seed: int = 1, scale: float = 2.0) -> torch.Tensor:
    torch.manual_seed(seed)
    return (scale * torch.randn(ROWS, WIDTH, WORDS, dtype=torch.float64)).requires_grad_()


def loss(name: str, given: Part, **numbers: Any) -> torch.Tensor:
    about = pieces()[name].about
    found: torch.Tensor = pieces()[name].module.loss(given, about.options(**numbers))
    return found


def gradient(name: str, given: Part, **numbers: Any) -> torch.Tensor:
    (found,) = torch.autograd.grad(loss(name, given, **numbers), [given.logits])
    return found
