"""The figures of docs/repair.md: the demo's unlearned models, mended, and controls.

    make repair                  # hours on 2 cores; the same command again goes on
    make repair DEMO="--demo 0=demo-out"

Trains what is not there (the demo for each seed, ``OTHERS`` from its target, dense models), mends
it, and evaluates every variant; what was measured is kept in ``--out``. ``--write`` puts the
figures in docs/repair-rows.json, and makes the page's tables and plot anew (``repair_page.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

os.environ["OMP_NUM_THREADS"] = "1"  # sums in another order give other weights

import torch
from safetensors.torch import load_file, save_file

from tests.benchmarks import measure_why
from tests.benchmarks.measure_methods import LARGE, WORST, Home, Row, train
from tests.benchmarks.repair_page import FORGET, MENDED, RETAIN, TARGET, UNLEARNED, one_row, write
from unlearnbench import conditions
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.base import Levels
from unlearnbench.demo.pipeline import run_demo
from unlearnbench.demo.recipe import CORPUS, DTYPE, METHODS, TASKS, DemoOptions
from unlearnbench.repair.job import RepairJob, repair
from unlearnbench.repair.method import STRENGTHS, Strategy, mend, own_place
from unlearnbench.repair.report import survival
from unlearnbench.results import FULL
from unlearnbench.util.files import write_text
from unlearnbench.util.process import quiet_transformers

PRECISIONS = (
    *("rtn-int8", "rtn-int5", "rtn-int4", "rtn-int4-g64"),
    *("bnb-nf4", "bnb-fp4", "gguf-q4_0"),
)
ATTACKS = (
    *("prune-magnitude-30", "prune-magnitude-50", "noise-5", "noise-10"),
    *("relearn-5", "relearn-10", "relearn-20"),
)
RELEARN_RATE = 1e-4  # of so small a model, as in tests/conditions/test_relearn_acceptance.py
SEEDS = (0, 1, 2, 3)
DENSE = (0, 1, 2)
"""Seeds of dense targets, those of docs/why.md."""
SIGNS, PLACES, ROUNDED = "random signs", "random places", "stochastic rounding"
CONTROLS = ("grid 1", SIGNS, PLACES, ROUNDED)
COMPARED = ("ga_gdr", "npo_klr")
FP32 = {"weights_dtype": "fp32"}
# Unlearned so that it lasts, or should. Not tuned; noise as rate and retain term of the others.
OTHERS = (
    Row("ga_gdr_fp32", "ga_gdr", options=FP32),
    Row("npo_klr_fp32", "npo_klr", options=FP32),
    Row("ga_gdr_lora", options=LARGE),
    Row("ga_gdr_survive_worst", "ga_gdr", {"retain_weight": 8.0}, WORST),
    Row(
        "ga_gdr_noise",
        "ga_gdr",
        {"retain_weight": 8.0},
        {"weight_noise": 1.0, "lr": 2e-4, "max_steps": 240, **FP32},
    ),
)
PARTS = ("methods", "controls", "others", "dense", "attacked")
Figures: TypeAlias = dict[str, Any]
INT4 = conditions.find_condition("rtn-int4")


class Subject(NamedTuple):
    """A checkpoint that is mended, or evaluated as it is."""

    seed: int
    name: str
    model: Path
    target: Path
    reference: Path | None
    """The retrained model's run, for PrivLeak."""


def of_demo(demo: DemoOptions, methods: Sequence[str]) -> Iterator[Subject]:
    """The target and the models of a finished demo that it has."""
    for name in (TARGET, *methods):
        if (demo.model(name) / "model.safetensors").exists():
            full = demo.full_run("retrained")
            yield Subject(demo.seed, name, demo.model(name), demo.model(TARGET), full)


def of_others(demo: DemoOptions, out: Path) -> Iterator[Subject]:
    """``OTHERS``, trained from the target of a finished demo."""
    home = Home(DemoOptions(out / f"others{demo.seed}", demo.seed), demo, (FULL,))
    for row in OTHERS:
        train(row, home)
        yield Subject(demo.seed, row.name, home.model(row.name), demo.model(TARGET), None)


