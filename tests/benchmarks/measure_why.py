"""The experiment of docs/why.md: does the dtype of weights under training decide what comes back?

    make why               # hours on 2 cores; the same command again goes on

On the demo's dense model (without its L1 step), for each seed, method, learning rate and dtype: a
training that stops where the demo's do (KnowMem_f at most a quarter of the target's) or after 480
steps, its KnowMem_f at every precision, codes changed, and update survival. `--demo 0=DIR` measures
the unlearned models of a finished demo in the same way, and two more that are unlearned from its
sparse target in fp32. Each cell is written to ``OUT/cells`` when it is done. The most telling cells
come first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # sums in another order give other weights

from unlearnbench import conditions
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE
from unlearnbench.checkpoints.weights import open_weights
from unlearnbench.conditions.quantize.movable import limit
from unlearnbench.conditions.quantize.overlap import PrecisionOverlap, compare_codes
from unlearnbench.demo import work
from unlearnbench.demo.recipe import CORPUS, DTYPE, METHODS, TASKS, DemoOptions
from unlearnbench.demo.start import FORGET, RETAIN
from unlearnbench.results import FULL
from unlearnbench.training.options import SelectOptions
from unlearnbench.training.output import is_trained
from unlearnbench.util.files import write_text
from unlearnbench.util.process import quiet_transformers

FORGET_TASK, RETAIN_TASK = TASKS[0], TASKS[2]
PRECISIONS = (
    *("rtn-int8", "rtn-int6", "rtn-int5", "rtn-int4", "rtn-int4-g32", "rtn-int4-g64"),
    *("bnb-nf4", "bnb-fp4", "gguf-q8_0", "gguf-q4_0"),
)
DTYPES = ("fp32", "bf16-rounded", "bf16-sr", "bf16")
COMPARED = ("ga_gdr", "npo_klr")
RATES = (4e-5, 2e-5, 8e-5)
STEPS, EVERY = 480, 48


@dataclass(frozen=True)
class Cell:
    """One training."""

    seed: int
    method: str
    lr: float
    dtype: str

    @property
    def name(self) -> str:
        """Of its file and folders."""
        return f"{self.method}-{self.lr:g}-{self.dtype}"


def cells(seeds: list[int]) -> Iterator[Cell]:
    """The first seed at all rates, then the middle rate on all seeds, then the rest; bf16 itself,
    slow where the processor has no such products and nearly ``bf16-rounded``, last of all.
    """
    first = [(seeds[0], m, lr) for m, lr in itertools.product(COMPARED, RATES)]
    middle = [(seed, m, RATES[0]) for seed, m in itertools.product(seeds, COMPARED)]
    rest = list(itertools.product(seeds, COMPARED, RATES))
    first[2], first[3] = first[3], first[2]  # the second method's middle rate before the last rate
    for dtypes in (DTYPES[:-1], DTYPES[-1:]):
        for seed, method, lr in dict.fromkeys([*first, *middle, *rest]):
            for dtype in dtypes:
                yield Cell(seed, method, lr, dtype)


def make_target(home: DemoOptions) -> dict[str, float]:
    """The dense target and its KnowMem_f at every precision."""
    if not (home.model("start") / "config.json").exists():
        work.start("start", home)
    work.make_end("target", home)
    return scores("target", home, home.out / "runs")


def train(cell: Cell, home: DemoOptions, threshold: float, every: int = EVERY) -> None:
    """Unlearn, unless that is done; every: steps between evaluations."""
    from unlearnbench.evaluation.score import score_checkpoint
    from unlearnbench.training.job import Job, unlearn

    out, recipe = home.model(cell.name), METHODS[cell.method]
    if is_trained(out):
        return
    options = recipe.options(cell.seed).model_copy(
        update={
            "lr": cell.lr,
            "weights_dtype": cell.dtype,
            "max_steps": STEPS,
            "save_steps": every,
        }
    )
    select = SelectOptions(
        eval_tasks=FORGET_TASK,
        retrained=str(threshold),
        eval_steps=every,
        eval_dtype=DTYPE,
    )
    target = str(home.model("target"))
    job = Job(target, out, FORGET, RETAIN, options=options, corpus=CORPUS, select=select)
    score = partial(score_checkpoint, CORPUS)
    resume = (out / ".training").is_dir()
    unlearn(Job(**{**vars(job), "score": score, "resume": resume}), cell.method, recipe.knobs)


def scores(name: str, home: DemoOptions, runs: Path) -> dict[str, float]:
    """KnowMem_f of a model at every precision, by its name; KnowMem_r in full precision."""
    from unlearnbench.evaluation.evaluate import evaluate

    found = {}
    for task, precisions in ((FORGET_TASK, (FULL, *PRECISIONS)), (RETAIN_TASK, (FULL,))):
        results = evaluate(
            home.model(name),
            (task,),
            precisions,
            output=runs / task / name,
            dtype=DTYPE,
            answer_blank=CORPUS.answer_blank,
        )
        for result in results:
            key = "knowmem_r" if task == RETAIN_TASK else result.condition.name
            value = result.tasks[task].value
            assert value is not None, "KnowMem always has one"
            found[key] = value
    return found


def bins(name: str, home: DemoOptions) -> dict[str, PrecisionOverlap]:
    """Codes and survival of a model against the target, at every precision."""
    specs = conditions.resolve(PRECISIONS)
    with ExitStack() as stack:
        pair = [open_weights(str(home.model(n)), LoadOptions(), stack) for n in (name, "target")]
        layers = [found for _, found in compare_codes(pair[0], pair[1], specs)]
    return {
        spec.name: PrecisionOverlap(spec.name, tuple(layer[i] for layer in layers))
        for i, spec in enumerate(specs)
    }


def movable(home: DemoOptions, lr: float) -> tuple[float, float]:
    """The share of the target's inner weights that can move in bf16 at this learning rate; and of
    these the share that rtn-int4 rounds to 0.
    """
    with ExitStack() as stack:
        target = open_weights(str(home.model("target")), LoadOptions(), stack)
        weights = [target.read(name).float() for name in target.linear]
    moving = [w.abs() <= limit(lr, "bf16") for w in weights]
    int4 = conditions.find_condition("rtn-int4")
    inside = [
        moves & (conditions.levels(int4, w).values == 0)
        for moves, w in zip(moving, weights, strict=True)
    ]
    count = sum(int(moves.sum()) for moves in moving)
    share = count / sum(w.numel() for w in weights)
    return share, sum(int(held.sum()) for held in inside) / count


def measure(name: str, home: DemoOptions, runs: Path, target: dict[str, float]) -> dict[str, Any]:
    """Everything that is kept of an unlearned model."""
    record = json.loads((home.model(name) / FILE).read_bytes())
    own, codes, options = scores(name, home, runs), bins(name, home), record["options"]
    share, inside = movable(home, options["lr"])
    return {
        "model": "dense" if home.dense else "sparse",
        "seed": home.seed,
        "method": record["method"],
        "lr": options["lr"],
        "dtype": options["weights_dtype"],
        "steps": record["selection"]["chosen_step"],
        "reached": record["selection"]["reached"],
        "seconds": record["seconds"],
        "knowmem_f": own[FULL],
        "knowmem_r": own["knowmem_r"],
        "target_knowmem_f": target[FULL],
        "target_knowmem_r": target["knowmem_r"],
        "moved": codes[PRECISIONS[0]].changed_share,
        "movable": share,
        "inside": inside,
        "precisions": {
            p: {
                "knowmem_f": own[p],
                "target_knowmem_f": target[p],
                "survival": codes[p].survival,
                "codes_changed": 1 - codes[p].overlap,
            }
            for p in PRECISIONS
        },
    }


def keep(path: Path, found: dict[str, Any]) -> None:
    """Write a cell, and say what it found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")
    four = found["precisions"]["rtn-int4"]
    print(
        f"{path.stem}: {found['steps']} steps in {found['seconds']:.0f} s, KnowMem_f "
        f"{found['knowmem_f']:.1f}, at rtn-int4 {four['knowmem_f']:.1f}, survival "
        f"{four['survival']:.2f}",
        flush=True,
    )


