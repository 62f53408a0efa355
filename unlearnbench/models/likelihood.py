"""Per-token figures of texts: the head runs on a few positions at a time, to spare memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from unlearnbench.errors import ModelOutputError
from unlearnbench.models.batches import Budget, Tokens, is_out_of_memory, padded, texts_budget
from unlearnbench.models.generation import not_finite
from unlearnbench.models.packable import mixes_rows
from unlearnbench.requests import Score, Scored
from unlearnbench.util.process import explain

Figures: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

_CHUNK_BYTES = 2**21
_HEAD_BYTES = {"cpu": 2**26, "cuda": 2**29}
# Both sides are the same products; a chunk may only be summed in another order.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Head:
    """A model in two parts, the second of which runs on a few positions at a time."""

    states: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """(token ids, mask) -> the last layer's states, (rows, tokens, width), or, where a model cannot
    be taken apart, its logits."""
    logits: Callable[[torch.Tensor], torch.Tensor]
    """Logits of shape (n, vocabulary) from states of shape (n, width)."""
    vocabulary: int
    is_whole: bool = False
    """``states`` are logits."""

    def budget(self, model: Any, device: str) -> Budget:
        if mixes_rows(model):
            explain("scoring: one text at a time, because others beside it would move its rounding")
            return texts_budget(1)
        if self.is_whole:  # 1 GiB of logits in float32 on CPU, 8 GiB on a GPU
            most = max(1, (2**30 if device == "cpu" else 2**33) // (4 * self.vocabulary))
            found = Budget(most, most, padded)
        elif device == "cpu":  # more tokens are no faster, and padding only costs
            found = Budget(2048, 2048, padded)
        else:
            found = Budget(8192, 131_072, padded)
        explain(f"scoring: up to {found.most:,} tokens a batch, a longer text alone")
        return found

    def score(
        self,
        tokens: Tokens,
        device: str,
        where: str,
        starts: Mapping[str, int],
        batch: Sequence[tuple[Score, list[int]]],
    ) -> list[Scored]:
        """Figures of each text, from the place on that ``starts`` has by its id; ModelOutputError
        where a logit is NaN or infinite.
        """
        ids, mask = tokens.tensors([row for _, row in batch], device, left=False)
        states = self.states(ids, mask)
        answers = []
        for (request, row), state, own in zip(batch, states, ids, strict=True):
            start, named = starts[request.id], f"{request.id} at {where}"
            there, targets = state[start - 1 : len(row) - 1], own[start : len(row)]
            figures = self.statistics(there, targets, named)
            matches = self.matches(there, targets) if request.prompt else None
            answers.append(Scored(request.id, *figures, matches))
        return answers

    def matches(self, states: torch.Tensor, targets: torch.Tensor) -> NDArray[np.bool_]:
        """Whether each target, (n,), is the likeliest after its state, of shape (n, width)."""
        parts = states.split(self._rows(states))
        likeliest = torch.cat([self.logits(part).argmax(dim=-1) for part in parts])
        found: NDArray[np.bool_] = likeliest.cpu().numpy() == targets.cpu().numpy()
        return found

    def statistics(self, states: torch.Tensor, targets: torch.Tensor, where: str) -> Figures:
        """As ``token_statistics``, from states of shape (n, width)."""
        if self.is_whole:
            return token_statistics(states, targets, where)
        rows = self._rows(states)
        pairs = zip(states.split(rows), targets.split(rows), strict=True)
        parts = [token_statistics(self.logits(part), target, where) for part, target in pairs]
        own, mean, std = (np.concatenate(figure) for figure in zip(*parts, strict=True))
        return own, mean, std

    def _rows(self, states: torch.Tensor) -> int:
        size = _HEAD_BYTES.get(states.device.type, 2**26)
        return max(1, size // (states.element_size() * self.vocabulary))


def find_head(model: Any, ids: torch.Tensor, masks: bool = False) -> Head:
    """Take a model apart, and hold the parts against the whole on ``ids``, (1, a few tokens).
    masks: tokens between others are masked too.
    """
    try:
        head = _parts(model, masks)
        reason = _compare(head, model, ids)
    except Exception as error:  # whatever is missing in an unusual model, its own forward is there
        if is_out_of_memory(error):
            raise
        reason = f"its parts are not where others have them ({type(error).__name__})"
    if reason is None:
        explain("scoring from hidden states, with the output head on a few positions at a time")
        return head

    def whole(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if found.shape[:2] != ids.shape:
            raise ModelOutputError(
                f"the model gives logits for {found.shape[1]} positions of {ids.shape[1]} tokens"
            )
        return found

    explain(f"scoring from the model's whole logits: {reason}")
    vocabulary = int(model.config.get_text_config().vocab_size)
    return Head(whole, lambda logits: logits, vocabulary, is_whole=True)


def _parts(model: Any, masks: bool) -> Head:
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = whole.config.get_text_config()
    body, linear = whole.get_decoder(), whole.get_output_embeddings()
    if body is whole:
        raise AttributeError("the decoder is the model itself")
    # What some models do to logits behind the head: Gemma 2 bounds them, Cohere and Granite scale
    # them. The comparison with the whole shows whether that was all.
    cap = getattr(config, "final_logit_softcapping", None)
    factor = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)

    def states(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # Mostly without the mask: under causal attention no token sees padding that follows it, and
        # the fast kernels take none. (Where layers choose what to round from all rows of a pass,
        # texts come one at a time.)
        given = {"attention_mask": mask} if masks else {}
        found: torch.Tensor = body(input_ids=ids, use_cache=False, **given).last_hidden_state
        return found

    def logits(states: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = linear(states)
        if cap is not None:
            found = cap * torch.tanh(found / cap)
        elif factor is not None:
            found = found * factor
        elif divisor is not None:
            found = found / divisor
        return found

    return Head(states, logits, int(config.vocab_size))


def _compare(head: Head, model: Any, ids: torch.Tensor) -> str | None:
    """Why the parts do not make the whole."""
    states = head.states(ids, ids)
    if states.shape[:2] != ids.shape:
        return "its body does not give a state for each token"
    own = head.logits(states[0])
    whole = model(input_ids=ids, use_cache=False).logits[0]
    if own.shape != whole.shape:
        return "its head gives other logits than the model"
    if not bool(whole.isfinite().all()):  # said with the sample's name when it is scored
        return "its logits are NaN or infinite"
    scale = float(whole.abs().max()) or 1.0
    # Over several GPUs accelerate moves what a model returns, and not what its decoder does.
    apart = float((own.float() - whole.float().to(own.device)).abs().max())
    if not apart <= _TOLERANCE.get(whole.dtype, 1e-5) * scale:  # NaN is no agreement
        return "its forward changes the head's logits"
    return None


def token_statistics(logits: torch.Tensor, targets: torch.Tensor, where: str) -> Figures:
    """Log-probability of each target, and mean and spread of log p over the vocabulary, in arrays
    of shape (n,), natural logarithms, computed in float32; ModelOutputError for NaN or infinity.

    logits: shape (n, vocabulary), any float dtype. targets: shape (n,).
    """
    # So many rows that the passes over them find them in the processor's cache; a GPU takes more.
    size = _CHUNK_BYTES if logits.device.type == "cpu" else 64 * _CHUNK_BYTES
    rows = max(1, size // (4 * logits.shape[-1]))
    pairs = zip(logits.split(rows), targets.split(rows), strict=True)
    own, mean, std = torch.cat([_statistics(*pair) for pair in pairs], dim=1).cpu().numpy()
    if not np.isfinite(mean).all():
        raise ModelOutputError(not_finite(where))
    return own, mean, std


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
