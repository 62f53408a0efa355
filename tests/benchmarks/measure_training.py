"""Measure training on real MUSE-News rows and print the table of docs/methods.md.

    make training        # on SmolLM2-135M, some 20 minutes on 2 cores

Needs UNLEARNBENCH_DATA. Each row is made in a process of its own, so that its peak memory is its
own. Seconds a step are medians over all steps but the first: on the clock, and of processor time,
which other jobs on the machine move less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.benchmarks.measure_precisions import unpacked

TEXTS = 2  # of each set: NPO's reference is computed for all of the forget set
ROWS: dict[str, list[str]] = {
    "finetune": ["finetune", "--max-steps", "10"],
    "ga_gdr": ["unlearn", "--method", "ga_gdr", "--max-steps", "5"],
    "npo_klr": ["unlearn", "--method", "npo_klr", "--max-steps", "5"],
    "npo_klr, LoRA of rank 8": ["unlearn", "--method", "npo_klr_lora", "--max-steps", "5"],
}


def measure(arguments: list[str]) -> dict[str, float]:
    """One row, in this process: seconds a step, of everything, and MiB at the peak."""
    from unlearnbench.cli import main
    from unlearnbench.training.trainer import UnlearnTrainer

    ends: list[tuple[float, float]] = []
    log = UnlearnTrainer.log

    def note(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            ends.append((time.perf_counter(), time.process_time()))
        log(self, logs, start_time)

    UnlearnTrainer.log = note  # type: ignore[method-assign]
    start = time.perf_counter()
    try:
        main(arguments)
    except SystemExit as stopped:
        if stopped.code:
            raise
    clock, processor = (
        statistics.median(later[i] - sooner[i] for sooner, later in pairwise(ends)) for i in (0, 1)
    )
    return {
        "step": clock,
        "processor": processor,
        "all": time.perf_counter() - start,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def run_apart(arguments: Sequence[str]) -> dict[str, float]:
    """The row of a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.measure_training", "--one"]
    done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def take(data: Path, name: str, folder: Path) -> str:
    """The first rows of a MUSE-News split that are not blank, as a file."""
    source = data / f"muse-bench/MUSE-News/{name}.jsonl"
    lines = source.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["text"].strip()][:TEXTS]
    path = folder / f"{name.replace('/', '-')}.jsonl"
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return str(path)


def main() -> None:
    """Measure and print."""
    from tabulate import tabulate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--batch-size", default="4")
    parser.add_argument("--max-length", default="256")
    parser.add_argument("--one", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    if not os.environ.get("UNLEARNBENCH_DATA"):
        sys.exit("set UNLEARNBENCH_DATA to a folder with muse-bench/MUSE-News")
    data = Path(os.environ["UNLEARNBENCH_DATA"])
    lines = []
    shared = ["--batch-size", options.batch_size, "--max-length", options.max_length]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = unpacked(options.model, folder / "model")
        forget, retain = take(data, "raw/forget", folder), take(data, "privleak/retain", folder)
        for number, (name, arguments) in enumerate(ROWS.items()):
            given = ["--model", model, "--out", str(folder / str(number)), *shared]
            given += ["--save-steps", "0"]
            given += ["--data", forget] if name == "finetune" else ["--forget", forget]
            given += [] if name == "finetune" else ["--retain", retain]
            row = run_apart([*arguments, *given])
            print(name, row, file=sys.stderr, flush=True)
            lines.append(
                [name, *(f"{row[key]:.1f}" for key in ("step", "processor", "all", "peak"))]
            )
    head = ["", "s a step", "processor s a step", "s in all", "peak MiB"]
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{platform.machine()}, {threads} threads, {' '.join(shared)}\n")
    print(tabulate(lines, headers=head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
