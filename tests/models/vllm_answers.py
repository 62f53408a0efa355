"""Run in vLLM's environment (``make vllm-env``): a real vLLM's answers beside those of our own
adapter, in fp32.

    python -m tests.models.vllm_answers FOLDER CONDITION...
    python -m tests.models.vllm_answers FOLDER --deployed PACKED

In the second the packed folder runs by vLLM's own kernels, and both in bf16. Prints one line of
JSON: by condition, how many texts were compared, those that differ, and how far the
log-probabilities of vLLM's tokens are at most from our network's.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from tests.conftest import CORPUS, load_at
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import deployed
from unlearnbench.conditions.load import prepare_all
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.models.hf import HFModel
from unlearnbench.models.vllm import VllmModel, open_vllm
from unlearnbench.requests import Generate

PROMPTS = [Generate(str(n), CORPUS[n][: 8 + 9 * n], 24, ("gate",)) for n in range(10)]


def compare(folder: str, condition: str) -> dict[str, Any]:
    own = load_at(open_checkpoint(folder, LoadOptions()), condition, kernel="dequantized")
    return between(own, open_vllm(own))


def compare_deployed(folder: str, packed: str) -> dict[str, Any]:
    options = KernelOptions.of({"dtype": "bf16", "device": "cpu", "deployed": (packed,)})
    (prepared,) = prepare_all(folder, deployed.specs([packed], options), options)
    own = prepared.load()
    one = prepared.plan.materials.deployed[prepared.spec.name]
    assert one.packed is not None
    return between(own, open_vllm(own, one.packed))


def between(own: HFModel, model: VllmModel) -> dict[str, Any]:
    from vllm import SamplingParams

    theirs = {answer.id: answer.text for answer in model.generate(PROMPTS)}
    ours = {answer.id: answer.text for answer in own.generate(PROMPTS)}
    apart = 0.0
    for request in PROMPTS:
        ids = own.tokens.prompt(request)
        asked = SamplingParams(temperature=0.0, max_tokens=16, logprobs=1, ignore_eos=True)
        (output,) = model._engine.generate([{"prompt_token_ids": ids}], [asked], use_tqdm=False)
        new = list(output.outputs[0].token_ids)
        with torch.no_grad():
            logits: Any = own.network(torch.tensor([[*ids, *new]])).logits[0].float()
        known = logits.log_softmax(-1)[len(ids) - 1 : -1]
        for row, token, found in zip(known, new, output.outputs[0].logprobs, strict=True):
            apart = max(apart, abs(float(row[token]) - found[token].logprob))
    return {
        "texts": len(set(ours.values())),
        "differ": {name: [ours[name], theirs[name]] for name in ours if ours[name] != theirs[name]},
        "apart": apart,
    }


if __name__ == "__main__":
    if sys.argv[2] == "--deployed":
        print(json.dumps(compare_deployed(sys.argv[1], sys.argv[3])))
    else:
        print(json.dumps({name: compare(sys.argv[1], name) for name in sys.argv[2:]}))
