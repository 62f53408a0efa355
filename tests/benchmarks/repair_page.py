"""The tables and the plot of docs/repair.md, from stored figures.

    make repair-page      # write again from docs/repair-rows.json

A row is a seed's model, as it is or mended, with its scores at every precision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from tests.benchmarks import pages
from unlearnbench.metrics.intervals import CONFIDENCE, Estimate, with_trainings
from unlearnbench.repair.method import STRENGTHS
from unlearnbench.results import FULL
from unlearnbench.util.files import write_text
from unlearnbench.util.text import text_table

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "docs/repair-rows.json"
PAGE = ROOT / "docs/repair.md"
PLOT = ROOT / "docs/images/repair.png"
FORGET, RETAIN, VERBATIM = "demo_knowmem_f", "demo_knowmem_r", "demo_verbmem"
FOUR_BITS = ("rtn-int4", "bnb-nf4", "bnb-fp4", "gguf-q4_0")
SHOWN = (FULL, "rtn-int8", *FOUR_BITS)
UTILITY = ("ga_gdr", "ga_klr", "npo_gdr", "npo_klr")
"""The demo's methods that look after utility, and come back."""
TARGET, UNLEARNED = "target", "unlearned"
MENDED = f"concentrated {STRENGTHS['concentrated']:g}"  # by default

Row: TypeAlias = dict[str, Any]
Rows: TypeAlias = Sequence[Row]


def one_row(row: Row) -> str:
    """A line of it."""
    shown = []
    for precision, scores in row["scores"].items():
        values = [scores[task] for task in (FORGET, RETAIN) if task in scores]
        shown.append(f"{precision} {'/'.join(f'{value:.0f}' for value in values)}")
    return f"seed {row['seed']} {row['name']} {row['variant']}: {', '.join(shown)}"


