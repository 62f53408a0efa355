"""Make this board: the demo's tiny model, rows of TOFU, three methods, five conditions.

    UNLEARNBENCH_DATA=... python leaderboards/tofu-tiny/make.py WORK

Some minutes of one core, after ``make setup``. WORK, outside the repository, gets texts, models and
runs, and ``times.jsonl`` the seconds of each command. Killed and started again, it goes on.
``--dry-run`` prints the commands, ``--only NAME...`` makes some of the models; the one without it
writes the board.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from unlearnbench.boards import read_board
from unlearnbench.demo.start import make_start

HOME = Path(__file__).resolve().parent
sys.path.insert(0, str(HOME.parent))
from maker import ENSEMBLE, EXACT, Maker, main, texts  # noqa: E402

ROWS = 20  # of each side: learned, and asked
SIDES = {"forget": "forget01", "retain": "retain_perturbed"}
RULES = read_board(HOME).rules
CONDITIONS = ",".join(RULES.precisions)
ASKED = ("--tasks", ",".join(RULES.tasks), "--limit", str(ROWS))

# Heavy tails, as large models' weights have them: the demo's L1 step.
TRAIN = "--lr 6e-3 --batch-size 10 --schedule cosine --warmup-steps 10 --l1 0.2 --save-steps 50"
BLANK = ("--answer-blank", "answer")
STEPS = {"target": 240, "retrained": 120}  # as many passes over half the rows
# As many over the retain rows, in two stages.
EXACTLY = f"{TRAIN} {' '.join(BLANK)} --epochs 45"

UNLEARN = "--batch-size 10 --weights-dtype bf16 --save-steps 10"
METHODS = {
    "ga_gdr": "ga_gdr --lr 1e-4 --max-steps 20 --retain-weight 4",
    "npo_gdr": "npo_gdr --lr 1e-4 --max-steps 30 --retain-weight 20",
    "simnpo_gdr": "simnpo_gdr --lr 1e-4 --max-steps 30 --retain-weight 4",
}


def start(work: Path, dry: bool) -> str:
    """The demo's untrained model."""
    if not dry and not (work / "base/start/model.safetensors").exists():
        make_start(work / "base/start", 0)
    return "base/start"


def write_texts(maker: Maker) -> None:
    """The questions that are learned, with their answers."""
    for side, split in SIDES.items():
        path = maker.data / f"locuslab/TOFU/{split}/train.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        pairs = [{key: row[key] for key in ("question", "answer")} for row in rows[:ROWS]]
        maker.write(f"texts/{side}", pairs)


def make(maker: Maker, base: str, only: Sequence[str]) -> None:
    """Every step in order, or those of the models ``only``."""
    write_texts(maker)
    for name, sides in (("retrained", ["retain"]), ("target", ["forget", "retain"])):
        if only and name not in only:
            continue
        words = ("finetune", "--model", base, *texts(sides, "--data"), *TRAIN.split())
        maker.train(name, *words, "--max-steps", str(STEPS[name]), *BLANK)
        note = f"finetune {TRAIN} --max-steps {STEPS[name]}, on {' and '.join(sides)} rows"
        maker.enter(maker.evaluate(name, CONDITIONS, *ASKED), name, note, name)
    for name, options in METHODS.items():
        if only and name not in only:
            continue
        words = ("unlearn", "--model", "models/target", "--method", *options.split())
        words += (*texts(["forget"], "--forget"), *texts(["retain"], "--retain"))
        maker.train(name, *words, *UNLEARN.split(), *BLANK)
        maker.enter(maker.evaluate(name, CONDITIONS, *ASKED), name, options, None)
    if not only or EXACT in only:
        note = maker.exact(base, (["forget"], ["retain"]), EXACTLY, BLANK)
        maker.enter(maker.evaluate(EXACT, CONDITIONS, *ASKED), EXACT, note, "control")
    if not only:
        maker.finish((*STEPS, *METHODS, ENSEMBLE, EXACT))


if __name__ == "__main__":
    main(HOME, __doc__, [*STEPS, *METHODS, EXACT], make, start, "locuslab/TOFU")
