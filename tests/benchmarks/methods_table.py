"""The table of every method against what was predicted, from stored cells.

    python -m tests.benchmarks.measure_methods --seeds none          # print it
    python -m tests.benchmarks.measure_methods --seeds none --write  # and docs/methods-table.md

The cells of ``docs/methods-table.json`` are what was measured before; those of the folder take
their place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from unlearnbench.metrics.intervals import CONFIDENCE, Estimate, average, with_trainings
from unlearnbench.recovery import UTILITY_FLOOR
from unlearnbench.recovery.verdicts import RECOVERED
from unlearnbench.util.files import write_text
from unlearnbench.util.text import text_table

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "docs/methods-table.json"
PAGE = ROOT / "docs/methods-table.md"
SEEDS = 3
PRECISIONS = ("rtn-int4", "bnb-nf4")
MOST = 0.5
"""From this share on it comes back in large part; below ``RECOVERED`` (0.2) it stays away."""

Cell = dict[str, Any]


class Prediction(NamedTuple):
    """What the survey expects of a row at 4 bits."""

    expects: str
    """``back``, ``some``, ``more``, ``stays``, or the row of which less comes back here."""
    source: str
    """The section; A and B are the two halves of the survey."""


BACK, SOME, MORE, STAYS = "back", "some", "more", "stays"
_BOUND = "A 9: rate x steps is small against a step of 4 bits"
PREDICTED = {
    "retrained": Prediction(STAYS, "A 9: SISA, retrained, the control"),
    "sisa": Prediction(STAYS, "A 6, 9: SISA, whose weights never saw what is forgotten"),
    "ga": Prediction(BACK, "A 9: Jang in one batch, unless the model is broken"),
    "ga_chunk": Prediction(BACK, "A 9: Jang, unless the model is broken"),
    "llmu": Prediction(BACK, "A 9: LLMU"),
    "kga": Prediction(BACK, "A 9: KGA"),
    "flearn": Prediction(BACK, "A 9: F-Learning, with its small factor"),
    "flearn_large": Prediction("flearn", "A 9: F-Learning, falls with the factor"),
    "loo_klr": Prediction(MORE, "A 9: LOO, middle to high"),
    "pcgu": Prediction(BACK, "A 9: PCGU"),
    "quark": Prediction(SOME, "A 8, 9: Quark, lower, in part"),
    **{
        name: Prediction(STAYS, "B 17, 19: trained at rounded weights")
        for name in ("ga_gdr_survive", "ga_gdr_survive_worst")
    },
    "depn": Prediction(STAYS, "B 1, 19: zeros are codes"),
    "grom": Prediction(STAYS, "B 18, 19: a large concentrated edit"),
    "unlikelihood_gdr_mlp_early": Prediction(STAYS, "B 19: a large concentrated edit"),
    "ga_gdr_lora": Prediction(STAYS, "B 13, 19: LoRA at a high rate"),
    "ga_gdr_sure": Prediction(STAYS, "B 19: a large concentrated edit"),
    "npo_gdr_sam": Prediction(BACK, "B 10, 19: flatness is no claim on rounding"),
    "npo_gdr_ilu": Prediction(BACK, "B 11, 19: invariance is no claim on rounding"),
    "npo_gdr_lau": Prediction(BACK, "B 19: flatness is no claim on rounding"),
    "undo": Prediction(STAYS, "B 12: a new model; recovery implausible"),
    "quail_gdr": Prediction(BACK, "B 14, 19: a margin in logits does not imply codes"),
    **{name: Prediction(BACK, _BOUND) for name in ("ga_gdr", "ga_klr", "npo_gdr", "npo_klr")},
    "ga_gdr_spans": Prediction(BACK, _BOUND),
    "ga_gdr_contrast": Prediction(BACK, "A 7: tiny changes of some rows"),
    "entropy_gdr_oeu": Prediction(BACK, _BOUND),
    **{name: Prediction(BACK, _BOUND) for name in ("whp_ft", "whp_ft_anchors")},
    **{
        f"{name}_gdr": Prediction(BACK, "B 8, 9: no claim; " + _BOUND)
        for name in ("dpo", "flat", "simnpo", "satimp", "undial", "unlikelihood", "wga")
    },
    "mismatch_gdr": Prediction(BACK, "A 9: as LLMU"),
    "pdu_gdr_dual": Prediction(BACK, "B 8: no claim; " + _BOUND),
}
_SAYS = {
    BACK: "comes back",
    SOME: "in part",
    MORE: "at least in part",
    STAYS: "stays away",
}
_BOUNDS = {
    BACK: (MOST, float("inf")),
    SOME: (RECOVERED, MOST),
    MORE: (RECOVERED, float("inf")),
    STAYS: (float("-inf"), RECOVERED),
}


def back(cells: Sequence[Cell], precision: str) -> tuple[Estimate | None, int]:
    """The share that came back, the mean over the seeds whose model had forgotten, and how many
    these are. The interval holds the questions' chance and, of several seeds, the trainings'.
    """
    there = [c["back"].get(precision, {}) for c in cells]
    found = [row for row in there if "recovered" in row]
    if not found:
        return None, 0
    values = [each["recovered"] for each in found]
    cis = [each.get("recovered_ci") for each in found]
    each = [Estimate(v, tuple(ci) if ci else None) for v, ci in zip(values, cis, strict=True)]
    return with_trainings(average(each), values, CONFIDENCE), len(found)


def said(name: str, precision: str, by_row: dict[str, list[Cell]]) -> str:
    """Whether a prediction was right; ``likely`` where the interval does not decide it."""
    predicted, cells = PREDICTED.get(name), by_row.get(name, [])
    if predicted is None:
        return "no prediction"
    if not any(precision in cell["back"] for cell in cells):
        return "not measured"
    found, _ = back(cells, precision)
    if found is None:
        return "had not forgotten"
    low, high = found.ci or (float("-inf"), float("inf"))
    if predicted.expects in PREDICTED:
        other, _ = back(by_row.get(predicted.expects, []), precision)
        if other is None:
            return "nothing to compare with"
        least, most = other.ci or (float("-inf"), float("inf"))
        is_right, decided = found.value < other.value, high < least or low > most
    else:
        first, last = _BOUNDS[predicted.expects]
        is_right = first <= found.value < last
        decided = first <= low and high < last if is_right else high < first or low >= last
    return f"{'' if decided else 'likely '}{'right' if is_right else 'wrong'}"


def table(cells: Sequence[Cell], names: Sequence[str]) -> str:
    """One row a method that was measured."""
    by_row = grouped(cells)
    head = ["method", "seeds", "steps", "codes changed", "KnowMem_f: full, rtn-int4, bnb-nf4"]
    head += ["KnowMem_r: the same", *(f"back at {p}" for p in PRECISIONS)]
    head += ["predicted", "right or wrong"]
    made = []
    for name in (n for n in names if n in by_row):
        own = by_row[name]
        steps = [c["steps"] for c in own if "steps" in c]
        codes = [c["codes"]["rtn-int4"] for c in own if c.get("codes")]
        row = [name, len(own), f"{fmean(steps):.0f}" if steps else "", ""]
        row[3] = f"{100 * fmean(codes):.1f}%" if codes else ""
        row += [_scores(own, "demo_knowmem_f"), _scores(own, "demo_knowmem_r")]
        row += [_share(own, p) for p in PRECISIONS]
        predicted = PREDICTED.get(name)
        row.append(_expects(predicted) if predicted else "")
        verdicts = [said(name, p, by_row) for p in PRECISIONS]
        row.append(verdicts[0] if len(set(verdicts)) == 1 else ", ".join(verdicts))
        made.append(row)
    return text_table(made, head)


def _scores(cells: Sequence[Cell], task: str) -> str:
    found = []
    for name in ("none", *PRECISIONS):
        own = [c["scores"][name][task] for c in cells if name in c["scores"]]
        found.append(f"{fmean(own):.1f}" if own else "-")
    return ", ".join(found)


def _share(cells: Sequence[Cell], precision: str) -> str:
    most = len(cells)
    cells = [c for c in cells if precision in c["back"]]
    found, seeds = back(cells, precision)
    if found is None:
        return ""
    ci = "" if found.ci is None else f" [{100 * found.ci[0]:.0f}, {100 * found.ci[1]:.0f}]"
    some = f" ({seeds} of {most} seeds)" if seeds < most else ""
    broken = ", collapsed" if _is_broken(cells, precision) else ""
    return f"{round(100 * found.value)}%{ci}{some}{broken}"


def _is_broken(cells: Sequence[Cell], precision: str) -> bool:
    there = (c["back"][precision] for c in cells if precision in c["back"])
    return min((row.get("utility", 1.0) for row in there), default=1.0) < UTILITY_FLOOR


def _expects(predicted: Prediction) -> str:
    says = _SAYS.get(predicted.expects, f"less than {predicted.expects}")
    return f"{says} ({predicted.source})"


def grouped(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """By row, in the order of seeds."""
    found: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda c: c["seed"]):
        found.setdefault(cell["row"], []).append(cell)
    return found


def still_open(cells: Sequence[Cell], names: Sequence[str]) -> str:
    """What is not measured yet, in one paragraph a kind."""
    by_row = grouped(cells)
    none = [n for n in names if n not in by_row]
    some = []
    for name in (n for n in names if n in by_row):
        counts = [sum(p in cell["back"] for cell in by_row[name]) for p in PRECISIONS]
        if min(counts) < SEEDS:
            some.append(f"{name} ({', '.join(map(str, counts))})")
    missing = [n for n in PREDICTED if n not in names]
    parts = [
        ("Not measured yet", none),
        (f"Fewer than {SEEDS} seeds (at {', at '.join(PRECISIONS)})", some),
        ("Predicted, and not a method here", missing),
    ]
    return "\n\n".join(f"{says}: {', '.join(of)}." for says, of in parts if of) or "Nothing."


def summary(cells: Sequence[Cell]) -> str:
    """How many predictions were right, and how many of these of a model that is broken."""
    by_row = grouped(cells)
    every = {(n, p): said(n, p, by_row) for n in by_row for p in PRECISIONS if n in PREDICTED}
    told = [word for word in every.values() if word != "not measured"]
    words = ("right", "likely right", "likely wrong", "wrong", "had not forgotten")
    counts = ", ".join(f"{told.count(word)} {word}" for word in words)
    broken = sum(w.endswith("right") and _is_broken(by_row[n], p) for (n, p), w in every.items())
    rest = f"; {broken} of the right ones are of models that have collapsed" if broken else ""
    return (
        f"Of {len(told)} predictions with a measurement (a method at a precision): {counts}{rest}."
    )


def read() -> list[Cell]:
    """The cells that are stored."""
    return json.loads(STORED.read_bytes()) if STORED.exists() else []


def gather(folder: Path, stored: Sequence[Cell]) -> list[Cell]:
    """The stored cells, with those of a folder in place of their own."""
    found = {(c["row"], c["seed"]): c for c in stored}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_bytes())
        found[cell["row"], cell["seed"]] = cell
    return [found[key] for key in sorted(found)]


def page(text: str, cells: Sequence[Cell], names: Sequence[str]) -> str:
    """The page with what stands between its marks made anew."""
    parts = {"summary": summary(cells), "table": table(cells, names)}
    for name, made in (parts | {"open": still_open(cells, names)}).items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}{made}\n{end}{rest.split(end)[1]}"
    return text


def write_page(folder: Path, names: Sequence[str]) -> None:
    """Store the cells, and make the page anew."""
    cells = gather(folder, read())
    lines = ",\n".join(json.dumps(cell) for cell in cells)
    write_text(STORED, f"[\n{lines}\n]\n" if cells else "[]\n")
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), cells, names))
