"""Stands in for the package ``vllm`` where it cannot run: the calls that we make, with the options
that it takes, answered by transformers on the folder that it is given.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

__all__ = ["Engine", "install"]


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    stop: list[str]
    stop_token_ids: list[int]
    ignore_eos: bool
    logprobs: int
    detokenize: bool


@dataclass
class Logprob:
    logprob: float


@dataclass
class Completion:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str


@dataclass
class Output:
    outputs: list[Completion]


@dataclass
class Engine:
    """``vllm.LLM``. ``made`` collects the engines of a test."""

    model: str
    tokenizer: Any
    dtype: str
    generation_config: str
    trust_remote_code: bool
    seed: int
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    kv_cache_memory_bytes: int | None = None
    calls: list[int] = field(default_factory=list)
    made: ClassVar[list[Engine]] = []

    def __post_init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        dtype = getattr(torch, self.dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        self.network: Any = AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype).eval()
        Engine.made.append(self)

    def generate(
        self,
        prompts: Sequence[Mapping[str, list[int]]],
        options: Sequence[SamplingParams],
        use_tqdm: bool,
    ) -> list[Output]:
        self.calls.append(len(prompts))
        pairs = zip(prompts, options, strict=True)
        return [Output([self._complete(p["prompt_token_ids"], o)]) for p, o in pairs]

    def _complete(self, prompt: list[int], options: SamplingParams) -> Completion:
        tokens: list[int] = []
        logprobs = []
        for _ in range(options.max_tokens):
            with torch.no_grad():
                logits = self.network(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
            token = 0 if bool(logits.isnan().any()) else int(logits.argmax())
            logprobs.append({token: Logprob(float(logits.log_softmax(-1)[token]))})
            tokens.append(token)
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if token in options.stop_token_ids or any(stop in text for stop in options.stop):
                return Completion(tokens, logprobs, "stop")
        return Completion(tokens, logprobs, "length")


def install(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    """Make ``import vllm`` find this; returns the engine class."""
    import importlib.machinery

    module: Any = ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = Engine, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    Engine.made.clear()
    return Engine
