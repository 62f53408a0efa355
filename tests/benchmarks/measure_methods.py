"""Every method on the demo's models: what it forgets, and what comes back at 4 bits.

    make methods-table                                # the same command again goes on
    make methods-table DEMO="--demo 0=demo-out"       # takes a finished demo's models and runs

Trains each row of ``rows()`` for each seed, evaluates KnowMem_f and KnowMem_r at ``CONDITIONS``,
sets it against the seed's target and retrained model, and writes a cell to ``OUT/cells``. All rows
of one seed come before the next seed. At the end the table is printed (``methods_table.py``); with
``--write`` the cells go to docs/methods-table.json, and the page beside it is made anew.

The demo's own methods are trained as it does. Another of one training stops where the demo's do
(KnowMem_f at most a quarter of the target's) or after 108 steps; the others take 72, about where
the demo's stop. Nothing is tuned for a row but ``WORST``: the demo's learning rate on weights
rounded to bf16, but 1e-3 in fp32, as the demo's SURE, where a method is one of large or
concentrated changes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # sums in another order give other weights

from tests.benchmarks.methods_table import gather, read, table, write_page
from tests.methods.every import method_with
from unlearnbench.checkpoints.origin import FILE
from unlearnbench.demo import work
from unlearnbench.demo.recipe import (
    CORPUS,
    DTYPE,
    ENDS,
    ENSEMBLE,
    EXACT,
    METHODS,
    TASKS,
    DemoOptions,
    ends_options,
)
from unlearnbench.demo.start import DATA, FORGET, RETAIN
from unlearnbench.errors import UnlearnbenchError, one_line
from unlearnbench.evaluation.evaluate import evaluate
from unlearnbench.evaluation.score import score_checkpoint
from unlearnbench.methods import find_method, pieces
from unlearnbench.recovery.compare import compare, open_comparison
from unlearnbench.results import FULL
from unlearnbench.runs.folder import read_run
from unlearnbench.training.job import Job, finetune, unlearn
from unlearnbench.training.options import SelectOptions, TrainOptions
from unlearnbench.util.files import write_text
from unlearnbench.util.process import quiet_transformers

FORGET_TASK, RETAIN_TASK = TASKS[0], TASKS[2]
ASKED = FORGET_TASK, RETAIN_TASK
CONDITIONS = (FULL, "rtn-int4", "bnb-nf4")
GOAL, MOST, WHOLE, EVERY = 0.25, 108, 72, 12
OTHER_TEXTS = (str(DATA / "raw/holdout.jsonl"),)  # that the target never saw
# Losses of a sequence are larger than those of a token, and so is what holds them (as the demo's).
SEQUENCES = {"npo": 60.0, "dpo": 60.0}
# Chosen on seed 0 (docs/methods.md, Survive).
WORST: Mapping[str, Any] = {
    **{"survive": "rtn-int4", "survive_forget": "worst"},
    **{"lr": 2e-4, "weights_dtype": "fp32", "max_steps": 240},
}
LARGE: Mapping[str, Any] = {"lr": 1e-3, "weights_dtype": "fp32"}


@dataclass(frozen=True)
class Row:
    """A method as it is trained."""

    name: str
    method: str = ""
    """Where that is not its name."""
    knobs: Mapping[str, Any] | None = None
    """None: the retain term's factor alone."""
    options: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    """Of the job, as ``spans``."""
    after: str = ""
    """The row whose model it begins with, in place of the target."""

    @property
    def of(self) -> str:
        """The method's name."""
        return self.method or self.name


KNOWN = (
    Row("retrained"),
    *map(Row, METHODS),
    Row("ga_chunk", "ga", options={"chunk": 32, "max_steps": 9}),
    Row("llmu"),
    Row("kga"),
    Row("flearn", knobs={"alpha": 0.5}),
    Row("flearn_large", "flearn", {"alpha": 4.0}),
    Row("loo_klr"),
    Row("quark", knobs={}, options={"max_steps": 18}),  # of each of four rounds
    Row("pcgu", knobs={}, options={"lr": 0.05}),  # as long as an AdamW step of the others
    Row("ga_gdr_survive", "ga_gdr", options={"survive": "rtn-int4"}),
    Row("ga_gdr_survive_worst", "ga_gdr", {"retain_weight": 8.0}, WORST),
    Row("depn", knobs={}),
    Row("grom", knobs={}),
    Row("unlikelihood_gdr_mlp_early", options=LARGE),
    Row("ga_gdr_lora", options=LARGE),
    Row("npo_gdr_sam"),
    Row("npo_gdr_ilu"),
    Row("npo_gdr_lau"),
    Row("undo", knobs={}, options=LARGE, after="ga_gdr"),
    Row("quail_gdr"),
    Row("entropy_gdr_oeu"),
    Row("eul", knobs={}, options=LARGE),
    Row("whp_ft", knobs={}),
    Row("whp_ft_anchors", "whp_ft", {}, given={"anchors": "names"}),
    Row("pdu_gdr_dual", knobs={}),
    Row("unlikelihood_gdr_mlp_traced", options=LARGE),
    Row("unlikelihood_gdr"),
    Row("ga_gdr_spans", "ga_gdr", given={"spans": "entities"}),
)


