"""Who is measured in `make bench`: our adapter, a plain evaluator as published ones are, and
lm-eval's HFLM. All get the same prompts, texts and limits of tokens; ours and HFLM end an answer at
its stop string, the plain one cuts it there afterwards.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Score
from unlearnbench.util.text import cut_at_stop

__all__ = ["NAMES", "Harness", "Ours", "Plain", "Rival", "load_ours", "load_plain"]

NAMES = ("ours", "plain", "hflm")


class Rival(Protocol):
    """Answers by request id: texts, and the sum of a text's log-probabilities."""

    def generate(self, requests: Sequence[Generate]) -> Mapping[str, str]: ...

    def score(self, requests: Sequence[Score]) -> Mapping[str, float]: ...


class Ours:
    """The adapter as the evaluator calls it."""

    def __init__(self, model: HFModel) -> None:
        self.model = model

    def generate(self, requests: Sequence[Generate]) -> Mapping[str, str]:
        return {answer.id: answer.text for answer in self.model.generate(requests)}

    def score(self, requests: Sequence[Score]) -> Mapping[str, float]:
        return {answer.id: float(answer.logprobs.sum()) for answer in self.model.score(requests)}


def load_plain(folder: Path, precision: str, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """Model and tokenizer through transformers alone; bitsandbytes as its users load it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    options: dict[str, Any] = {
        "none": {},
        "bnb-int8": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
        "bnb-fp4": {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=dtype
            )
        },
    }[precision]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device, **options)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def load_ours(folder: Path, options: Namespace) -> Ours:
    """Our adapter at ``none``, as the evaluator loads it."""
    from unlearnbench.conditions import find_condition
    from unlearnbench.conditions.load import prepare_all
    from unlearnbench.conditions.options import KernelOptions

    asked = KernelOptions.of({"dtype": options.dtype, "device": options.device})
    (prepared,) = prepare_all(str(folder), [find_condition("none")], asked)
    return Ours(prepared.load())


class Plain:
    """One prompt at a time, one token at a time: what the published evaluators do."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._pad = tokenizer.pad_token_id
        if self._pad is None:
            self._pad = tokenizer.eos_token_id

    def _ids(self, text: str) -> torch.Tensor:
        found = self.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        ids: torch.Tensor = found.input_ids.to(self.model.device)
        return ids

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return int(self._ids(text).shape[1])

    def generate(self, requests: Sequence[Generate]) -> Mapping[str, str]:
        answers = {}
        for request in requests:
            ids = self._ids(request.prompt)
            with torch.no_grad():
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=request.max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    pad_token_id=self._pad,
                )
            text = self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            answers[request.id] = cut_at_stop(text, request.stop)
        return answers

    def score(self, requests: Sequence[Score]) -> Mapping[str, float]:
        answers = {}
        for request in requests:
            ids = self._ids(request.text)
            with torch.no_grad():
                logits = self.model(ids).logits
            logprobs = torch.nn.functional.log_softmax(logits[0], dim=-1)
            each = [logprobs[i, token].item() for i, token in enumerate(ids[0, 1:])]
            answers[request.id] = sum(each)
        return answers


class Harness:
    """lm-eval's HFLM on a model that is loaded already."""

    def __init__(self, model: Any, tokenizer: Any, batch: str) -> None:
        from lm_eval.models.huggingface import HFLM

        # "auto" tries 64 texts of the model's longest first: more than most CPUs have memory for.
        self._lm: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)

    def generate(self, requests: Sequence[Generate]) -> Mapping[str, str]:
        asked = [
            self._instance(
                "generate_until",
                (
                    r.prompt,
                    {"until": list(r.stop), "max_gen_toks": r.max_new_tokens, "do_sample": False},
                ),
                at,
            )
            for at, r in enumerate(requests)
        ]
        found = self._lm.generate_until(asked, disable_tqdm=True)
        return {r.id: text for r, text in zip(requests, found, strict=True)}

    def score(self, requests: Sequence[Score]) -> Mapping[str, float]:
        asked = [
            self._instance("loglikelihood_rolling", (r.text,), at) for at, r in enumerate(requests)
        ]
        found = self._lm.loglikelihood_rolling(asked, disable_tqdm=True)
        return {r.id: float(value) for r, value in zip(requests, found, strict=True)}

    def _instance(self, kind: Any, arguments: tuple[Any, ...], at: int) -> Any:
        from lm_eval.api.instance import Instance

        return Instance(request_type=kind, doc={}, arguments=arguments, idx=at)
