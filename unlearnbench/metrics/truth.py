"""What a model finds likely of a question's answer and of others: probability, truth ratio, and
what TOFU makes of them (Maini et al. 2024, arXiv 2401.06121): forget quality and model utility.

A loss is the mean negative log-probability of an answer's tokens, in nats, the end token among
them, so that exp(-loss) is its length-normalised probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unlearnbench.errors import MetricError

Mean = Literal["geometric", "arithmetic"]
# As open-unlearning has it, so that no ratio is divided by 0. Its figures are followed to the last
# digit, and a ratio of 0 or infinity stays one.
_TINY = 1e-10


def probability(loss: float) -> float:
    """exp(-loss), in [0, 1]. Raises MetricError for a loss that none can be.

    Example:
        >>> round(probability(math.log(4)), 12)
        0.25
    """
    if not (math.isfinite(loss) and loss >= 0):
        raise MetricError(f"a loss of {loss:g} is that of no text")
    return math.exp(-loss)


def probability_normalised(loss: float, others: Sequence[float]) -> float:
    """Of an answer among wrong ones: p / (p + sum of the others' p)."""
    p = probability(loss)
    return p / (p + sum(probability(other) for other in others) + _TINY)


@dataclass(frozen=True)
class TruthRatio:
    """One question's: the probability of the true answer, and the mean of those of false ones."""

    true: float
    false: float

    @property
    def ratio(self) -> float:
        """The quotient false / true: 0 and above, large where the false ones are likelier."""
        return self.false / (self.true + _TINY)

    @property
    def closer_to_one(self) -> float:
        """min(ratio, 1 / ratio), in [0, 1]: 1 where nothing tells true from false."""
        return min(self.ratio, 1 / (self.ratio + _TINY))

    @property
    def true_better(self) -> float:
        """max(0, 1 - ratio), in [0, 1]: what model utility is made of."""
        return max(0.0, 1 - self.ratio)

    @property
    def share(self) -> float:
        """The share true / (true + false), in [0, 1]."""
        return self.true / (self.true + self.false + _TINY)


def truth_ratio(true: float, false: Sequence[float], mean: Mean = "geometric") -> TruthRatio:
    """The truth ratio of a question from losses.

    mean: of the false answers' probabilities. ``geometric``, exp(-mean loss), is what
    open-unlearning and the paper's code compute, ``arithmetic`` what the paper's equation says.
    Raises MetricError where there is no false answer.
    """
    if not false:
        raise MetricError("a truth ratio needs false answers")
    each = [probability(loss) for loss in false]
    found = math.exp(-math.fsum(false) / len(false)) if mean == "geometric" else math.fsum(each)
    return TruthRatio(probability(true), found if mean == "geometric" else found / len(each))


@dataclass(frozen=True)
class ForgetQuality:
    """How far the truth ratios of two models lie apart: a two-sided Kolmogorov-Smirnov test."""

    statistic: float
    """D, in [0, 1]: the largest distance of the two distribution functions."""
    p: float
    """The paper's forget quality: large where nothing tells the two models apart. It depends on n,
    and falls by over-forgetting as well."""
    log10_p: float
    n: int
    """Rows of each model."""


def forget_quality(ratios: Sequence[float], retrained: Sequence[float]) -> ForgetQuality:
    """Of a model's truth ratios and the retrained model's, over the same rows; exact p.

    Raises MetricError where there are none, not as many of each, or one is not finite.
    """
    n = len(ratios)
    if not n or n != len(retrained):
        raise MetricError(
            f"forget quality of {n} rows against {len(retrained)}: its p depends on their number, "
            "so both models need the same rows"
        )
    if not all(map(math.isfinite, (*ratios, *retrained))):
        raise MetricError("a truth ratio is not finite")
    from scipy.stats import ks_2samp

    found = ks_2samp(ratios, retrained, method="exact")
    statistic, p = float(found.statistic), float(found.pvalue)
    if statistic == 1:  # 2 / C(2n, n), which p no longer holds from 520 rows on
        log10_p = (math.log(2) + 2 * math.lgamma(n + 1) - math.lgamma(2 * n + 1)) / math.log(10)
    elif p > 0:
        log10_p = math.log10(p)
    else:
        raise MetricError(f"the p of D = {statistic:g} over {n} rows is too small to be a number")
    return ForgetQuality(statistic, p, log10_p, n)


def harmonic_mean(values: Sequence[float]) -> float:
    """Of n values n / sum(1 / v); 0 where one is 0: a lost ability is not made good by others.

    Raises MetricError where there is no value, or one is negative or not finite.
    """
    if not values or not all(math.isfinite(value) and value >= 0 for value in values):
        raise MetricError("a harmonic mean is of finite values from 0 up, and of one at least")
    return len(values) / math.fsum(1 / value for value in values) if all(values) else 0.0
