"""Generation by vLLM (``--backend vllm``) on the weights that our adapter made; scores by the
adapter, because vLLM does not give the whole distribution that Min-K%++ needs.

vLLM always gets plain weights in the compute dtype, so every precision whose layers can be
dequantized runs there, with the proof that it took effect.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import ModelOutputError, OptionError, PrecisionError, one_line
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.results import Checkpoint, Precision

if TYPE_CHECKING:
    from unlearnbench.models.hf import HFModel
    from unlearnbench.quant.base import PrecisionSpec

__all__ = ["VllmModel", "open_vllm", "require_vllm"]

log = logging.getLogger("unlearnbench")

_AT_ONCE = 256  # requests of one call: what an interruption can cost
_LEFT_FREE = 2 * 2**30  # bytes of a GPU, for scores and for what else runs there


def require_vllm(specs: Sequence[PrecisionSpec], kernel: str) -> None:
    """Raise before anything is loaded where ``--backend vllm`` cannot run.

    Raises:
        OptionError: vLLM is not installed, or native kernels were asked for.
        PrecisionError: a precision has no plain weights that would compute the same.
    """
    if importlib.util.find_spec("vllm") is None:
        raise OptionError("--backend vllm: vllm is not installed: pip install vllm")
    if kernel == "native":
        raise OptionError("--backend vllm computes with plain weights; drop --quant-kernel native")
    for spec in specs:
        if spec.kernels and "dequantized" not in spec.kernels:
            raise PrecisionError(
                f"{spec.name} has no plain weights that compute the same, which --backend vllm "
                "needs; run it with --backend hf"
            )


def open_vllm(own: HFModel) -> VllmModel:
    """Hand the adapter's weights to a vLLM engine on the same device.

    Raises:
        PrecisionError: vLLM cannot run this model.
    """
    from vllm import LLM

    with tempfile.TemporaryDirectory(prefix="unlearnbench-") as scratch:
        folder = Path(scratch)
        own.save_plain(folder)  # before any forward pass, which repacks some kinds of weights
        try:
            engine: Any = LLM(
                model=str(folder),
                dtype={"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[own.dtype],
                # A checkpoint's own generation config may forbid words, which passes for forgetting.
                generation_config="vllm",
                trust_remote_code=False,
                seed=0,
                **_memory(own.device),
            )
        except Exception as error:  # vLLM fails in many ways, and none of them is ours
            raise PrecisionError(
                f"vLLM cannot run this model: {one_line(error, 200)}; use --backend hf"
            ) from error
    return VllmModel(own, engine)


def _memory(device: str) -> dict[str, float]:
    """The share of the whole GPU that vLLM may take: what is free beside the adapter's weights."""
    if device == "cpu":
        return {}
    import torch

    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": round(max(0.1, (free - _LEFT_FREE) / total), 3)}


class VllmModel:
    """Implements ``models.Model``: ``generate`` by vLLM, everything else by the adapter."""

    def __init__(self, own: HFModel, engine: Any) -> None:
        self._own, self._engine = own, engine

    @property
    def checkpoint(self) -> Checkpoint:
        """See ``Model``."""
        return self._own.checkpoint

    @property
    def precision(self) -> Precision:
        """See ``Model``."""
        return self._own.precision

    @property
    def device(self) -> str:
        """See ``Model``."""
        return self._own.device

    @property
    def dtype(self) -> str:
        """See ``Model``."""
        return self._own.dtype

    @property
    def config(self) -> dict[str, object]:
        """See ``Model``."""
        return self._own.config

    def truncate(self, text: str, max_tokens: int) -> str:
        """See ``Model``."""
        return self._own.truncate(text, max_tokens)

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        """See ``Model``."""
        return self._own.score(requests, skip)

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        """See ``Model``. vLLM forms its batches as requests come and go, so answers may differ in
        a token between two runs in bf16 or fp16.

        Raises:
            OptionError: a request asks for sampling, whose draws vLLM would make in its own way.
        """
        todo = [request for request in requests if request.id not in skip]
        if any(request.sampling is not None for request in todo):
            raise OptionError("--backend vllm decodes greedily; use --backend hf to sample")
        for start in range(0, len(todo), _AT_ONCE):
            yield from self._answer(todo[start : start + _AT_ONCE])

    def _answer(self, requests: Sequence[Generate]) -> Iterator[Generated]:
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": self._own.encode_prompt(r)} for r in requests]
        options = [
            SamplingParams(
                temperature=0.0,
                max_tokens=request.max_new_tokens,
                stop=list(request.stop),
                stop_token_ids=list(self._own.end_tokens),
                ignore_eos=True,  # ends are those above, which were checked
                logprobs=1,
                detokenize=True,
            )
            for request in requests
        ]
        outputs = self._engine.generate(prompts, options, use_tqdm=False)
        if len(outputs) != len(requests):
            raise ModelOutputError(f"vLLM gave {len(outputs)} answers to {len(requests)} prompts")
        for request, output in zip(requests, outputs, strict=True):
            (found,) = output.outputs
            self._require_sound(request, found)
            yield self._own.make_answer(request, list(found.token_ids))

    def _require_sound(self, request: Generate, found: Any) -> None:
        """VLLM samples some token from logits that are NaN; their log-probability tells."""
        where = f"{request.id} at {self.precision.name}"
        if found.finish_reason not in ("stop", "length"):
            raise ModelOutputError(f"{where}: vLLM ended with {one_line(found.finish_reason, 40)}")
        if found.logprobs is None or len(found.logprobs) != len(found.token_ids):
            raise ModelOutputError(f"{where}: vLLM gave no log-probability for each token")
        for token, candidates in zip(found.token_ids, found.logprobs, strict=True):
            if token not in candidates or not math.isfinite(candidates[token].logprob):
                raise ModelOutputError(
                    f"{where}: the model's logits are NaN or infinite; no score can be given"
                )
