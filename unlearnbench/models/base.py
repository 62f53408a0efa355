"""What a model is, and one that answers from a script, for fast and exact tests above it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from unlearnbench.errors import ModelOutputError
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.results import Checkpoint, Condition, ConditionOptions, kind_of_precision
from unlearnbench.util.text import cut_at_stop

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@runtime_checkable
class Model(Protocol):
    """A checkpoint under one condition that answers requests.

    Answers come in any order, exactly one a request, with its id; what cannot be answered raises.
    ``skip``: requests that an interrupted run has answered: they get no answer, but keep their
    places in batches, so that the other answers are the same to the last bit.
    """

    @property
    def checkpoint(self) -> Checkpoint:
        """Which weights and tokenizer."""

    @property
    def condition(self) -> Condition:
        """How the weights are stored, proven to be in force."""

    @property
    def device(self) -> str:
        """Kind of device, as ``cpu`` or ``cuda``."""

    @property
    def dtype(self) -> str:
        """Compute dtype, as ``fp32``."""

    @property
    def config(self) -> dict[str, object]:
        """The content of ``config.json``; empty for a model without one."""

    def truncate(self, text: str, max_tokens: int) -> str:
        """Cut ``text`` to its first ``max_tokens`` token ids, special tokens counted."""

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        """Continue prompts; ModelOutputError for bad logits or a prompt beyond the context."""

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        """Give per-token log-probabilities of texts of two tokens or more; errors as above."""


class Delegate:
    """All but the answers, taken from ``own``: another engine or other processes answer."""

    def __init__(self, own: Model) -> None:
        self.own = own
        self.checkpoint, self.condition = own.checkpoint, own.condition
        self.device, self.dtype, self.config = own.device, own.dtype, own.config

    @property
    def products(self) -> str | None:
        """As the own model's, where it has them."""
        return getattr(self.own, "products", None)

    def truncate(self, text: str, max_tokens: int) -> str:
        return self.own.truncate(text, max_tokens)


class ScriptedModel:
    """Answers each prompt with the scripted text and each text with the scripted log-probabilities.

    outputs: continuation by prompt. logprobs: per-token values by text, log p of every token after
    the first, or behind a prompt of the answer alone; the spread over the vocabulary is taken as
    mean -1, std 1, and a token above a half as the likeliest. A token is a word here.
    """

    def __init__(
        self,
        outputs: Mapping[str, str] | None = None,
        logprobs: Mapping[str, Sequence[float]] | None = None,
        *,
        name: str = "scripted",
        precision: str = "none",
    ) -> None:
        self._outputs = dict(outputs or {})
        self._logprobs = {text: tuple(values) for text, values in (logprobs or {}).items()}
        script = json.dumps([self._outputs, self._logprobs], sort_keys=True).encode()
        self.checkpoint = Checkpoint(
            path=name,
            format="scripted",
            weights_sha256=hashlib.sha256(script).hexdigest(),
            tokenizer_sha256=hashlib.sha256(b"words").hexdigest(),
        )
        self.condition = Condition(
            name=precision,
            kind=kind_of_precision(precision),
            options=ConditionOptions(bits=32, scheme="scripted", backend="scripted"),
        )
        self.device, self.dtype = "cpu", "fp32"
        self.config: dict[str, object] = {}

    def truncate(self, text: str, max_tokens: int) -> str:
        words = text.split(" ")
        return text if len(words) <= max_tokens else " ".join(words[:max_tokens])

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        """Answer from the script, cut as a real model's answer is."""
        for request in requests:
            if request.id in skip:
                continue
            if request.prompt not in self._outputs:
                raise ModelOutputError(f"the script has no output for {request.id}")
            text = self.truncate(self._outputs[request.prompt], request.max_new_tokens)
            text = cut_at_stop(text, request.stop)
            yield Generated(request.id, text, len(text.split()))

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        import numpy as np

        for request in requests:
            if request.id in skip:
                continue
            if request.gradient:
                raise ModelOutputError(f"{request.id}: a script has no weights, and no gradnorm")
            text = request.prompt + request.text
            if text not in self._logprobs:
                raise ModelOutputError(f"the script has no log-probabilities for {request.id}")
            values: NDArray[np.float64] = np.array(self._logprobs[text], dtype=np.float64)
            matches = values > np.log(0.5) if request.prompt else None
            spread = np.full_like(values, -1.0), np.ones_like(values)
            yield Scored(request.id, values, *spread, matches)
