"""The picture of README: what comes back at 4 bits on the demo, for light and for dark pages.

make demo && make picture
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from unlearnbench.recovery.verdicts import RecoveryRow

OUT = Path(__file__).resolve().parents[2] / "docs" / "images"
TASK, CONDITION = "demo_knowmem_f", "rtn-int4"
# (text, grid, what comes back, what does not) of each scheme; contrast at least 4.5 to the page.
COLOURS = {
    "light": ("#1f2328", "#d1d9e0", "#bc4c00", "#0969da"),
    "dark": ("#e6edf3", "#3d444d", "#f0883e", "#58a6ff"),
}
STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "unlearnbench",
    "font.family": "sans-serif",
    "font.size": 11,
}


def apart(places: dict[str, float], least: float) -> dict[str, float]:
    """Heights of labels, moved so that none is nearer than ``least`` to the next: those that would
    be are spread round their mean.
    """
    groups: list[list[str]] = []
    middles: list[float] = []
    for name in sorted(places, key=places.__getitem__):
        groups.append([name])
        middles.append(places[name])
        while len(groups) > 1:
            reach = least * (len(groups[-1]) + len(groups[-2])) / 2
            if middles[-1] - middles[-2] >= reach:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
            middles[-2:] = [sum(places[n] for n in groups[-1]) / len(groups[-1])]
    return {
        name: middle + least * (i - (len(group) - 1) / 2)
        for group, middle in zip(groups, middles, strict=True)
        for i, name in enumerate(group)
    }


def draw(rows: list[RecoveryRow], scheme: str) -> str:
    """SVG of one scheme: a line a method, from full precision to 4 bits."""
    text, grid, back, kept = COLOURS[scheme]
    target, retrained = rows[0].target_full, rows[0].retrained
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # keys as Literals
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        axes = figure.subplots()
        labels = apart({row.entry: row.quantized for row in rows}, 5.5)
        for row in rows:
            colour = back if row.verdict == "recovers" else kept
            axes.plot([0, 1], [row.full, row.quantized], "-o", color=colour, linewidth=2)
            name = f"{row.entry}  {row.quantized:.0f}"
            axes.text(1.04, labels[row.entry], name, color=colour, va="center")
        low, high = min(row.full for row in rows), max(row.full for row in rows)
        axes.text(-0.04, (low + high) / 2, f"{low:.0f} to {high:.0f}", color=text, ha="right",
                  va="center")  # fmt: skip
        for value, name in ((target, "before unlearning"), (retrained, "never trained on it")):
            axes.plot([-0.2, 1.02], [value] * 2, "--", color=grid, linewidth=1, zorder=0)
            axes.text(0.5, value + 1, f"{name}: {value:.0f}", color=text, ha="center", va="bottom")
        axes.set_xlim(-0.2, 1.35)
        axes.set_ylim(0, 108)
        axes.set_xticks([0, 1], ["full precision", "the same weights in 4 bits"])
        axes.set_ylabel("answers about what was forgotten\n(KnowMem_f, ROUGE-L, 0 to 100)")
        axes.tick_params(colors=text, length=0)
        axes.yaxis.label.set_color(text)
        for name, spine in axes.spines.items():
            spine.set_color(grid)
            spine.set_visible(name == "left")
        path = OUT / f"recovery-{scheme}.svg"
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    return str(path)


def main(folder: Path) -> None:
    """Write both pictures from a finished demo's ``recovery.json``."""
    content = json.loads((folder / "recovery.json").read_bytes())
    found = [RecoveryRow.model_validate(row) for row in content]
    rows = [row for row in found if (row.task, row.precision) == (TASK, CONDITION)]
    for scheme in COLOURS:
        print(draw(rows, scheme))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out"))