def run_cells(out: Path, seeds: list[int]) -> None:
    """All trainings of the experiment that are not done."""
    for cell in cells(seeds):
        path = out / "cells" / f"{cell.name}-seed{cell.seed}.json"
        if path.exists():
            continue
        home = DemoOptions(out / f"seed{cell.seed}", cell.seed, dense=True)
        target = make_target(home)
        train(cell, home, METHODS[cell.method].goal * target[FULL])
        keep(path, measure(cell.name, home, home.out / "runs", target))


def run_demo(out: Path, folder: Path, seed: int) -> None:
    """The unlearned models of a finished demo at every precision; and those in fp32."""
    home, runs = DemoOptions(folder, seed), out / f"demo{seed}"
    target = scores("target", home, runs)
    for name in METHODS:
        path = out / "cells" / f"demo-{name}-seed{seed}.json"
        if not path.exists() and (home.model(name) / FILE).exists():
            keep(path, measure(name, home, runs, target))
    own = DemoOptions(out / f"sparse{seed}", seed)
    shutil.copytree(home.model("target"), own.model("target"), dirs_exist_ok=True)
    for method in COMPARED:
        recipe = METHODS[method]
        cell = Cell(seed, method, recipe.lr, "fp32")
        path = out / "cells" / f"sparse-{cell.name}-seed{seed}.json"
        if not path.exists():
            train(cell, own, recipe.goal * target[FULL], recipe.every)
            keep(path, measure(cell.name, own, own.out / "runs", target))


def main() -> None:
    """Do what is not done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("why-out"))
    parser.add_argument("--seeds", default="0,1,2", help="none: no training")
    parser.add_argument("--demo", action="append", default=[], metavar="SEED=DIR")
    options = parser.parse_args()
    quiet_transformers()
    for part in options.demo:
        seed, _, folder = part.partition("=")
        run_demo(options.out, Path(folder), int(seed))
    if options.seeds != "none":
        run_cells(options.out, [int(seed) for seed in options.seeds.split(",")])


if __name__ == "__main__":
    main()
