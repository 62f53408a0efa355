"""The tables, the plot and the published curve of docs/why.md, from stored figures.

    make why-page CELLS=why-out     # gather what `make why` measured, then write
    make why-page                   # write again from docs/why-pairs.json

A pair is a checkpoint at a precision. The curve goes to the package, where `inspect` forecasts from
it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tests.benchmarks import pages
from unlearnbench.conditions.quantize.forecast import CURVE
from unlearnbench.util.files import write_text
from unlearnbench.util.text import text_table

ROOT = Path(__file__).resolve().parents[2]
PAIRS = ROOT / "docs/why-pairs.json"
PAGE = ROOT / "docs/why.md"
PLOT = ROOT / "docs/images/why.svg"
# Points to get back, below which a share of them is noise: with 48 questions, one is 2 points.
LEAST = 20.0
EDGES = (-math.inf, 0.3, 0.5, 0.7, 0.9, 1.1, math.inf)
SHOWN = ("rtn-int8", "rtn-int6", "rtn-int5", "rtn-int4", "rtn-int4-g32", "bnb-nf4", "bnb-fp4")
# Of a checkpoint, in each of its pairs.
KEPT = (
    *("model", "seed", "method", "lr", "dtype", "steps", "knowmem_r", "moved"),
    *("movable", "inside"),
)
MOVABLE = "can move, of these in int4's zero bin"

Pair = dict[str, Any]


def of_cells(out: Path) -> list[Pair]:
    """The cells that are done."""
    pairs = []
    for path in sorted((out / "cells").glob("*.json")):
        cell = json.loads(path.read_bytes())
        for name, found in cell["precisions"].items():
            there = {
                "precision": name,
                "full": cell["knowmem_f"],
                "there": found["knowmem_f"],
                "target": found["target_knowmem_f"],
            }
            codes = {k: found[k] for k in ("survival", "codes_changed")}
            pairs.append({**{k: cell[k] for k in KEPT}, **there, **codes})
    return pairs


def recovered(pair: Pair) -> float | None:
    """The share that came back; None where too little was there to come back."""
    gap = pair["target"] - pair["full"]
    return (pair["there"] - pair["full"]) / gap if gap >= LEAST else None


def curve(pairs: Sequence[Pair]) -> list[dict[str, float | int | None]]:
    """By survival: how many pairs, and the tenth, the middle and the ninetieth of a hundred."""
    rows: list[dict[str, float | int | None]] = []
    for low, high in itertools.pairwise(EDGES):
        held = [p for p in pairs if low <= p["survival"] < high and recovered(p) is not None]
        shares = sorted(recovered(p) or 0.0 for p in held)
        row: dict[str, float | int | None] = {"from": None if low == -math.inf else low}
        row["pairs"] = len(shares)
        if shares:
            tail = len(shares) // 10
            row |= {"low": shares[tail], "median": median(shares), "high": shares[-1 - tail]}
            row = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
        rows.append(row)
    return rows


def experiment_table(pairs: Sequence[Pair]) -> str:
    """Of the dense model: a row a training's settings, means over seeds."""
    dense = [p for p in pairs if p["model"] == "dense"]
    keys = sorted({(p["method"], p["lr"], p["dtype"]) for p in dense})
    rows = []
    for method, lr, dtype in keys:
        own = [p for p in dense if (p["method"], p["lr"], p["dtype"]) == (method, lr, dtype)]
        first = [p for p in own if p["precision"] == SHOWN[0]]
        movable = _movable(first, dtype)
        steps = f"{_mean(first, 'steps'):.0f}"
        row = [method, f"{lr:g}", dtype, len(first), steps, movable, f"{_mean(first, 'full'):.1f}"]
        for name in SHOWN:
            at = [p for p in own if p["precision"] == name]
            row.append(f"{_mean(at, 'there'):.1f}, {_mean(at, 'survival'):.2f}" if at else "")
        rows.append(row)
    head = ["method", "lr", "weights", "seeds", "steps", MOVABLE, "full precision", *SHOWN]
    return text_table(rows, head)


def _movable(pairs: Sequence[Pair], dtype: str) -> str:
    """Which share can move, and how many of these rtn-int4 rounds to 0."""
    if dtype in ("fp32", "bf16-sr"):
        return "all"
    return f"{100 * _mean(pairs, 'movable'):.0f}%, {100 * _mean(pairs, 'inside'):.0f}%"


