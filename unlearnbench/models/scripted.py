"""A model that answers from a script: public, because it makes tests of anything above a model
fast and exact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from unlearnbench.errors import ModelOutputError
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.results import Checkpoint, Condition, ConditionOptions, kind_of_precision
from unlearnbench.util.text import cut_at_stop

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

R = TypeVar("R", Generate, Score)


class ScriptedModel:
    """Answers each prompt with the scripted text and each text with the scripted log-probabilities.

    outputs: continuation by prompt. logprobs: per-token values by text, log p of every token after
    the first; the spread over the vocabulary is taken as mean -1, std 1. A token is a word here.
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
        self.device = "cpu"
        self.dtype = "fp32"
        self.config: dict[str, object] = {}

    def truncate(self, text: str, max_tokens: int) -> str:
        """Cut ``text`` after ``max_tokens`` words."""
        words = text.split(" ")
        return text if len(words) <= max_tokens else " ".join(words[:max_tokens])

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        """Answer from the script, cut as a real model's answer is.

        Raises:
            ModelOutputError: the script has no answer for a prompt.
        """
        for request in _without(requests, skip):
            if request.prompt not in self._outputs:
                raise ModelOutputError(f"the script has no output for {request.id}")
            text = self.truncate(self._outputs[request.prompt], request.max_new_tokens)
            text = cut_at_stop(text, request.stop)
            yield Generated(request.id, text, len(text.split()))

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        """Answer from the script.

        Raises:
            ModelOutputError: the script has no log-probabilities for a text.
        """
        import numpy as np

        for request in _without(requests, skip):
            if request.text not in self._logprobs:
                raise ModelOutputError(f"the script has no log-probabilities for {request.id}")
            values: NDArray[np.float64] = np.array(self._logprobs[request.text], dtype=np.float64)
            yield Scored(request.id, values, np.full_like(values, -1.0), np.ones_like(values))


def _without(requests: Sequence[R], skip: Collection[str]) -> list[R]:
    return [request for request in requests if request.id not in skip]
