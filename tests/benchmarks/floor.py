"""What stops an evaluation from being faster: the operations that it cannot do without, at the
machine's own peak.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gauge import spread
from tests.benchmarks.samples import TASKS, requests_of, scored
from unlearnbench.checkpoints.checkpoint import DTYPES
from unlearnbench.models.floor import forward_flops, generating_flops, matmul_peak
from unlearnbench.requests import Generate

__all__ = ["measure_floor"]


def measure_floor(folder: Path, options: Namespace) -> dict[str, Any]:
    """By task, operations of dense products and the seconds that they take at the peak, which is
    measured five times. Every text is scored once, what prompts share is run once, a prompt needs
    logits after its last token only; an answer is as long as it may be, or one token where a stop
    string may end it. Memory, which bounds decoding, softmax and everything else are left out: no
    evaluation in this dtype that computes these products is faster.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dtype = getattr(torch, DTYPES[options.dtype])
    peaks = [matmul_peak(dtype, options.device) for _ in range(5)]
    found: dict[str, Any] = {"peak GFLOP/s": spread([peak / 1e9 for peak in peaks])}
    total = 0.0
    for task in TASKS:
        asked = requests_of(task, options.limit)
        ids = [tokenizer(r.prompt if isinstance(r, Generate) else r.text).input_ids for r in asked]
        if scored(asked):
            flops = forward_flops(model, [len(row) for row in ids])
        else:
            flops = generating_flops(model, ids, [r for r in asked if isinstance(r, Generate)])
        found[task] = {"GFLOP": flops / 1e9, "seconds": spread([flops / peak for peak in peaks])}
        total += flops
    found["all"] = {"GFLOP": total / 1e9, "seconds": spread([total / peak for peak in peaks])}
    print(f"floor: {json.dumps(found, default=str)}", file=sys.stderr, flush=True)
    return found