def of_dense(seed: int, out: Path) -> Iterator[Subject]:
    """Models of docs/why.md that forget and lose some of it to rounding, from a dense target."""
    home = DemoOptions(out / f"dense{seed}", seed, dense=True)
    known = measure_why.make_target(home)[FULL]
    yield Subject(seed, f"dense {TARGET}", home.model(TARGET), home.model(TARGET), None)
    for method in COMPARED:
        cell = measure_why.Cell(seed, method, 4e-5, "bf16-rounded")
        measure_why.train(cell, home, METHODS[method].goal * known)
        model = home.model(cell.name)
        yield Subject(seed, f"dense {method}", model, home.model(TARGET), None)


def make(variant: str, subject: Subject, folder: Path) -> float | None:
    """Write a checkpoint, and give the share of weights that took a step."""
    model, target = subject.model, subject.target
    if variant in (UNLEARNED, TARGET):
        shutil.copytree(model, folder)
        return None
    strategy, _, strength = variant.partition(" ")
    if strategy not in STRENGTHS:
        return control(variant, model, target, folder)
    chosen: Strategy = "grid" if strategy == "grid" else "concentrated"
    job = RepairJob(
        str(model), str(target), folder, (INT4,), chosen, float(strength), "auto", LoadOptions()
    )
    totals = repair(job)
    assert survival(totals) is not None
    return totals.moved / totals.weights


def control(variant: str, model: Path, target: Path, folder: Path) -> float:
    """The default's steps up or down at random; or at random places of their rows, in the
    direction of the update; or all weights rounded at random to one of the two levels about them,
    so that the mean is the weight.
    """
    draw, moved, weights = torch.Generator().manual_seed(0), 0, 0
    shutil.copytree(model, folder)
    ours, theirs = (load_file(path / "model.safetensors") for path in (model, target))
    for name, weight in ours.items():
        if "proj" not in name:
            continue
        exact, known = weight.float(), theirs[name].float()
        if variant == ROUNDED:
            made, stepped = _rounded(exact, draw)
        else:
            made, stepped = step_at_random(variant, exact, known, draw)
        ours[name] = made.to(weight.dtype)
        moved, weights = moved + int(stepped.sum()), weights + weight.numel()
    save_file(ours, folder / "model.safetensors", metadata={"format": "pt"})
    return moved / weights


