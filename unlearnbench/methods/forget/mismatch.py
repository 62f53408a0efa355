"""Mismatch: answers that have nothing to do with the question are learned in its place."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.retain import gdr
from unlearnbench.methods.rows import Part, Tensor


@dataclass(frozen=True)
class MismatchOptions:
    """How many."""

    mismatches: int = option(5, "Other answers learned beside each forget row.", least=1)


ABOUT = About(
    name="mismatch",
    title="Random mismatch, the second term of LLMU",
    equation="L = mean over the tokens of K other answers of -log p(token | question, before)",
    source="Yao et al. 2024, arXiv 2310.10683",
    options=MismatchOptions,
    alternatives=5,
    differs="Here K answers are drawn for each row each time it comes, in released code (647f309) "
    "one draw serves a whole batch, and its mask begins at the second token, so that it learns the "
    "question too.",
)


def alternatives(options: MismatchOptions) -> int:
    """K."""
    return options.mismatches


def loss(part: Part, options: MismatchOptions) -> Tensor:
    """In nats a token, over the tokens of all other answers of the step."""
    return gdr.loss(part.others(), gdr.GdrOptions())