def interval(rows: Iterable[Row], precision: str, task: str) -> str:
    """The mean over rows, and over seeds' means Student's interval."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row["scores"][precision][task])
    means = [fmean(values) for values in by_seed.values()]
    value = fmean(means)
    if len(means) < 2:
        return f"{value:.0f}"
    low, high = _ends(value, means)
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def _ends(value: float, means: Sequence[float]) -> tuple[float, float]:
    found = with_trainings(Estimate(value, (value, value)), means, CONFIDENCE, (0.0, 100.0))
    assert found.ci is not None
    return found.ci


def pick(rows: Rows, names: Iterable[str], variant: str) -> list[Row]:
    """Those of some models and one variant."""
    return [row for row in rows if row["name"] in {*names} and row["variant"] == variant]


def means_table(rows: Rows, task: str) -> str:
    """Target, unlearned and mended at every precision."""
    precisions = tuple(rows[0]["scores"])
    lines = []
    for label, names, variant in (
        (TARGET, (TARGET,), TARGET),
        (UNLEARNED, UTILITY, UNLEARNED),
        ("mended", UTILITY, MENDED),
    ):
        own = pick(rows, names, variant)
        lines.append([label, *(interval(own, name, task) for name in precisions)])
    return text_table(lines, ["", *precisions])


def both_table(rows: Rows, kinds: Sequence[tuple[str, Sequence[str], str]]) -> str:
    """KnowMem_f / KnowMem_r of each kind: its label, its models, its variant."""
    lines = []
    for label, names, variant in kinds:
        own = pick(rows, names, variant)
        cells = [f"{interval(own, name, FORGET)} / {interval(own, name, RETAIN)}" for name in SHOWN]
        shares = [row["moved"] for row in own if row["moved"] is not None]
        moved = f"{100 * fmean(shares):.1f}%" if shares else ""
        lines.append([label, len(own), moved, *cells])
    return text_table(lines, ["", "models", "moved", *SHOWN])


def bound_table(rows: Rows, names: Sequence[str]) -> str:
    """Each model against the bound."""
    lines = []
    for name in names:
        for before in pick(rows, (name,), UNLEARNED):
            (after,) = (r for r in pick(rows, (name,), MENDED) if r["seed"] == before["seed"])
            over, left, whole = margins(before, after)
            own = (before, FULL), (before, "rtn-int4"), *((after, p) for p in (FULL, *FOUR_BITS))
            cells = [
                "/".join(f"{row['scores'][p][task]:.0f}" for task in (FORGET, RETAIN))
                for row, p in own
            ]
            label = f"seed {before['seed']} {name}"
            lines.append([label, *cells, f"{over:.1f}, {left:.1f}, {whole:.1f}"])
    head = ["", "unlearned, none", "rtn-int4", "mended, none", *FOUR_BITS, "margins"]
    return text_table(sorted(lines, key=lambda line: str(line[0])), head)


def margins(before: Row, after: Row) -> tuple[float, float, float]:
    """By how many points the worst cell at 4 bits is above the bound of KnowMem_f, and that of
    KnowMem_r; and KnowMem_r in full precision above its own.
    """
    low, useful = (before["scores"][FULL][task] for task in (FORGET, RETAIN))
    cells = [after["scores"][name] for name in FOUR_BITS]
    return (
        max(cell[FORGET] for cell in cells) - low - 8,
        min(cell[RETAIN] for cell in cells) - 0.85 * useful,
        after["scores"][FULL][RETAIN] - 0.9 * useful,
    )


def attacked_table(rows: Rows) -> str:
    """KnowMem_f under what is no precision."""
    names = tuple(rows[0]["scores"])
    lines = []
    for variant in (TARGET, UNLEARNED, MENDED):
        own = [row for row in rows if row["variant"] == variant]
        lines.append([variant, len(own), *(interval(own, name, FORGET) for name in names)])
    return text_table(lines, ["", "models", *names])


def methods_table(rows: Rows) -> str:
    """Each method before and after, over seeds."""
    names = [name for name in dict.fromkeys(row["name"] for row in rows) if name != TARGET]
    kinds = [(TARGET, (TARGET,), TARGET)]
    for name in names:
        kinds += [(name, (name,), UNLEARNED), ("mended", (name,), MENDED)]
    return both_table(rows, kinds)


def controls_table(methods: Rows, controls: Rows) -> str:
    """The default against steps and rounding at random, on the same models."""
    names = {row["name"] for row in controls}
    variants = [UNLEARNED, MENDED, *dict.fromkeys(row["variant"] for row in controls)]
    kinds = [(TARGET, (TARGET,), TARGET), *((v, tuple(names), v) for v in variants)]
    return both_table([*methods, *controls], kinds)


def others_table(methods: Rows, others: Rows) -> str:
    """Unlearned so that it lasts, or should; and mended."""
    names = ["ga_gdr", "ga_gdr_sure", *dict.fromkeys(row["name"] for row in others)]
    kinds = []
    for name in names:
        kinds += [(name, (name,), UNLEARNED), ("mended", (name,), MENDED)]
    return both_table([*methods, *others], kinds)


def dense_table(rows: Rows) -> str:
    """Of dense targets."""
    names = [n for n in dict.fromkeys(row["name"] for row in rows) if not n.endswith(TARGET)]
    kinds = [("target", (f"dense {TARGET}",), TARGET)]
    for name in names:
        kinds += [(name, (name,), UNLEARNED), ("mended", (name,), MENDED)]
    return both_table(rows, kinds)


PARTS: dict[str, Callable[[Mapping[str, Rows]], str]] = {
    "knowmem_f": lambda found: means_table(found["methods"], FORGET),
    "knowmem_r": lambda found: means_table(found["methods"], RETAIN),
    "verbmem": lambda found: means_table(found["methods"], VERBATIM),
    "methods": lambda found: methods_table(found["methods"]),
    "bound": lambda found: bound_table(found["methods"], UTILITY),
    "fp32": lambda found: bound_table(found["others"], ("ga_gdr_fp32", "npo_klr_fp32")),
    "dense": lambda found: dense_table(found["dense"]),
    "dense-bound": lambda found: bound_table(found["dense"], ("dense ga_gdr", "dense npo_klr")),
    "controls": lambda found: controls_table(found["methods"], found["controls"]),
    "others": lambda found: others_table(found["methods"], found["others"]),
    "attacked": lambda found: attacked_table(found["attacked"]),
}


def tables(found: Mapping[str, Rows]) -> dict[str, str]:
    """Every table of the page by its name."""
    return {name: make(found) for name, make in PARTS.items()}


def plot(rows: Rows, path: Path) -> None:
    """Forget against retain: a point a model and precision, a colour a variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, title, names in ((left, "full precision", (FULL,)), (right, "4 bits", FOUR_BITS)):
        for variant in (UNLEARNED, MENDED):
            points = [
                (row["scores"][name][RETAIN], row["scores"][name][FORGET])
                for row in pick(rows, UTILITY, variant)
                for name in names
            ]
            axes.scatter(*zip(*points, strict=True), s=14, alpha=0.7, label=variant)
        axes.set(title=title, xlabel="KnowMem_r, higher is better", xlim=(0, 100), ylim=(0, 100))
        axes.grid(alpha=0.3)
    left.set_ylabel("KnowMem_f, lower is better")
    left.legend()
    figure.savefig(path, dpi=110)


def write(found: Mapping[str, Rows]) -> None:
    """Store the figures, and make the page anew."""
    lines = [
        f'"{part}": [\n' + ",\n".join(json.dumps(_rounded(row)) for row in rows) + "\n]"
        for part, rows in found.items()
    ]
    write_text(STORED, "{\n" + ",\n".join(lines) + "\n}\n")
    main()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Write the page from what is stored."""
    found = json.loads(STORED.read_bytes())
    write_text(PAGE, pages.with_tables(PAGE.read_text(encoding="utf-8"), tables(found)))
    plot(found["methods"], PLOT)


if __name__ == "__main__":
    main()