def rows() -> list[Row]:
    """Those that have settings of their own, then one for every other method file."""
    trained = KNOWN[1:]
    told = {piece.about.name for row in trained for piece in find_method(row.of).pieces}
    others = [piece for name, piece in pieces().items() if name not in told]
    return [*KNOWN, *(Row(method_with(piece)) for piece in others)]


def knobs_of(row: Row) -> dict[str, Any]:
    """The options of its method: unless they are told, the demo's factor of its retain term."""
    method = find_method(row.of)
    if row.name in METHODS:
        return dict(METHODS[row.name].knobs)
    if row.knobs is not None:
        return dict(row.knobs)
    if method.piece("whole") or "retain_weight" not in method.numbers:
        return {}
    return {"retain_weight": SEQUENCES.get(row.of.split("_")[0], 4.0)}


def options_of(row: Row, seed: int) -> TrainOptions:
    """How it is trained."""
    if row.name in METHODS:
        return METHODS[row.name].options(seed)
    usual = {"weights_dtype": "bf16-rounded", "max_steps": WHOLE if in_parts(row) else MOST}
    base = TrainOptions(lr=8e-5, batch_size=8, save_steps=EVERY, seed=seed)
    return base.model_copy(update={**usual, **row.options})


def in_parts(row: Row) -> bool:
    """Whether it has several trainings, of which none is evaluated on the way."""
    return find_method(row.of).piece("whole") is not None or "chunk" in row.options


@dataclass(frozen=True)
class Home:
    """The models and runs of one seed: a finished demo's where it has them, else made here."""

    made: DemoOptions
    demo: DemoOptions
    conditions: tuple[str, ...] = CONDITIONS

    def model(self, name: str) -> Path:
        """A checkpoint's folder."""
        there = self.demo.model(name)
        return there if (there / FILE).exists() else self.made.model(name)

    def runs(self, name: str) -> Path:
        """What a trained model scores on ``ASKED``, measured unless it is."""
        found = [list(self.demo.runs(name).glob(f"*/{c}/run.json")) for c in self.conditions]
        if all(found):
            return self.demo.runs(name)
        fields: dict[str, Any] = {"dtype": DTYPE, "answer_blank": CORPUS.answer_blank}
        own = self.made.runs(name)
        evaluate(self.model(name), ASKED, self.conditions, output=own, **fields)
        return own

    @property
    def start(self) -> Path:
        """What all others are made from."""
        for own in (self.demo, self.made):
            if (own.model("start") / "config.json").exists():
                return own.model("start")
        work.start("start", self.made)
        return self.made.model("start")

    def make_end(self, name: str) -> None:
        """The target, the retrained model, or what forgets exactly before it forgot."""
        out, start = self.model(name), self.start
        if (out / FILE).exists():
            return
        training = ends_options(name, self.made.seed, dense=False)
        every = {"target": (*FORGET, *RETAIN), ENSEMBLE: (*RETAIN, *FORGET)}
        texts = every.get(name, RETAIN)
        resume = (out / ".training").is_dir()
        finetune(Job(str(start), out, texts, options=training, corpus=CORPUS, resume=resume))


def value(runs: Path, condition: str, task: str) -> float:
    """A score that there is."""
    (folder,) = runs.glob(f"*/{condition}")
    found = read_run(folder).tasks[task].value
    assert found is not None, "KnowMem always has one"
    return round(found, 4)


