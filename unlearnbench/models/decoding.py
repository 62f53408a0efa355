"""What happens to logits: checked, sampled from, stopped on, and turned into token statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from unlearnbench.errors import ModelOutputError
from unlearnbench.requests import Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK_BYTES = 2**21


def logits_processors(
    names: Sequence[str], precision: str, sampling: Sampling | None
) -> LogitsProcessorList:
    """Refuse non-finite logits, then sample if asked; the caller decodes greedily."""
    chain = LogitsProcessorList([_RequireFinite(names, precision)])
    if sampling is not None:
        chain.append(_SeededSampling(names, sampling))
    return chain


class _RequireFinite(LogitsProcessor):
    """The argmax of NaN is some token: without this a broken model would score as one that
    forgot.
    """

    def __init__(self, names: Sequence[str], precision: str) -> None:
        self._names, self._precision = names, precision

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        _require_finite(scores, self._names, self._precision)
        return scores


def _require_finite(scores: torch.Tensor, names: Sequence[str], precision: str) -> None:
    bad = ~scores.isfinite().all(dim=-1)
    if bool(bad.any()):
        name = names[int(bad.nonzero()[0])]
        raise ModelOutputError(not_finite(f"{name} at {precision}"))


class _SeededSampling(LogitsProcessor):
    """Sampling by the Gumbel-max trick: argmax(logits / T + Gumbel noise) ~ softmax(logits / T).

    The noise of each row depends on the seed and the request's id alone, so an answer does not
    depend on the batch that it was computed in.
    """

    def __init__(self, names: Sequence[str], sampling: Sampling) -> None:
        self._sampling = sampling
        self._generators = [_generator(sampling.seed, name) for name in names]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return _add_noise(scores, self._sampling, self._generators)


def _add_noise(
    scores: torch.Tensor, sampling: Sampling, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    kept = scores / sampling.temperature
    if 0 < sampling.top_k < kept.shape[-1]:
        floor = kept.topk(sampling.top_k, dim=-1).values[:, -1:]
        kept = kept.masked_fill(kept < floor, float("-inf"))
    width = kept.shape[-1]
    # Exponential draws are -log(uniform) without a zero to take the logarithm of.
    draws = [torch.empty(width).exponential_(generator=g) for g in generators]
    noise = -torch.stack(draws).to(kept.device).log()
    return kept + noise


class Chooser:
    """The next token of each row, as ``logits_processors`` and an argmax choose it."""

    def __init__(self, names: Sequence[str], precision: str, sampling: Sampling | None) -> None:
        self._names, self._precision, self._sampling = names, precision, sampling
        self._generators = [_generator(sampling.seed, n) for n in names] if sampling else []

    def choose(self, logits: torch.Tensor, rows: Sequence[int]) -> list[int]:
        """logits: (len(rows), vocabulary), any float dtype. rows: which of the names they are of.

        Raises:
            ModelOutputError: a logit is NaN or infinite.
        """
        scores = logits.float()
        _require_finite(scores, [self._names[row] for row in rows], self._precision)
        if self._sampling is not None:
            own = [self._generators[row] for row in rows]
            scores = _add_noise(scores, self._sampling, own)
        chosen: list[int] = scores.argmax(dim=-1).tolist()
        return chosen


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def stopping_criteria(
    stop: Sequence[str], prompt_width: int, decode: Callable[[Sequence[int]], str]
) -> StoppingCriteriaList:
    """End a row once its continuation holds a stop string."""
    return StoppingCriteriaList([_StopOnText(stop, prompt_width, decode)] if stop else [])


class _StopOnText(StoppingCriteria):
    def __init__(
        self, stop: Sequence[str], prompt_width: int, decode: Callable[[Sequence[int]], str]
    ) -> None:
        self._stop, self._width, self._decode = stop, prompt_width, decode

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        texts = [self._decode(row) for row in input_ids[:, self._width :].tolist()]
        done = [any(stop in text for stop in self._stop) for text in texts]
        return torch.tensor(done, device=input_ids.device, dtype=torch.bool)


def token_statistics(
    logits: torch.Tensor, targets: torch.Tensor, where: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Log-probability of each target, and mean and spread of log p over the vocabulary.

    logits: shape (n, vocabulary), any float dtype, computed on in float32. targets: shape (n,).
    Returns three arrays of shape (n,), natural logarithms.

    Raises:
        ModelOutputError: a logit is NaN or infinite.
    """
    rows = _rows_at_once(logits)
    pairs = zip(logits.split(rows), targets.split(rows), strict=True)
    own, mean, std = torch.cat([_statistics(*pair) for pair in pairs], dim=1).cpu().numpy()
    if not np.isfinite(mean).all():
        raise ModelOutputError(not_finite(where))
    return own, mean, std


def _rows_at_once(logits: torch.Tensor) -> int:
    """So many that the passes over them find them in the processor's cache; a GPU takes more."""
    size = _CHUNK_BYTES if logits.device.type == "cpu" else 64 * _CHUNK_BYTES
    return max(1, size // (4 * logits.shape[-1]))


def _statistics(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Own, mean and std of log p, (3, n) in float64; mean is not finite where a logit is not.

    With x = logit - largest and Z = sum e^x: log p = x - log Z, so mean = E[x] - log Z and the
    variance is E[x^2] - E[x]^2. Near a sure token both terms are small, so nothing cancels.
    """
    x = logits.float()
    x = x.sub_(x.amax(dim=-1, keepdim=True)) if x is not logits else x - x.amax(-1, keepdim=True)
    own = x.gather(1, targets.to(x.device)[:, None])[:, 0].double()
    p = x.exp()
    total = p.sum(dim=-1).double()
    p.mul_(x)
    first = p.sum(dim=-1).double() / total
    second = torch.linalg.vecdot(p, x).double() / total
    spread = (second - first.square()).clamp(min=0).sqrt()
    return torch.stack([own - total.log(), first - total.log(), spread])


def not_finite(where: str) -> str:
    """What is said of logits that no score can be made of."""
    return (
        f"{where}: the model's logits are NaN or infinite; no score can be given. Try --dtype "
        "fp32; if that fails too, the checkpoint is broken"
    )
