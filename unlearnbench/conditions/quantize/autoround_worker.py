"""AutoRound in a process of its own: reads ``job.json`` and the model ``full`` where it stands, and
leaves the GPTQ folder ``packed``; see ``autoround.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Quantize. What the library raises ends the process, whose last line it is."""
    import auto_round
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from unlearnbench.checkpoints.limits import auto_class

    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    on_cpu = job["device"] == "cpu"
    tokenizer = AutoTokenizer.from_pretrained("full", local_files_only=True)
    tokenizer.pad_token = None  # how pads are known is told below
    model = auto_class(AutoConfig.from_pretrained("full", local_files_only=True)).from_pretrained(
        "full", local_files_only=True, dtype=torch.float32 if on_cpu else "auto"
    )
    how = auto_round.SignRoundConfig(
        bits=job["bits"], group_size=job["group_size"], sym=True, iters=job["iterations"]
    )
    rounder: Any = auto_round.AutoRound(
        model,
        tokenizer,
        scheme="W4A16",
        alg_configs=[how],
        dataset=batches(job["texts"], job["batch_size"]),
        seqlen=2,  # what is shorter would be passed over
        nsamples=len(job["texts"]),
        batch_size=job["batch_size"],
        device_map=job["device"],
        seed=job["seed"],
        amp=not on_cpu,
        enable_torch_compile=False,
    )
    rounder.quantize_and_save("packed", format="auto_gptq")


def batches(texts: list[list[int]], size: int) -> list[dict[str, Any]]:
    """Texts as token ids, ``size`` a batch, filled up to the longest of all. The library takes a
    text's last token, where it repeats, for filling, and leaves it out of the error.
    """
    import torch

    longest = max(map(len, texts))
    rows = torch.tensor([text + text[-1:] * (longest - len(text)) for text in texts])
    masks = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    parts = zip(rows.split(size), masks.split(size), strict=True)
    return [{"input_ids": ids, "attention_mask": mask} for ids, mask in parts]


if __name__ == "__main__":
    main()