def target_table(pairs: Sequence[Pair]) -> str:
    """The targets' own scores."""
    rows = []
    for model, seed in sorted({(p["model"], p["seed"]) for p in pairs}):
        own = [p for p in pairs if (p["model"], p["seed"]) == (model, seed)]
        at = {p["precision"]: f"{p['target']:.1f}" for p in own}
        rows.append([f"{model}, seed {seed}", *(at.get(name, "") for name in SHOWN)])
    return text_table(rows, ["target", *SHOWN])


def demo_table(pairs: Sequence[Pair]) -> str:
    """Of the demo's sparse model."""
    sparse = [p for p in pairs if p["model"] == "sparse"]
    names = ("rtn-int8", "rtn-int6", "rtn-int5", "rtn-int4", "bnb-nf4", "bnb-fp4")
    rows = []
    settings = itemgetter("seed", "method", "dtype", "lr")
    for of in sorted({settings(p) for p in sparse}):
        seed, method, dtype, lr = of
        own = {p["precision"]: p for p in sparse if settings(p) == of}
        first = next(iter(own.values()))
        row = [seed, method, dtype, f"{lr:g}", _movable([first], dtype), f"{first['full']:.1f}"]
        for name in names:
            p = own.get(name)
            row.append(f"{p['there']:.1f}, {p['survival']:.2f}" if p else "")
        rows.append(row)
    return text_table(rows, ["seed", "method", "weights", "lr", MOVABLE, "full precision", *names])


def curve_table(pairs: Sequence[Pair]) -> str:
    """The published curve."""
    rows = []
    for row, high in zip(curve(pairs), EDGES[1:], strict=True):
        low, count = row["from"], row["pairs"]
        where = f"below {high:g}" if low is None else f"{low:g} and more"
        where = where if low is None or high == math.inf else f"{low:g} to {high:g}"
        shares = [f"{100 * float(row[k] or 0):.0f}%" for k in ("median", "low", "high") if k in row]
        rows.append([where, count, *(shares or ["", "", ""])])
    return text_table(rows, ["update survival", "pairs", "back, median", "10th", "90th of 100"])


def _mean(pairs: Sequence[Pair], key: str) -> float:
    return fmean(pair[key] for pair in pairs)


def plot(pairs: Sequence[Pair], path: Path) -> None:
    """Recovered share by survival and, beside it, by codes changed."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "why"  # the same file each time
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    told = [p for p in pairs if recovered(p) is not None]
    for dtype in sorted({p["dtype"] for p in told}):
        own = [p for p in told if p["dtype"] == dtype]
        for axis, key in zip(axes, ("survival", "codes_changed"), strict=True):
            found = [p[key] for p in own]
            back = [recovered(p) for p in own]
            axis.plot(found, back, ".", alpha=0.6, label=dtype)
    axes[0].set_xlabel("update survival")
    axes[1].set_xlabel("share of codes changed")
    axes[1].set_xscale("log")
    axes[0].set_ylabel("share of KnowMem_f that came back")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.axhline(0, color="grey", linewidth=0.8)
    axes[0].legend(title="weights in training")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
    write_text(path, text + "\n")


PARTS: dict[str, Callable[[Sequence[Pair]], str]] = {
    "experiment": experiment_table,
    "targets": target_table,
    "demo": demo_table,
    "curve": curve_table,
}


def with_tables(page: str, pairs: Sequence[Pair]) -> str:
    """The page with every table between its marks made anew."""
    return pages.with_tables(page, {name: make(pairs) for name, make in PARTS.items()})


def main() -> None:
    """Gather what is named, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path)
    options = parser.parse_args()
    if options.cells:
        pairs = of_cells(options.cells)
        lines = ",\n".join(json.dumps(_rounded(pair)) for pair in pairs)
        write_text(PAIRS, f"[\n{lines}\n]\n")
    pairs = json.loads(PAIRS.read_bytes())
    write_text(CURVE, json.dumps(curve(pairs), indent=1) + "\n")
    write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), pairs))
    plot(pairs, PLOT)


def _rounded(pair: Pair) -> Pair:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in pair.items()}


if __name__ == "__main__":
    main()
