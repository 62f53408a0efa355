"""Generation by vLLM (``--backend vllm``) on plain weights of our adapter, or on a deployed folder
by its own kernels. The adapter scores: vLLM does not give the whole distribution that Min-K%++
needs.
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import ModelOutputError, OptionError, PrecisionError, one_line
from unlearnbench.models.base import Delegate
from unlearnbench.requests import Generate, Generated, Score, Scored

if TYPE_CHECKING:
    from unlearnbench.checkpoints.source import Source
    from unlearnbench.models.hf import HFModel

_AT_ONCE = 256  # requests of one call: what an interruption can cost
_LEFT_FREE = 2 * 2**30  # bytes of a GPU, for scores and for what else runs there


def require_vllm(source: Source, kernels: Mapping[str, Collection[str]], kernel: str) -> None:
    """Raise where ``--backend vllm`` cannot run. kernels: the possible ones by condition."""
    if importlib.util.find_spec("vllm") is None:
        raise OptionError(
            "--backend vllm: vllm is not installed; `make vllm-env` makes an environment that has "
            "it beside our libraries (docs/speed.md says why pip alone does not)"
        )
    if len(source.parts) > 1 or source.parts[0].adapter_kept or source.stored is not None:
        raise OptionError(
            "--backend vllm runs one model with plain weights: no pair of checkpoints, no adapter "
            "that is kept, no checkpoint that is quantized already; use --backend hf"
        )
    if source.options.mask_pad_id:
        raise OptionError("--backend vllm masks padding alone; use --backend hf for --mask-pad-id")
    if kernel == "native":
        raise OptionError("--backend vllm computes with plain weights; drop --quant-kernel native")
    for name, possible in kernels.items():
        if possible and "dequantized" not in possible:
            raise PrecisionError(
                f"{name} has no plain weights that compute the same, which --backend vllm needs; "
                "run it with --backend hf"
            )


def open_vllm(own: HFModel, packed: Path | None = None) -> VllmModel:
    """Hand the weights to a vLLM engine; PrecisionError where it cannot run this model. packed: a
    folder of these weights as another tool packed them, which vLLM's own kernels take.
    """
    for name, value in (("LEVEL", "ERROR"), ("STREAM", "ext://sys.stderr")):
        os.environ.setdefault(f"VLLM_LOGGING_{name}", value)
    import psutil
    import torch
    from vllm import LLM

    options: dict[str, Any]
    if own.device == "cpu":
        room = psutil.virtual_memory().available // 4
        options = {"enforce_eager": True, "kv_cache_memory_bytes": room}  # compiling takes minutes
    else:
        free, total = torch.cuda.mem_get_info()  # beside the adapter's weights
        share = round(max(0.1, (free - _LEFT_FREE) / total), 3)
        options = {"gpu_memory_utilization": share}
    with tempfile.TemporaryDirectory(prefix="unlearnbench-") as folder:
        own.tokenizer.save_pretrained(folder)
        if packed is None:
            _save(own, folder)
        try:
            engine: Any = LLM(
                model=folder if packed is None else str(packed),
                tokenizer=folder,
                dtype={"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[own.dtype],
                # A checkpoint's own may forbid words, which would pass for forgetting.
                generation_config="vllm",
                trust_remote_code=False,
                seed=0,
                **options,
            )
        except Exception as error:  # vLLM fails in many ways, and none of them is ours
            raise PrecisionError(
                f"vLLM cannot run this model: {one_line(error, 200)}; use --backend hf"
            ) from error
    return VllmModel(own, engine)


def _save(own: HFModel, folder: str) -> None:
    """The adapter's weights as an ordinary checkpoint."""
    network: Any = own.network
    if any(not parameter.is_floating_point() for parameter in network.parameters()):
        raise PrecisionError(f"{own.condition.name}: its weights are packed; use --backend hf")
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(network.config, name):
            delattr(network.config, name)  # of weights that are dense by now
    network.hf_quantizer = None  # quanto's would refuse to save even these
    network.save_pretrained(folder)


class VllmModel(Delegate):
    """Implements ``models.Model``: ``generate`` by vLLM, everything else by the adapter."""

    def __init__(self, own: HFModel, engine: Any) -> None:
        super().__init__(own)
        self._tokens, self._engine = own.tokens, engine

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        return self.own.score(requests, skip)

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        """Continue prompts greedily; in bf16 and fp16 a token may differ between two runs."""
        todo = [request for request in requests if request.id not in skip]
        if any(request.sampling is not None for request in todo):
            raise OptionError("--backend vllm decodes greedily; use --backend hf to sample")
        for start in range(0, len(todo), _AT_ONCE):
            yield from self._answer(todo[start : start + _AT_ONCE])

    def _answer(self, requests: Sequence[Generate]) -> Iterator[Generated]:
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": self._tokens.prompt(request)} for request in requests]
        options = [
            SamplingParams(
                temperature=0.0,
                max_tokens=request.max_new_tokens,
                # A thought may hold one of them.
                stop=list(request.stop if self._tokens.thought_end is None else ()),
                stop_token_ids=list(self._tokens.ends),
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
            _require_sound(f"{request.id} at {self.condition.name}", found)
            yield self._tokens.answer(request, list(found.token_ids))


def _require_sound(where: str, found: Any) -> None:
    """VLLM samples some token from logits that are NaN; their log-probability tells."""
    if found.finish_reason not in ("stop", "length"):
        raise ModelOutputError(f"{where}: vLLM ended with {one_line(found.finish_reason, 40)}")
    if found.logprobs is None or len(found.logprobs) != len(found.token_ids):
        raise ModelOutputError(f"{where}: vLLM gave no log-probability for each token")
    for token, candidates in zip(found.token_ids, found.logprobs, strict=True):
        if token not in candidates or not math.isfinite(candidates[token].logprob):
            raise ModelOutputError(
                f"{where}: the model's logits are NaN or infinite; no score can be given"
            )