def train(row: Row, home: Home) -> None:
    """Unlearn, unless that is done."""
    out, method = home.model(row.name), find_method(row.of)
    if (out / FILE).exists():
        return
    if row.name == EXACT:
        home.make_end(ENSEMBLE)
        begun, base, going = home.model(ENSEMBLE), str(home.start), (out / ".training").is_dir()
        job = Job(str(begun), out, FORGET, RETAIN, base=base, corpus=CORPUS, resume=going)
        unlearn(job, EXACT)
        return
    goal = METHODS[row.name].goal if row.name in METHODS else GOAL
    target = value(home.runs("target"), FULL, FORGET_TASK)
    select = SelectOptions(
        eval_tasks=FORGET_TASK, retrained=str(goal * target), eval_steps=EVERY, eval_dtype=DTYPE
    )
    unlearn(
        Job(
            str(home.model(row.after or "target")),
            out,
            FORGET,
            RETAIN if "retain" in method.data or "anchors" in row.given else (),
            auxiliary=OTHER_TEXTS if "auxiliary" in method.data else (),
            unseen=OTHER_TEXTS if "unseen" in method.data else (),
            base=str(home.start) if any(p.about.needs_base for p in method.pieces) else None,
            alternative="refuse" if method.takes_alternatives == "yes" else None,
            options=options_of(row, home.made.seed),
            corpus=CORPUS,
            select=None if in_parts(row) else select,
            score=partial(score_checkpoint, CORPUS),
            resume=(out / ".training").is_dir(),
            **row.given,
        ),
        row.of,
        knobs_of(row),
    )


def measure(row: Row, home: Home) -> dict[str, Any]:
    """Everything that is kept of a row."""
    found: dict[str, Any] = {"row": row.name, "method": row.of, "seed": home.made.seed}
    for name in ENDS:
        home.make_end(name)
    if row.name not in ENDS:
        train(row, home)
        record = json.loads((home.model(row.name) / FILE).read_bytes())
        selection = record.get("selection")
        found["steps"] = selection["chosen_step"] if selection else len(record["losses"])
        found["seconds"] = record["seconds"]
        codes = {code["precision"]: code for code in record.get("codes") or ()}
        found["codes"] = {n: round(c["changed"], 4) for n, c in codes.items() if n in CONDITIONS}
    runs = home.runs(row.name)
    target, retrained = map(home.runs, ENDS)
    found["scores"] = {c: {task: value(runs, c, task) for task in ASKED} for c in home.conditions}
    kept = ("full", "quantized", "target", "target_full", "recovered", "recovered_ci", "utility")
    found["back"] = {
        r.precision: {k: v for k in (*kept, "verdict") if (v := getattr(r, k)) is not None}
        for r in compare(open_comparison([runs], target, retrained, only=ASKED))
        if r.task == FORGET_TASK and r.precision in home.conditions
    }
    return found


def is_done(path: Path, conditions: tuple[str, ...]) -> bool:
    """Whether a cell has all that is asked for."""
    return path.exists() and set(conditions) <= set(json.loads(path.read_bytes())["scores"])


def cells(
    out: Path,
    seeds: list[int],
    demos: Mapping[int, Path],
    only: set[str],
    conditions: tuple[str, ...] = CONDITIONS,
) -> Iterator[Path]:
    """Measure what is not there, a seed after another."""
    for seed in seeds:
        made = DemoOptions(out / f"seed{seed}", seed)
        demo = DemoOptions(demos[seed], seed) if seed in demos else made
        home = Home(made, demo, conditions)
        for row in rows():
            path = out / "cells" / f"{row.name}-seed{seed}.json"
            if is_done(path, conditions) or (only and row.name not in only):
                continue
            try:
                found = measure(row, home)
            except UnlearnbenchError as error:  # the others are worth having
                print(f"{path.stem}: {one_line(error)}", flush=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(found, indent=1) + "\n")
            yield path


def main() -> None:
    """Do what is not done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("methods-out"))
    parser.add_argument("--seeds", default="0,1,2", help="none: no training")
    parser.add_argument("--demo", action="append", default=[], metavar="SEED=DIR")
    parser.add_argument("--rows", default="", help="only these")
    parser.add_argument("--quant", default=",".join(CONDITIONS), help="fewer conditions")
    parser.add_argument("--write", action="store_true", help="docs/methods-table.md too")
    options = parser.parse_args()
    quiet_transformers()
    demos = {int(s): Path(d) for s, _, d in (part.partition("=") for part in options.demo)}
    seeds = [] if options.seeds == "none" else [int(seed) for seed in options.seeds.split(",")]
    only = {name for name in options.rows.split(",") if name}
    for path in cells(options.out, seeds, demos, only, tuple(options.quant.split(","))):
        print(path.stem, flush=True)
    names = [row.name for row in rows()]
    print(table(gather(options.out / "cells", read()), names))
    if options.write:
        write_page(options.out / "cells", names)


if __name__ == "__main__":
    main()
