"""The board's plots as SVG, drawn by matplotlib. The same numbers give the same bytes, and colours
read on light and on dark.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from unlearnbench.boards.ranking import Place, Ranking
from unlearnbench.errors import one_line
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.results import FULL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2f7fc1", "#d1741f", "#808080"
_STYLE: dict[str, object] = {
    "svg.fonttype": "none",  # text stays text: small, and readable to a screen reader
    "svg.hashsalt": "unlearnbench",
    "text.parse_math": False,  # a name with $ in it is no formula
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]  # keys as Literals
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Figure, label: str) -> str:
    """The figure without its file header, in the page's own text colour."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    name = html.escape(one_line(label))
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" fill="currentColor" ', 1)


def _bars(figure: Estimate) -> list[list[float]] | None:
    """Distances to the interval's ends, as error bars take them."""
    if figure.ci is None:
        return None
    low, high = figure.value - figure.ci[0], figure.ci[1] - figure.value
    return [[max(0.0, low)], [max(0.0, high)]]


def dumbbell(ranking: Ranking, place: Place) -> str:
    """From full precision to each quantized score, with the retrained model's value as a line."""
    tasks = [t for t in ranking.board.rules.tasks if (t, FULL) in place.standings]
    precisions = [p for p in place.precisions if p != FULL]
    pairs = [(t, p) for t in tasks for p in precisions if (t, p) in place.standings]
    with _figure(6.5, 0.9 + 0.3 * max(1, len(pairs))) as (figure, axes):
        for y, (task, precision) in enumerate(reversed(pairs)):
            full, now = place.standings[task, FULL].value, place.standings[task, precision].value
            axes.plot([full.value, now.value], [y, y], color=GREY, linewidth=2, zorder=1)
            _point(axes, full, Estimate(y), BLUE, "o")
            _point(axes, now, Estimate(y), ORANGE, "D")
            # value - excess: PrivLeak's own 0, the retrained model's score elsewhere.
            standing = place.standings[task, FULL]
            zero = 0.0 if standing.want == "zero" else full.value - standing.excess.value
            axes.plot([zero, zero], [y - 0.4, y + 0.4], color="#2a9d62", linewidth=2)
        labels = [one_line(f"{task}, {precision}", 60) for task, precision in reversed(pairs)]
        axes.set_yticks(range(len(pairs)), labels)
        axes.set_xlabel("points: circle full precision, diamond quantized, line retrained")
        return _svg(figure, f"{place.name}: full precision against quantized")


def _point(axes: Axes, x: Estimate, y: Estimate, colour: str, marker: str) -> None:
    axes.errorbar(
        [x.value], [y.value], _bars(y), _bars(x), marker, color=colour, capsize=2, zorder=2
    )


def pareto(ranking: Ranking) -> str:
    """Worst excess over the retrained model against least utility; the front is drawn through the
    ranked entries that no other ranked one beats in both.
    """
    shown = [(p, p.worst, p.utility) for p in ranking.places if p.worst and p.utility]
    ranked = [(x.value, 100 * y.value) for place, x, y in shown if place.rank is not None]
    with _figure(6.5, 4) as (figure, axes):
        for place, worst, utility in shown:
            scaled = utility.scaled(100)
            fit, spot = place.rank is not None, (worst.value, scaled.value)
            _point(axes, worst, scaled, *((BLUE, "o") if fit else (GREY, "x")))
            name = one_line(place.name, 40)
            axes.annotate(name, spot, xytext=(5, 5), textcoords="offset points")
        front = _front(ranked)
        axes.step([x for x, _ in front], [y for _, y in front], where="post", color=ORANGE)
        axes.axhline(100 * ranking.board.rules.utility_floor, color=GREY, linestyle="--")
        axes.set_xlabel("worst excess over the retrained model, points (less is better)")
        axes.set_ylabel("least utility, % of the target's")
        return _svg(figure, "Forgetting against utility, with the Pareto front")


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other has less excess and at least the utility of, by excess."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front
