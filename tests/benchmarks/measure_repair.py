"""The figures of docs/repair.md: the demo's unlearned models, mended, and controls.

    .venv/bin/python -m tests.benchmarks.measure_repair --out repair-out DEMO...

DEMO is a finished ``unlearnbench demo --out DEMO``. What was evaluated is kept in ``--out``: the
same command again goes on. Prints the tables; ``--plot FILE`` draws them. ``--attacked``
asks instead, of what was measured so, whether it comes back under what is no precision.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from safetensors.torch import load_file, save_file

from unlearnbench import conditions
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.base import Levels
from unlearnbench.demo.recipe import CORPUS, DTYPE, TASKS
from unlearnbench.repair.job import RepairJob, repair
from unlearnbench.repair.method import STRENGTHS, Strategy, mend
from unlearnbench.repair.report import survival
from unlearnbench.results import FULL
from unlearnbench.util.process import quiet_transformers
from unlearnbench.util.text import text_table

PRECISIONS = (
    *("rtn-int8", "rtn-int5", "rtn-int4", "rtn-int4-g64"),
    *("bnb-nf4", "bnb-fp4", "gguf-q4_0"),
)
METHODS = ("ga_gdr", "ga_klr", "npo_gdr", "npo_klr", "ga_gdr_sure")
ATTACKS = (
    *("prune-magnitude-30", "prune-magnitude-50", "noise-5", "noise-10"),
    *("relearn-5", "relearn-10", "relearn-20"),
)
RELEARN_RATE = 1e-4  # of so small a model, as in tests/conditions/test_relearn_acceptance.py
MENDED = f"concentrated {STRENGTHS['concentrated']:g}"  # by default
VARIANTS = ("unlearned", MENDED, "grid 1", "random signs", "stochastic rounding")
FORGET, RETAIN = TASKS[0], TASKS[2]
Row: TypeAlias = dict[str, Any]
INT4 = conditions.find_condition("rtn-int4")


def make(variant: str, demo: Path, method: str, folder: Path) -> float | None:
    """Write a checkpoint, and give the share of weights that took a step."""
    model, target = demo / "models" / method, demo / "models" / "target"
    if variant in ("unlearned", "target"):
        shutil.copytree(target if variant == "target" else model, folder)
        return None
    strategy, _, strength = variant.partition(" ")
    if strategy not in ("grid", "concentrated"):
        return control(variant, model, target, folder)
    chosen: Strategy = "grid" if strategy == "grid" else "concentrated"
    job = RepairJob(
        str(model), str(target), folder, (INT4,), chosen, float(strength), "auto", LoadOptions()
    )
    totals = repair(job)
    assert survival(totals) is not None
    return totals.moved / totals.weights


def control(variant: str, model: Path, target: Path, folder: Path) -> float:
    """As many steps of the same sizes, up or down at random; or all weights rounded at random to
    one of the two levels about them, so that the mean is the weight.
    """
    draw, moved, weights = torch.Generator().manual_seed(0), 0, 0
    shutil.copytree(model, folder)
    ours, theirs = (load_file(path / "model.safetensors") for path in (model, target))
    for name, weight in ours.items():
        if "proj" not in name:
            continue
        exact, levels = weight.float(), conditions.levels(INT4, weight.float())
        if variant == "random signs":
            new = mend(exact, theirs[name].float(), lambda w: conditions.levels(INT4, w), "grid", 1)
            free = levels.above.isfinite() | levels.below.isfinite()
            stepped = free & (new.weight != levels.values) & (new.weight != exact)
            up = torch.rand(exact.shape, generator=draw) < 0.5
            made = _either(levels, up).where(stepped, new.weight)
        else:
            near = _either(levels, exact > levels.values)
            share = ((exact - levels.values) / (near - levels.values)).nan_to_num(0.0)
            stepped = torch.rand(exact.shape, generator=draw) < share
            made = near.where(stepped, levels.values)
        ours[name] = made.to(weight.dtype)
        moved, weights = moved + int(stepped.sum()), weights + weight.numel()
    save_file(ours, folder / "model.safetensors", metadata={"format": "pt"})
    return moved / weights


def _either(levels: Levels, up: torch.Tensor) -> torch.Tensor:
    """The next level above where ``up``, else below; where there is none, the other; its own where
    the grid hangs on the weight.
    """
    first = levels.above.where(up, levels.below)
    second = levels.below.where(up, levels.above)
    return first.where(first.isfinite(), second.where(second.isfinite(), levels.values))


def measure(
    demos: Sequence[Path],
    out: Path,
    methods: Iterable[str],
    variants: Sequence[str],
    tasks: Sequence[str] = TASKS,
    precisions: Sequence[str] = (FULL, *PRECISIONS),
) -> list[Row]:
    """One row a demo, method and variant, with its scores by precision and task."""
    from unlearnbench.evaluation.evaluate import evaluate

    rows = []
    for demo in demos:
        (reference,) = (demo / "runs" / "retrained").glob(f"*/{FULL}")
        pairs = [("target", "target"), *((m, v) for m in methods for v in variants)]
        for method, variant in pairs:
            if not (demo / "models" / method / "model.safetensors").exists():
                continue
            place = out / demo.name / method / variant.replace(" ", "-")
            facts = place / "row.json"
            if not facts.exists():
                shutil.rmtree(place / "model", ignore_errors=True)
                moved = make(variant, demo, method, place / "model")
                results = evaluate(
                    place / "model",
                    tasks,
                    precisions,
                    output=place / "runs",
                    dtype=DTYPE,
                    reference=reference,
                    answer_blank=CORPUS.answer_blank,
                )
                scores = {r.condition.name: {t: r.tasks[t].value for t in tasks} for r in results}
                row = {"demo": demo.name, "method": method, "variant": variant}
                facts.write_text(json.dumps({**row, "moved": moved, "scores": scores}))
            rows.append(json.loads(facts.read_bytes()))
            print(one_row(rows[-1]), flush=True)
    return rows


def attacked(
    demos: Sequence[Path], out: Path, methods: Iterable[str], variants: Sequence[str]
) -> str:
    """KnowMem_f of each variant that was measured before, under each of ``ATTACKS``: a line a
    variant, the mean over models and the range of the demos' means.
    """
    from unlearnbench.evaluation.evaluate import evaluate

    names, lines = (FULL, *ATTACKS), []
    pairs = [("target", "target"), *((m, v) for v in variants for m in methods)]
    for variant in dict.fromkeys(v for _, v in pairs):
        means: dict[str, list[list[float]]] = {name: [] for name in names}
        for demo in demos:
            places = [out / demo.name / m / v.replace(" ", "-") for m, v in pairs if v == variant]
            done = [place for place in places if (place / "row.json").exists()]
            found = []
            for place in done:
                results = evaluate(
                    place / "model",
                    FORGET,
                    names,
                    output=place / "attacked",
                    dtype=DTYPE,
                    answer_blank=CORPUS.answer_blank,
                    relearn_lr=RELEARN_RATE,
                )
                found.append({r.condition.name: r.tasks[FORGET].value or 0.0 for r in results})
                print(place, {name: round(value, 1) for name, value in found[-1].items()})
            for name in names if found else ():
                means[name].append([each[name] for each in found])
        cells = []
        for groups in means.values():
            of_demos = [fmean(group) for group in groups]
            everything = [value for group in groups for value in group]
            span = f" ({min(of_demos):.0f} to {max(of_demos):.0f})"
            cells.append(f"{fmean(everything):.0f}{span}")
        lines.append([f"{variant} ({len(everything)})", *cells])
    return text_table(lines, [FORGET, *names])


def one_row(row: Row) -> str:
    scores: dict[str, dict[str, float]] = row["scores"]
    shown = " ".join(f"{p} {s[FORGET]:.0f}/{s[RETAIN]:.0f}" for p, s in scores.items())
    return f"{row['demo']} {row['method']} {row['variant']}: {shown}"


def tables(rows: Sequence[Row]) -> str:
    """A table a task: each variant at each precision, the mean over methods and, of several demos,
    the range of the demos' means.
    """
    parts, precisions = [], tuple(rows[0]["scores"])
    for task in rows[0]["scores"][FULL]:
        if any(task not in row["scores"][FULL] for row in rows):
            continue  # not asked of all
        lines = []
        for variant in dict.fromkeys(str(row["variant"]) for row in rows):
            cells = [variant]
            for precision in precisions:
                by_demo: dict[str, list[float]] = {}
                for row in rows:
                    if row["variant"] == variant:
                        value = row["scores"][precision][task]
                        by_demo.setdefault(str(row["demo"]), []).append(value)
                means = [fmean(values) for values in by_demo.values()]
                span = f" ({min(means):.0f} to {max(means):.0f})" if len(means) > 1 else ""
                cells.append(f"{fmean(means):.1f}{span}")
            lines.append(cells)
        parts.append(text_table(lines, [task, *precisions]))
    return "\n\n".join(parts)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Forget against retain: a point a model and precision, a colour a variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    shown = [v for v in dict.fromkeys(str(row["variant"]) for row in rows) if v != "target"]
    for axes, title in ((left, "full precision"), (right, "4 bits")):
        for variant in shown:
            points = [
                (scores[RETAIN], scores[FORGET])
                for row in rows
                if row["variant"] == variant
                for name, scores in row["scores"].items()
                if (name == FULL) == (axes is left) and name not in ("rtn-int8", "rtn-int5")
            ]
            axes.scatter(*zip(*points, strict=True), s=14, alpha=0.7, label=variant)
        axes.set(title=title, xlabel="KnowMem_r, higher is better", xlim=(0, 100), ylim=(0, 100))
        axes.grid(alpha=0.3)
    left.set_ylabel("KnowMem_f, lower is better")
    left.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("demos", nargs="+", type=Path, metavar="DEMO")
    parser.add_argument("--out", type=Path, default=Path("repair-out"))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--quant", default=",".join((FULL, *PRECISIONS)))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--attacked", action="store_true")
    asked = parser.parse_args()
    quiet_transformers()
    methods, variants = asked.methods.split(","), asked.variants.split(",")
    if asked.attacked:
        print(attacked(asked.demos, asked.out, methods, variants))
        return
    told = asked.tasks.split(","), asked.quant.split(",")
    rows = measure(asked.demos, asked.out, methods, variants, *told)
    print(tables(rows))
    if asked.plot is not None:
        plot(rows, asked.plot)


if __name__ == "__main__":
    main()
