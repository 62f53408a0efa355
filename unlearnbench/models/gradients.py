"""The norm of a loss's gradient by the weights: what a text that was trained on has little of left.

As open-unlearning's ``gradnorm`` has it: the mean over all parameters of the 2-norm of each one's
gradient of a text's mean negative log-probability, one text at a time. There the model is in train
mode; here it is not, so dropout draws nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from unlearnbench.errors import ModelOutputError, one_line
from unlearnbench.models.batches import Tokens, is_out_of_memory
from unlearnbench.requests import Scored

if TYPE_CHECKING:
    from unlearnbench.results import Condition

log = logging.getLogger("unlearnbench")
_LEAST = 0.5
"""The least share of matrices that is reached: experts that a text does not use are not."""


def why_none(network: Any, condition: Condition) -> str | None:
    """Why a condition's weights have no gradient; None where they have one."""
    if condition.kind.endswith("cached"):
        return "attention meets rounded keys and values"
    weights = list(network.parameters())
    for weight in weights:
        if not weight.is_floating_point() or type(weight) is not torch.nn.Parameter:
            stored = "codes" if type(weight) is torch.nn.Parameter else type(weight).__name__
            return f"weights are stored as {stored} ({weight.dtype})"
    total = condition.proof.total_weights if condition.proof else 0
    known = sum(weight.numel() for weight in weights)
    return f"only {known:,} of {total:,} weights are plain numbers" if known < total else None


def add_gradients(
    network: Any,
    condition: Condition,
    tokens: Tokens,
    asked: Mapping[str, tuple[Sequence[int], int]],
    answers: Iterable[Scored],
) -> Iterator[Scored]:
    """The answers, with the gradient's norm where it was asked for; without, which is said, where
    the condition's weights have none. asked: by request, token ids and the first that is scored.

    Raises:
        ModelOutputError: the norm is not finite, or the gradient does not reach the weights.
    """
    reason = why_none(network, condition) if asked else None
    if reason is not None:
        log.warning(
            "%s: no gradnorm: %s, which have no gradient; --quant-kernel dequantized computes "
            "with plain weights, where the condition offers it",
            condition.name,
            reason,
        )
    for answer in answers:
        if reason is None and answer.id in asked:
            where = f"{answer.id} at {condition.name}"
            found = gradient_norm(network, tokens, *asked[answer.id], where)
            answer = replace(answer, gradient=found)
        yield answer


def gradient_norm(
    network: Any, tokens: Tokens, ids: Sequence[int], start: int, where: str
) -> float:
    """Mean over the parameters of their gradients' 2-norm; the loss is over ``ids[start:]``.

    Raises:
        ModelOutputError: it is not finite, there is none, or it reaches less than half of the
            matrices.
    """
    weights = list(network.parameters())
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            device = str(network.get_input_embeddings().weight.device)
            rows, mask = tokens.tensors([[*ids]], device, left=False)
            logits = network(input_ids=rows, attention_mask=mask, use_cache=False).logits[0]
            targets = rows[0, start:].to(logits.device)
            loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1].float(), targets)
            found: Sequence[Any] = torch.autograd.grad(loss, weights, allow_unused=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ModelOutputError(
            f"{where}: the loss has no gradient by the weights ({one_line(error, 120)}); leave "
            "--gradnorm out at this condition"
        ) from None
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    norms = [None if each is None else _norm(each) for each in found]
    matrices = [n for n, weight in zip(norms, weights, strict=True) if weight.dim() > 1]
    reached = sum(bool(norm) for norm in matrices)
    if reached < _LEAST * len(matrices):
        raise ModelOutputError(
            f"{where}: the loss's gradient reaches {reached} of {len(matrices)} matrices, as where "
            "activations are rounded; leave --gradnorm out at this condition"
        )
    known = [norm for norm in norms if norm is not None]
    mean = math.fsum(known) / len(known)
    if not math.isfinite(mean):
        raise ModelOutputError(f"{where}: the norm of the loss's gradient is not finite")
    return mean


def _norm(gradient: torch.Tensor) -> float:
    plain = gradient.to_dense() if gradient.is_mkldnn else gradient
    return float(plain.float().norm())
