"""Measure every precision on one model and print the table of docs/precisions.md.

    make precisions        # on SmolLM2-135M, some 20 minutes on 2 cores

Each row is made in a process of its own, so that its peak memory is its own. KL is the mean over
the text's tokens of KL(fp32 || precision) in nats, over the whole vocabulary.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Of the rtn family those that other tables use.
RTN = (
    *("rtn-int8", "rtn-int6", "rtn-int5", "rtn-int5-g64-asym", "rtn-int4", "rtn-int4-asym"),
    *("rtn-int4-g32", "rtn-int4-g64", "rtn-int4-g128", "rtn-int4-g32-asym", "rtn-int4-g64-asym"),
    *("rtn-int3-g64-asym", "rtn-int2-g32-asym"),
)
TEXTS, NEW_TOKENS = 8, 32
# GPTQ takes minutes on 2 cores; AWQ and AutoRound are measured only where --quant names them.
SAMPLES = 4


def measure(model: str, name: str, kernel: str, reference: Path) -> dict[str, Any]:
    """One row, in this process; the fp32 row writes ``reference``, the others are held to it."""
    import torch

    from unlearnbench import conditions
    from unlearnbench.checkpoints.checkpoint import open_checkpoint
    from unlearnbench.checkpoints.options import LoadOptions
    from unlearnbench.conditions.base import Materials
    from unlearnbench.conditions.load import prepare
    from unlearnbench.conditions.options import KernelOptions
    from unlearnbench.conditions.quantize.calibration import pick_calibration
    from unlearnbench.requests import Generate
    from unlearnbench.util.process import quiet_imports

    quiet_imports()
    spec = conditions.find_condition(name)
    source = open_checkpoint(model, LoadOptions(), keep=False)
    calibration = pick_calibration("generic", (), SAMPLES, 0) if spec.calibrated else None
    start = time.perf_counter()
    options = KernelOptions.of({"dtype": "fp32", "device": "cpu", "quant_kernel": kernel})
    loaded = prepare(source, spec, options, Materials(calibration)).load()
    load_s = time.perf_counter() - start
    rows = [source.tokenizer(text)["input_ids"] for text in _texts()]
    inner: Any = loaded.network
    with torch.no_grad():
        inner(input_ids=torch.tensor([rows[0][:8]]))  # first use: kernels repack or compile
        start = time.perf_counter()
        found = [inner(input_ids=torch.tensor([row])).logits[0].log_softmax(-1) for row in rows]
        score_s = time.perf_counter() - start
    prompt = Generate("bench", _texts()[0][:200], NEW_TOKENS)
    start = time.perf_counter()
    made = next(iter(loaded.generate([prompt]))).n_tokens
    generate_s = time.perf_counter() - start
    if name == "fp32":
        torch.save(found, reference)
    expected = torch.load(reference)
    kl = [(e.exp() * (e - f)).sum(-1) for e, f in zip(expected, found, strict=True)]
    proof = loaded.condition.proof
    assert proof is not None
    return {
        "name": name,
        "kernel": loaded.condition.options.kernel or "-",
        "bits": 8 * proof.weight_bytes / proof.total_weights
        if spec.bits is None
        else spec.bits_per_weight,
        "error": proof.relative_error,
        "on_grid": proof.on_grid,
        "kl": float(torch.cat(kl).mean()),
        "load_s": load_s,
        "score": sum(map(len, rows)) / score_s,
        "generate": made / generate_s,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def _texts() -> list[str]:
    """A fixed text: the first documents of the demo corpus, which no calibration saw."""
    path = Path(__file__).parents[2] / "unlearnbench/demo/data/unlearnbench/demo/raw/retain.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()[:TEXTS]
    return [json.loads(line)["text"] for line in lines]


def run_apart(model: str, name: str, kernel: str, reference: Path) -> dict[str, Any] | str:
    """The row, or why there is none."""
    command = [sys.executable, __file__, "--model", model, "--one", name, kernel, str(reference)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        errors = [line for line in done.stderr.splitlines() if "Error" in line]
        return errors[-1] if errors else done.stderr[-200:]
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    from tabulate import tabulate

    head = [
        *("precision", "kernel", "bits/weight", "error", "KL to fp32", "load s"),
        *("scored tokens/s", "written tokens/s", "peak MiB"),
    ]
    lines = [
        [
            row["name"],
            row["kernel"],
            f"{row['bits']:.4g}",
            _error(row),
            f"{row['kl']:.4f}",
            f"{row['load_s']:.1f}",
            f"{row['score']:.0f}",
            f"{row['generate']:.1f}",
            f"{row['peak']:.0f}",
        ]
        for row in rows
    ]
    return tabulate(lines, headers=head, tablefmt="github", disable_numparse=True)


def _error(row: dict[str, Any]) -> str:
    """A star where the checkpoint already lay on the grid."""
    if row["error"] is None:
        return "-"
    star = "*" if row["on_grid"] and row["bits"] < 16 else ""
    return f"{row['error']:.4f}{star}"


def unpacked(model: str, folder: Path) -> str:
    """A GGUF file as a folder of fp32 safetensors, so that each row does not unpack it again."""
    if not model.endswith(".gguf"):
        return model
    from unlearnbench.checkpoints.checkpoint import open_checkpoint
    from unlearnbench.checkpoints.options import LoadOptions

    source = open_checkpoint(model, LoadOptions())
    source.model().save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--quant", help="names; default: all but most of the rtn family")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "KERNEL", "FILE"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.one:
        name, kernel, file = options.one
        print(json.dumps(measure(options.model, name, kernel, Path(file))))
        return
    from unlearnbench import conditions

    known = conditions.precisions()
    names = (
        options.quant.split(",")
        if options.quant
        else [n for n in known if n in RTN or not n.startswith(("rtn", "awq", "auto-round"))]
    )
    names = ["fp32", *(n for n in names if n != "fp32")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = unpacked(options.model, Path(folder) / "model")
        for name in names:
            kernels = known[name].kernels or ("auto",)
            for kernel in kernels[-1:] if known[name].calibrated else kernels:
                row = run_apart(model, name, kernel, Path(folder) / "fp32.pt")
                print(name, kernel, row, file=sys.stderr, flush=True)
                if isinstance(row, dict):
                    rows.append(row)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    print(f"{platform.machine()}, {len(rows)} rows\n\n{table(rows)}")


if __name__ == "__main__":
    main()
