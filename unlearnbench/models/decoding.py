"""What happens to logits: checked, sampled from, stopped on, and turned into token statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

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
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["logits_processors", "stopping_criteria", "token_statistics"]

_CHUNK = 256


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
        bad = ~scores.isfinite().all(dim=-1)
        if bool(bad.any()):
            name = self._names[int(bad.nonzero()[0])]
            raise ModelOutputError(_not_finite(f"{name} at {self._precision}"))
        return scores


class _SeededSampling(LogitsProcessor):
    """Sampling by the Gumbel-max trick: argmax(logits / T + Gumbel noise) ~ softmax(logits / T).

    The noise of each row depends on the seed and the request's id alone, so an answer does not
    depend on the batch that it was computed in.
    """

    def __init__(self, names: Sequence[str], sampling: Sampling) -> None:
        self._sampling = sampling
        self._generators = [_generator(sampling.seed, name) for name in names]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept = scores / self._sampling.temperature
        if 0 < self._sampling.top_k < kept.shape[-1]:
            floor = kept.topk(self._sampling.top_k, dim=-1).values[:, -1:]
            kept = kept.masked_fill(kept < floor, float("-inf"))
        width = kept.shape[-1]
        # Exponential draws are -log(uniform) without a zero to take the logarithm of.
        draws = [torch.empty(width).exponential_(generator=g) for g in self._generators]
        noise = -torch.stack(draws).to(kept.device).log()
        return kept + noise


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
    parts = []
    for start in range(0, len(targets), _CHUNK):  # bounds the float32 copies of the logits
        chunk = logits[start : start + _CHUNK].float()
        if not bool(chunk.isfinite().all()):
            raise ModelOutputError(_not_finite(where))
        logp = chunk.log_softmax(dim=-1)
        own = logp.gather(1, targets[start : start + _CHUNK, None])[:, 0]
        p = logp.exp()
        mean = (p * logp).sum(dim=-1)
        std = (p * (logp - mean[:, None]).square()).sum(dim=-1).sqrt()
        parts.append(torch.stack([own, mean, std]))
    own, mean, std = torch.cat(parts, dim=1).double().cpu().numpy()
    return own, mean, std


def _not_finite(where: str) -> str:
    return (
        f"{where}: the model's logits are NaN or infinite; no score can be given. Try --dtype "
        "fp32; if that fails too, the checkpoint is broken"
    )
