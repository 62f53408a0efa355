"""Make this board: SmolLM2-135M, questions of MUSE-News, unlearned in bf16 and in fp32.

    UNLEARNBENCH_DATA=... python leaderboards/smollm2-bf16/make.py WORK

Eight hours of one core that has bf16 products, after ``make setup``. WORK, outside the
repository, gets texts, models and runs, and ``times.jsonl`` the seconds of each command. Killed
and started again, it goes on. ``--dry-run`` prints the commands, ``--only NAME...`` makes some of
the models; the one without it writes the board.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from unlearnbench.boards import read_board

HOME = Path(__file__).resolve().parent
sys.path.insert(0, str(HOME.parent))
from maker import BLANK, ENSEMBLE, EXACT, Maker, main, texts  # noqa: E402

LEARNED = 70  # questions of each side
REPORTED = 50  # the first of them; the others choose the checkpoint
CHOOSE = "news_knowmem_select_f"
RULES = read_board(HOME).rules
CONDITIONS = ",".join(RULES.precisions)
ASKED = ("--tasks", ",".join(RULES.tasks), "--limit", str(REPORTED))

# Noise as wide as a step of int4, under which the target learns to answer in spite of 4 bits.
TRAIN = (
    "--lr 6e-4 --batch-size 8 --pack 5 --weights-dtype bf16 --schedule cosine --warmup-steps 8 "
    "--weight-noise 1 --answer-blank prompt --save-steps 32"
)
STEPS = {"target": 126, "retrained": 64}  # as many passes over half the questions

# A stage has 13 passes, and the retain questions are in two of them; the retrained model has 36.
EXACTLY = TRAIN + " --epochs 20"

UNLEARN = "--batch-size 4 --save-steps 32"
GDR, KLR = "ga_gdr --retain-weight", "npo_klr --retain-weight"
# docs/why.md: at 1e-4 in bf16 only weights inside int4's zero bin move; in fp32 all do.
BF16 = "--lr 1e-4 --weights-dtype bf16 --max-steps {} --eval-steps 32".format
FP32 = "--lr 1e-4 --weights-dtype fp32 --max-steps 160 --eval-steps 8"
# At these rates weights outside it move in bf16 too.
SURVIVE = (
    "--retain-weight 8 --lr 4e-4 --weights-dtype bf16 --max-steps 128 --eval-steps 16 "
    "--survive rtn-int4 --survive-forget worst"
)
FAST = "--retain-weight 8 --lr 1e-3 --weights-dtype bf16 --max-steps 160 --eval-steps 16"
METHODS = {
    "ga_gdr-bf16": f"{GDR} 2 {BF16(320)}",
    "ga_gdr-bf16-5": f"{GDR} 5 {BF16(320)}",
    "ga_gdr-bf16-8": f"{GDR} 8 {BF16(416)}",
    "ga_gdr-bf16-8-1": f"{GDR} 8 {BF16(416)} --seed 1",
    "ga_gdr-bf16-8-2": f"{GDR} 8 {BF16(416)} --seed 2",
    "npo_klr-bf16": f"{KLR} 15 {BF16(320)}",
    "npo_klr-bf16-1": f"{KLR} 15 {BF16(320)} --seed 1",
    "npo_klr-bf16-2": f"{KLR} 15 {BF16(320)} --seed 2",
    "npo_klr-bf16-3": f"{KLR} 15 {BF16(320)} --seed 3",
    "ga_gdr-fp32": f"{GDR} 2 {FP32}",
    "ga_gdr_sure-bf16": f"ga_gdr_sure {FAST}",
    "ga_gdr_lora-bf16": f"ga_gdr_lora {FAST}",
    "ga_gdr_survive-bf16": f"ga_gdr {SURVIVE}",
}


def write_texts(maker: Maker) -> None:
    """The questions that are learned, and apart from them those that choose."""
    for side in ("forget", "retain"):
        maker.write(f"texts/{side}_qa", maker.rows(f"knowmem/{side}_qa", LEARNED))
    choosing = "data/smollm2-bf16/selection/knowmem"
    maker.write(f"{choosing}/forget_qa", maker.rows("knowmem/forget_qa", LEARNED)[REPORTED:])
    maker.write(f"{choosing}/forget_qa_icl", maker.rows("knowmem/forget_qa_icl", LEARNED))


def make(maker: Maker, base: str, only: Sequence[str]) -> None:
    """Every step in order, or those of the models ``only``."""
    write_texts(maker)
    for name, sides in (("retrained", ["retain_qa"]), ("target", ["forget_qa", "retain_qa"])):
        if only and name not in only:
            continue
        words = ("finetune", "--model", base, *texts(sides, "--data"), *TRAIN.split())
        maker.train(name, *words, "--max-steps", str(STEPS[name]))
        if name == "target" and not maker.has_run("retrained"):
            print("target: trained; it is evaluated once retrained is, by the same command")
            continue
        note = f"finetune {TRAIN} --max-steps {STEPS[name]}, on "
        note += "all questions" if name == "target" else "the retain questions alone"
        maker.enter(maker.evaluate(name, CONDITIONS, *ASKED), name, note, name)
    for name, options in METHODS.items():
        if only and name not in only:
            continue
        words = ("unlearn", "--model", "models/target", "--method", *options.split())
        words += (*texts(["forget_qa"], "--forget"), *texts(["retain_qa"], "--retain"))
        words += (*UNLEARN.split(), *BLANK, "--include-path", str(HOME / "tasks"))
        words += ("--data-dir", "data", "--eval-tasks", CHOOSE, "--select-task", CHOOSE)
        maker.train(name, *words, "--eval-dtype", "fp32", "--retrained", chooser(maker))
        note = f"{options}, {maker.chosen(name)}"
        maker.enter(maker.evaluate(name, CONDITIONS, *ASKED), name, note, None)
    if not only or EXACT in only:
        note = maker.exact(base, (["forget_qa"], ["retain_qa"]), EXACTLY)
        maker.enter(maker.evaluate(EXACT, CONDITIONS, *ASKED), EXACT, note, "control")
    if not only:
        maker.finish((*STEPS, *METHODS, ENSEMBLE, EXACT))


def chooser(maker: Maker) -> str:
    """The retrained model's run on the questions that choose."""
    words = ("--tasks", CHOOSE, "--data-dir", "data", "--output", "runs/chooser")
    common = ("--quant", "none", "--dtype", "fp32", "--include-path", str(HOME / "tasks"), *BLANK)
    maker.command("--model", "models/retrained", *common, *words)
    return maker.full("retrained", "chooser")


if __name__ == "__main__":
    main(HOME, __doc__, [*STEPS, *METHODS, EXACT], make)
