"""Per-token figures of texts without their logits: the output head runs on a few positions at a
time, so that a matrix of (tokens, vocabulary) never exists whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unlearnbench.errors import ModelOutputError
from unlearnbench.models.batches import Budget, is_out_of_memory
from unlearnbench.models.budget import scoring_budget, whole_budget
from unlearnbench.models.decoding import token_statistics
from unlearnbench.util.explain import explain

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
# Both sides are the same products; a chunk may only be summed in another order.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

Finish = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Head:
    """A model in two parts: ``states`` gives the last layer's states, ``finish(linear(states))``
    the logits, ``vocabulary`` of them.
    """

    body: Any
    linear: Any
    finish: Finish
    vocabulary: int

    def budget(self, device: str) -> Budget:
        """Tokens of a batch."""
        return scoring_budget(device)

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last layer's, (rows, tokens, width). Without the mask: under causal attention no
        token sees the padding that follows it, and the fast kernels take none. (Where layers choose
        what to round from all rows of a pass, texts come one at a time.)
        """
        states: torch.Tensor = self.body(input_ids=ids, use_cache=False).last_hidden_state
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of shape (n, vocabulary) from states of shape (n, width)."""
        return self.finish(self.linear(states))

    def statistics(
        self, states: torch.Tensor, targets: torch.Tensor, where: str
    ) -> tuple[NDArray[np.float64], ...]:
        """As ``token_statistics``, from states of shape (n, width).

        Raises:
            ModelOutputError: a logit is NaN or infinite.
        """
        size = _CHUNK_BYTES.get(states.device.type, 2**26)
        rows = max(1, size // (states.element_size() * self.vocabulary))
        parts = [
            token_statistics(self.logits(part), target, where)
            for part, target in zip(states.split(rows), targets.split(rows), strict=True)
        ]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


@dataclass(frozen=True)
class WholeLogits:
    """The same figures from a model's own logits, where it cannot be taken apart."""

    model: Any
    vocabulary: int

    def budget(self, device: str) -> Budget:
        """Tokens of a batch."""
        return whole_budget(self.vocabulary, device)

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits of shape (rows, tokens, vocabulary).

        Raises:
            ModelOutputError: the model gives others.
        """
        logits: torch.Tensor = self.model(
            input_ids=ids, attention_mask=mask, use_cache=False
        ).logits
        if logits.shape[:2] != ids.shape:
            raise ModelOutputError(
                f"the model gives logits for {logits.shape[1]} positions of {ids.shape[1]} tokens"
            )
        return logits

    def statistics(
        self, states: torch.Tensor, targets: torch.Tensor, where: str
    ) -> tuple[NDArray[np.float64], ...]:
        """See ``token_statistics``."""
        return token_statistics(states, targets, where)


def find_head(model: Any, ids: torch.Tensor) -> Head | WholeLogits:
    """Take a model apart, and hold the parts against the whole on ``ids``, (1, a few tokens)."""
    found = _try_parts(model, ids)
    if isinstance(found, str):
        explain(f"scoring from the model's whole logits: {found}")
        return WholeLogits(model, int(model.config.get_text_config().vocab_size))
    explain("scoring from hidden states, with the output head on a few positions at a time")
    return found


def _try_parts(model: Any, ids: torch.Tensor) -> Head | str:
    try:
        head = _parts(model)
        if head.states(ids, ids).shape[:2] != ids.shape:
            return "its body does not give a state for each token"
        own = head.logits(head.states(ids, ids)[0])
        whole = model(input_ids=ids, use_cache=False).logits[0]
    except Exception as error:  # whatever is missing in an unusual model, its own forward is there
        if is_out_of_memory(error):
            raise
        return f"its parts are not where others have them ({type(error).__name__})"
    if own.shape != whole.shape:
        return "its head gives other logits than the model"
    if not bool(whole.isfinite().all()):  # said with the sample's name when it is scored
        return "its logits are NaN or infinite"
    scale = float(whole.abs().max()) or 1.0
    # Over several GPUs accelerate moves what a model returns, and not what its decoder does.
    apart = float((own.float() - whole.float().to(own.device)).abs().max())
    if not apart <= _TOLERANCE.get(whole.dtype, 1e-5) * scale:  # NaN is no agreement
        return "its forward changes the head's logits"
    return head


def _parts(model: Any) -> Head:
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = whole.config.get_text_config()
    body = whole.get_decoder()
    if body is whole:
        raise AttributeError("the decoder is the model itself")
    return Head(body, whole.get_output_embeddings(), _finish(config), int(config.vocab_size))


def _finish(config: Any) -> Finish:
    """What some models do to logits behind the head: Gemma 2 bounds them, Cohere and Granite scale
    them. ``find_head`` checks the result.
    """
    cap = getattr(config, "final_logit_softcapping", None)
    factor = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    if cap is not None:
        return lambda logits: cap * torch.tanh(logits / cap)
    if factor is not None:
        return lambda logits: logits * factor
    if divisor is not None:
        return lambda logits: logits / divisor
    return lambda logits: logits
