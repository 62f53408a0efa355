"""The board as one HTML file that needs no network.

Every text that came from a model, a task or a submitter goes through Jinja's escaping or, for the
viewer, through JSON whose ``<`` is written as an escape and which the script puts in place as text.
Control and direction characters are shown as escapes. The page's policy allows its own script only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from importlib.resources import files

from unlearnbench.boards.plots import dumbbell, pareto
from unlearnbench.boards.ranking import Line, Place, Ranking
from unlearnbench.errors import one_line, printable
from unlearnbench.lm_eval.tables import utility_cells
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.recovery.reports import counted, points, share
from unlearnbench.results import FULL, Environment, GenerationRecord, RunResult
from unlearnbench.runs.fingerprint import environments

LONGEST = 100_000
"""Characters of one text that the viewer shows."""


def page(ranking: Ranking) -> str:
    """The whole page."""
    from jinja2 import Environment

    names = ("page.js", "page.css", "page.html.j2")
    texts = (files("unlearnbench.boards").joinpath(n).read_text(encoding="utf-8") for n in names)
    script, style, template = texts
    made = Environment(autoescape=True)
    made.filters |= {
        "one_line": one_line,
        "printable": printable,
        "points": points,
        "share": share,
        "percent": percent,
        "counted": counted,
        "facts": _facts,
        "plot": lambda place: dumbbell(ranking, place) if len(place.precisions) > 1 else "",
    }
    public = ranking.board.rules.publish_texts
    places = [(place, place.entry.texts and public) for place in ranking.shown]
    text: str = made.from_string(template).render(
        rules=ranking.board.rules,
        script=script,
        style=style,
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode(),
        lines=[(line, _cells(line)) for line in ranking.lines()],
        places=places,
        held=ranking.held,
        shares=ranking.shares,
        cells=ranking.cells,
        pareto=pareto(ranking),
        utilities=utility_cells(ranking.entries),
        samples=_json([_side_by_side(place) if texts else [] for place, texts in places]),
    )
    return text


def percent(value: float | None) -> str:
    """A share in percent; ``-`` where there is none."""
    return share(None if value is None else Estimate(value))


def _json(value: object) -> str:
    """JSON for a script element: no character in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _cells(line: Line) -> list[tuple[str, float | None]]:
    """Value, excess, utility, change and recovered: as shown, and to sort by."""
    figures = [
        (line.standing.value, points),
        (line.standing.excess, points),
        (line.standing.utility, share),
        (line.came_back("change"), points),
        (line.came_back("recovered"), share),
    ]
    return [("", None) if x is None else (show(x), x.value) for x, show in figures]


def _facts(run: RunResult) -> list[tuple[str, str]]:
    """Where a run's numbers come from."""
    facts = {
        "precision": run.condition.name,
        "scheme": f"{run.condition.options.scheme} ({run.condition.options.backend})",
        "checkpoint": run.checkpoint.path,
        "made by": ", ".join(f"{k} {v}" for k, v in run.checkpoint.origin.items()) or "not known",
        "weights SHA-256": run.checkpoint.weights_sha256,
        "tokenizer SHA-256": run.checkpoint.tokenizer_sha256,
        "protocol": run.protocol,
        "device": _every(run, lambda e: f"{e.device}, {e.dtype}"),
        "unlearnbench": _every(run, lambda e: f"{e.unlearnbench} ({e.git_hash or 'release'})"),
        "made": run.created,
    }
    facts |= {f"{name} samples SHA-256": x.records_sha256 for name, x in run.tasks.items()}
    return [(one_line(name), one_line(value)) for name, value in facts.items()]


def _every(run: RunResult, fact: Callable[[Environment], str]) -> str:
    """A fact of where the tasks were measured, each of its values once."""
    return "; ".join(dict.fromkeys(map(fact, environments(run).values())))


def _side_by_side(place: Place) -> list[dict[str, object]]:
    """An entry's texts, by task and sample, at every precision."""
    by_precision = {part.run.condition.name: part.samples for part in place.entry.runs}
    full = by_precision.pop(FULL, {})
    return [
        {
            "task": one_line(task),
            "id": one_line(record.id),
            "prompt": _text(record.prompt),
            "target": _text(record.target),
            "outputs": [
                [name, _text(other.output), round(100 * other.score, 1)]
                for name, samples in {FULL: full, **by_precision}.items()
                if isinstance(other := samples[task][number], GenerationRecord)
            ],
        }
        for task, records in full.items()
        for number, record in enumerate(records)
        if isinstance(record, GenerationRecord)
    ]


def _text(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} [cut]"