def step_at_random(
    variant: str, exact: torch.Tensor, known: torch.Tensor, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in which as many weights of each row take a step as by default, to their own place
    in the next bin, and which did: the same ones up or down at random, or others at random in the
    direction of the update.
    """

    def grid(weight: torch.Tensor) -> Levels:
        return conditions.levels(INT4, weight)

    stepped = mend(exact, known, grid, "concentrated", STRENGTHS["concentrated"]).weight != known
    ways = {sign: own_place(known, grid(known), grid, torch.tensor(sign)) for sign in (1.0, -1.0)}
    up, down = ways[1.0].float(), ways[-1.0].float()
    stepped &= up.isfinite() | down.isfinite()  # not what a row that is left as it is has more
    if variant == SIGNS:
        first = torch.rand(exact.shape, generator=draw) < 0.5
        new = up.where(first & up.isfinite() | ~down.isfinite(), down)
    else:
        new = up.where(exact > known, down)
        free = new.isfinite() & (exact != known)
        drawn = torch.rand(exact.shape, generator=draw).where(free, 2.0)
        ranks = drawn.argsort(dim=1).argsort(dim=1)
        stepped = free & (ranks < stepped.sum(dim=1, keepdim=True))
    return new.where(stepped, known), stepped


def _rounded(exact: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    levels = conditions.levels(INT4, exact)
    near = _either(levels, exact > levels.values)
    share = ((exact - levels.values) / (near - levels.values)).nan_to_num(0.0)
    stepped = torch.rand(exact.shape, generator=draw) < share
    return near.where(stepped, levels.values), stepped


def _either(levels: Levels, up: torch.Tensor) -> torch.Tensor:
    """The next level above where ``up``, else below; where there is none, the other; its own where
    the grid hangs on the weight.
    """
    first = levels.above.where(up, levels.below)
    second = levels.below.where(up, levels.above)
    return first.where(first.isfinite(), second.where(second.isfinite(), levels.values))


def place_of(out: Path, subject: Subject, variant: str) -> Path:
    """Where a variant's model, runs and figures are."""
    return out / f"seed{subject.seed}" / subject.name / variant.replace(" ", "-")


def measure(
    subjects: Iterator[Subject],
    out: Path,
    variants: Sequence[str],
    tasks: Sequence[str] = (FORGET, RETAIN),
    precisions: Sequence[str] = (FULL, *PRECISIONS),
) -> Iterator[Figures]:
    """One row a subject and variant, with its scores by precision and task."""
    from unlearnbench.evaluation.evaluate import evaluate

    for subject in subjects:
        for variant in (TARGET,) if subject.name.endswith(TARGET) else variants:
            place = place_of(out, subject, variant)
            facts = place / "row.json"
            if not facts.exists():
                shutil.rmtree(place / "model", ignore_errors=True)
                moved = make(variant, subject, place / "model")
                results = evaluate(
                    place / "model",
                    tasks,
                    precisions,
                    output=place / "runs",
                    dtype=DTYPE,
                    reference=subject.reference,
                    answer_blank=CORPUS.answer_blank,
                )
                scores = {r.condition.name: {t: r.tasks[t].value for t in tasks} for r in results}
                row = {"seed": subject.seed, "name": subject.name, "variant": variant}
                write_text(facts, json.dumps({**row, "moved": moved, "scores": scores}))
            yield json.loads(facts.read_bytes())


def attacked(subjects: Iterator[Subject], out: Path) -> Iterator[Figures]:
    """KnowMem_f of what was measured before, under each of ``ATTACKS``."""
    from unlearnbench.evaluation.evaluate import evaluate

    for subject in subjects:
        for variant in (TARGET,) if subject.name == TARGET else (UNLEARNED, MENDED):
            place = place_of(out, subject, variant)
            facts = place / "attacked.json"
            if not facts.exists():
                results = evaluate(
                    place / "model",
                    FORGET,
                    (FULL, *ATTACKS),
                    output=place / "attacked",
                    dtype=DTYPE,
                    answer_blank=CORPUS.answer_blank,
                    relearn_lr=RELEARN_RATE,
                )
                scores = {r.condition.name: {FORGET: r.tasks[FORGET].value} for r in results}
                row = {"seed": subject.seed, "name": subject.name, "variant": variant}
                write_text(facts, json.dumps({**row, "moved": None, "scores": scores}))
            yield json.loads(facts.read_bytes())


def rows(part: str, demo: DemoOptions, out: Path) -> Iterator[Figures]:
    """Everything of one part and seed."""
    if part == "methods":
        yield from measure(of_demo(demo, [*METHODS]), out, (UNLEARNED, MENDED), TASKS)
    elif part == "controls":
        pairs = (s for s in of_demo(demo, COMPARED) if s.name != TARGET)
        yield from measure(pairs, out, CONTROLS)
    elif part == "others":
        yield from measure(of_others(demo, out), out, (UNLEARNED, MENDED))
    elif part == "dense" and demo.seed not in DENSE:
        return
    elif part == "dense":
        yield from measure(of_dense(demo.seed, out), out, (UNLEARNED, MENDED))
    else:
        yield from attacked(of_demo(demo, COMPARED), out)


def main() -> None:
    """Do what is not done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("repair-out"))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--demo", action="append", default=[], metavar="SEED=DIR")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--write", action="store_true", help="docs/repair.md too")
    asked = parser.parse_args()
    quiet_transformers()
    given = {int(s): Path(d) for s, _, d in (part.partition("=") for part in asked.demo)}
    found: dict[str, list[Figures]] = {part: [] for part in asked.parts.split(",")}
    for seed in map(int, asked.seeds.split(",")):
        demo = DemoOptions(given.get(seed, asked.out / f"demo{seed}"), seed)
        if seed not in given:
            run_demo(demo, print)
        for part, kept in found.items():
            for row in rows(part, demo, asked.out):
                kept.append(row)
                print(part, one_row(row), flush=True)
    if asked.write:
        write(found)


if __name__ == "__main__":
    main()
