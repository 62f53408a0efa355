"""LLMU: ascent on what is forgotten, other answers in its place, and the target's own distribution
on the retain set.
"""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About, NoOptions
from unlearnbench.methods.forget import ga, mismatch
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, Tensor


@dataclass(frozen=True)
class LlmuOptions:
    """The three weights, and K."""

    ascent_weight: float = option(0.5, "Factor of gradient ascent.", least=0)
    mismatch_weight: float = option(1.0, "Factor of the other answers' term; 0: none.", least=0)
    mismatches: int = option(5, "Other answers learned beside each forget row.", least=1)
    retain_weight: float = option(1.0, "Factor of the retain term.", least=0)


ABOUT = About(
    name="llmu",
    title="Large language model unlearning: ascent, random mismatch and KL, in one name",
    equation="L = e1 mean log p(forget tokens) - e2 mean log p(tokens of K other answers) "
    "+ w mean over retain tokens of KL(p_target || p)",
    source="Yao et al. 2024, arXiv 2310.10683",
    options=LlmuOptions,
    alternatives=5,
    term="klr",
    differs="The paper sums over tokens, here each term is a mean over its tokens; its retain term "
    "begins at the answer, which for plain texts is the whole text here. A text's second half "
    "answers its first [derived]. In released code (647f309) the question is learned with the "
    "other answer, ascent has no weight where the tokenizer has a maximal length, the KL runs over "
    "padding, and one draw of other answers serves a batch.",
)


def alternatives(options: LlmuOptions) -> int:
    """K; none where they weigh nothing: then it is gradient ascent with KL, to the bit."""
    return options.mismatches if options.mismatch_weight else 0


def loss(part: Part, options: LlmuOptions) -> Tensor:
    """In nats a token, without the retain term."""
    total = options.ascent_weight * ga.loss(part, NoOptions())
    if not alternatives(options):
        return total
    wanted = mismatch.loss(part, mismatch.MismatchOptions(options.mismatches))
    return total + options.mismatch_weight * wanted
