"""The experiment of docs/why.md: does the dtype of weights under training decide what comes back?

    make why               # hours on 2 cores; the same command again goes on

On the demo's dense model (without its L1 step), for each seed, method, learning rate and dtype: a
training that stops where the demo's do (KnowMem_f at most a quarter of the target's) or after 480
steps, its KnowMem_f at every precision, codes changed, and update survival. Each cell is written to
``OUT/cells`` when it is done. The most telling cells come first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # sums in another order give other weights

from unlearnbench import conditions
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE
from unlearnbench.checkpoints.weights import open_weights
from unlearnbench.conditions.quantize.overlap import PrecisionOverlap, compare_codes
from unlearnbench.demo import work
from unlearnbench.demo.recipe import CORPUS, DTYPE, METHODS, TASKS, DemoOptions
from unlearnbench.demo.start import FORGET, RETAIN
from unlearnbench.results import FULL
from unlearnbench.training.options import SelectOptions
from unlearnbench.util.files import write_text
from unlearnbench.util.process import quiet_transformers

FORGET_TASK, RETAIN_TASK = TASKS[0], TASKS[2]
PRECISIONS = (
    *("rtn-int8", "rtn-int6", "rtn-int5", "rtn-int4", "rtn-int4-g32", "rtn-int4-g64"),
    *("bnb-nf4", "bnb-fp4", "gguf-q8_0", "gguf-q4_0"),
)
DTYPES = ("fp32", "bf16-rounded", "bf16-sr", "bf16")
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
    """The first seed at all rates, then the middle rate on all seeds, then the rest."""
    methods = ("ga_gdr", "npo_klr")
    first = [(seeds[0], m, lr) for m, lr in itertools.product(methods, RATES)]
    middle = [(seed, m, RATES[0]) for seed, m in itertools.product(seeds, methods)]
    rest = list(itertools.product(seeds, methods, RATES))
    first[2], first[3] = first[3], first[2]  # the second method's middle rate before the last rate
    for seed, method, lr in dict.fromkeys([*first, *middle, *rest]):
        for dtype in DTYPES:
            yield Cell(seed, method, lr, dtype)


def make_target(home: DemoOptions) -> dict[str, float]:
    """The dense target and its KnowMem_f at every precision."""
    if not (home.model("start") / "config.json").exists():
        work.start("start", home)
    work.make_end("target", home)
    return scores("target", home)


def train(cell: Cell, home: DemoOptions, threshold: float) -> dict[str, Any]:
    """Unlearn; what its record says."""
    from unlearnbench.evaluation.evaluate import score_checkpoint
    from unlearnbench.training.job import Job, unlearn

    out, recipe = home.model(cell.name), METHODS[cell.method]
    if not work.is_trained(out):
        options = recipe.options(cell.seed).model_copy(
            update={
                "lr": cell.lr,
                "weights_dtype": cell.dtype,
                "max_steps": STEPS,
                "save_steps": EVERY,
            }
        )
        select = SelectOptions(
            eval_tasks=FORGET_TASK,
            retrained=str(threshold),
            eval_steps=EVERY,
            eval_dtype=DTYPE,
        )
        target = str(home.model("target"))
        job = Job(target, out, FORGET, RETAIN, options=options, corpus=CORPUS, select=select)
        score = partial(score_checkpoint, CORPUS)
        resume = (out / ".training").is_dir()
        unlearn(Job(**{**vars(job), "score": score, "resume": resume}), cell.method, recipe.knobs)
    record: dict[str, Any] = json.loads((out / FILE).read_bytes())
    return record


def scores(name: str, home: DemoOptions) -> dict[str, float]:
    """KnowMem_f of a model at every precision, by its name; KnowMem_r in full precision."""
    from unlearnbench.evaluation.evaluate import evaluate

    found = {}
    for task, precisions in ((FORGET_TASK, (FULL, *PRECISIONS)), (RETAIN_TASK, (FULL,))):
        results = evaluate(
            home.model(name),
            (task,),
            precisions,
            output=home.out / "runs" / task / name,
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


def run(cell: Cell, out: Path) -> dict[str, Any]:
    """Everything that is kept of a cell."""
    home = DemoOptions(out / f"seed{cell.seed}", cell.seed, dense=True)
    target = make_target(home)
    record = train(cell, home, METHODS[cell.method].goal * target[FULL])
    own, codes = scores(cell.name, home), bins(cell.name, home)
    return {
        **asdict(cell),
        "steps": record["selection"]["chosen_step"],
        "reached": record["selection"]["reached"],
        "seconds": record["seconds"],
        "knowmem_f": own[FULL],
        "knowmem_r": own["knowmem_r"],
        "target_knowmem_f": target[FULL],
        "target_knowmem_r": target["knowmem_r"],
        "moved": codes[PRECISIONS[0]].changed_share,
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("why-out"))
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    quiet_transformers()
    for cell in cells([int(seed) for seed in options.seeds.split(",")]):
        path = options.out / "cells" / f"{cell.name}-seed{cell.seed}.json"
        if path.exists():
            continue
        found = run(cell, options.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(found, indent=1) + "\n")
        four = found["precisions"]["rtn-int4"]
        print(
            f"seed {cell.seed} {cell.name}: {found['steps']} steps in {found['seconds']:.0f} s, "
            f"KnowMem_f {found['knowmem_f']:.1f}, at rtn-int4 {four['knowmem_f']:.1f}, survival "
            f"{four['survival']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
