"""How much memory and time the commands take that compare two checkpoints, against their size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_tokenizer

pytestmark = pytest.mark.bench

# Anonymous memory only: pages of the mapped files are the kernel's to drop.
_PROGRAM = """
import re, sys, threading, time
import torch, transformers, bitsandbytes, safetensors.torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from unlearnbench.cli import main
def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
before, most = held(), [0]
def watch():
    while True:
        most[0] = max(most[0], held())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
try:
    main(sys.argv[1:])
except SystemExit as error:
    assert error.code == 0, error.code
print("KIB", most[0] - before, "SECONDS", time.process_time(), "KIB")
"""


def run(*arguments: str) -> tuple[float, float]:
    """MiB above the imports, and seconds of all threads."""
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    used, seconds = done.stdout.split("KIB")[1].split("SECONDS")
    return int(used) / 2**10, float(seconds)


def pair(folder: Path, hidden: int, inner: int, layers: int, heads: int) -> tuple[str, str, float]:
    """An unlearned checkpoint, its target, and the MiB of either; bf16, weights and update are
    random, and small weights alone move, as at a low learning rate.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16)
    for name in ("target", "unlearned"):
        model.save_pretrained(folder / name, max_shard_size="200MB")
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for weight in model.parameters():
                small = weight.abs() < 2**-8  # inside int4's zero bin
                weight.add_(2e-5 * torch.randn_like(weight) * small)
    size = sum(f.stat().st_size for f in (folder / "target").glob("*.safetensors")) / 2**20
    return str(folder / "unlearned"), str(folder / "target"), size


def test_peak_memory_of_inspect(tmp_path: Path) -> None:
    unlearned, target, size = pair(tmp_path, 2048, 5632, 6, 16)
    quant = "rtn-int4,bnb-nf4"
    used, _ = run("inspect", "--model", unlearned, "--target", target, "--quant", quant)
    print(f"\ninspect: {used:.0f} MiB above its imports; each checkpoint has {size:.0f} MiB")


@pytest.mark.parametrize("strategy", ["grid", "concentrated"])
def test_a_layer_of_llama_2_7b_is_mended(strategy: str, tmp_path: Path) -> None:
    unlearned, target, size = pair(tmp_path, 4096, 11008, 1, 32)
    words = ["--model", unlearned, "--target", target, "--quant", "rtn-int4"]
    words += ["--strategy", strategy]
    out = str(tmp_path / "mended")
    used, seconds = run("repair", *words, "--out", out, "--report", str(tmp_path / "r.json"))
    print(
        f"\nrepair, {strategy}: {used:.0f} MiB above its imports and {seconds:.0f} s of a core; "
        f"each checkpoint, one layer, has {size:.0f} MiB"
    )
