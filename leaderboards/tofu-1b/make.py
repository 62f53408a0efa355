"""Make the board of TOFU's published 1B checkpoints. Never run: no hub and no GPU were there.

    python leaderboards/tofu-1b/make.py WORK              # all ten; the board is in WORK/tofu-1b
    python leaderboards/tofu-1b/make.py WORK --dry-run    # its commands

WORK, outside the repository, gets runs and the board; models and rows come from the hub, or rows
from $UNLEARNBENCH_DATA. A model and condition ask about 7,300 short forwards and 1,017 answers of
up to 200 tokens. Killed and started again, it goes on. ``--only NAME...`` evaluates some models.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from unlearnbench.boards.entry import Definition
from unlearnbench.util.validation import read_yaml_model

HOME = Path(__file__).resolve().parent
sys.path.insert(0, str(HOME.parent))
from maker import Maker  # noqa: E402

RULES = read_yaml_model(HOME / "definition.yaml", Definition)
FULL = "open-unlearning/tofu_Llama-3.2-1B-Instruct"
UNLEARNED = "open-unlearning/unlearn_tofu_Llama-3.2-1B-Instruct_forget10"
# The retrained model comes first: PrivLeak's zero is its run.
MODELS = {
    "retrained": f"{FULL}_retain90",
    "target": f"{FULL}_full",
    "altpo": f"{UNLEARNED}_AltPO_lr2e-05_beta0.05_alpha1_epoch10",
    "graddiff": f"{UNLEARNED}_GradDiff_lr1e-05_alpha5_epoch10",
    "idkdpo": f"{UNLEARNED}_IdkDPO_lr5e-05_beta0.05_alpha5_epoch10",
    "idknll": f"{UNLEARNED}_IdkNLL_lr5e-05_alpha2_epoch10",
    "npo": f"{UNLEARNED}_NPO_lr1e-05_beta0.1_alpha1_epoch10",
    "rmu": f"{UNLEARNED}_RMU_lr2e-05_layer10_scoeff100_epoch5",
    "simnpo": f"{UNLEARNED}_SimNPO_lr5e-05_b4.5_a1_d1_g0.25_ep10",
    "undial": f"{UNLEARNED}_UNDIAL_lr0.0001_beta10_alpha2_epoch10",
}
# The day of open-unlearning's logs; its mask hides end tokens in prompts, and so does this.
ASKED = ("--apply-chat-template", "--date-string", "10 Apr 2025", "--mask-pad-id", "--gradnorm")
ASKED += ("--tasks", ",".join(RULES.tasks), "--conditions", ",".join(RULES.precisions))
ASKED += ("--dtype", "bf16", "--seed", "0")


def evaluate(maker: Maker, name: str) -> None:
    """Under every condition; PrivLeak against the retrained model's run."""
    found = sorted((maker.work / "runs/retrained").glob("*/none"))
    reference = found[0] if found else Path("runs/retrained/MODEL/none")
    words = ("--model", MODELS[name], *ASKED, "--output", f"runs/{name}")
    against = ("--reference", str(reference)) if name != "retrained" else ()
    maker.command(*words, *against)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(MODELS), default=[])
    options = parser.parse_args()
    work = options.work.resolve()
    if HOME.parents[1] in (work, *work.parents):
        sys.exit(f"{work} is in the repository; take another folder")
    board, data = work / "tofu-1b", Path(os.environ.get("UNLEARNBENCH_DATA", work / "data"))
    maker = Maker(board, work, data, options.dry_run)
    if not options.dry_run:
        board.mkdir(parents=True, exist_ok=True)
        shutil.copy(HOME / "definition.yaml", board / "board.yaml")
    for name in options.only or MODELS:
        evaluate(maker, name)
    if options.only:
        return
    for name, model in MODELS.items():
        role = name if name in ("target", "retrained") else None
        maker.enter([f"runs/{name}"], name, model, role)
    for what in ("verify", "build"):
        maker.command("leaderboard", what, str(board))


if __name__ == "__main__":
    main()
