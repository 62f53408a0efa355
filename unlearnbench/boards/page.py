"""The board as one HTML file that needs no network.

Every text that came from a model, a task or a submitter goes through Jinja's escaping or, for the
viewer, through JSON whose ``<`` is written as an escape and which the script puts in place as text.
Control and direction characters are shown as escapes. The page's policy allows its own script only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files

from unlearnbench.boards.plots import dumbbell, pareto
from unlearnbench.boards.standings import Place, Standings
from unlearnbench.errors import one_line, printable
from unlearnbench.lm_eval.tables import utility_cells
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.recovery.tables import share, with_interval
from unlearnbench.results import FULL, GenerationRecord, RunResult

LONGEST = 100_000
"""Characters of one text that the viewer shows."""


def page(standings: Standings) -> str:
    """The whole page."""
    from jinja2 import Environment

    script, style = _asset("page.js"), _asset("page.css")
    template = Environment(autoescape=True).from_string(_asset("page.html.j2"))
    text: str = template.render(
        rules=standings.board.rules,
        one_line=one_line,
        script=script,
        style=style,
        script_hash=_sha256(script),
        rows=[row for place in standings.shown for row in _rows(standings, place)],
        places=[_place(standings, i, place) for i, place in enumerate(standings.shown)],
        retained=[(p, share(r.value, r.ci)) for p, r in standings.retained.items()],
        pareto=pareto(standings),
        utilities=utility_cells(standings.everyone()),
        samples=_json(_samples(standings)),
    )
    return text


def _asset(name: str) -> str:
    return files("unlearnbench.boards").joinpath(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _json(value: object) -> str:
    """JSON for a script element: no character in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _anchor(place: Place, precision: str) -> str:
    """The id of a run's provenance."""
    return f"run-{place.entry.name}-{precision}"


def _rows(standings: Standings, place: Place) -> list[dict[str, object]]:
    recovery = {(row.task, row.precision): row for row in place.rows}
    found: list[dict[str, object]] = []
    for (task, precision), standing in place.standings.items():
        row = recovery.get((task, precision))
        forgets = place.forgets(task, precision)
        cells: list[tuple[str, float | None]] = [
            _points(standing.value),
            _points(standing.excess),
            _share(standing.utility),
            _points(None if row is None else Estimate(row.change, row.change_ci)),
            _share(
                None
                if row is None or row.recovered is None
                else Estimate(row.recovered, row.recovered_ci)
            ),
        ]
        found.append(
            {
                "entry": one_line(place.entry.name),
                "rank": place.rank,
                "state": place.state,
                "task": one_line(task),
                "precision": one_line(precision),
                "counts": precision in standings.board.rules.precisions,
                "reference": place.is_reference,
                "cells": cells,
                "significant": row is not None and row.significant,
                "verdict": row.verdict if row else "target forgets" if forgets else "",
                "anchor": _anchor(place, precision),
            }
        )
    return found


def _points(figure: Estimate | None) -> tuple[str, float | None]:
    return ("", None) if figure is None else (with_interval(figure.value, figure.ci), figure.value)


def _share(figure: Estimate | None) -> tuple[str, float | None]:
    return ("", None) if figure is None else (share(figure.value, figure.ci), figure.value)


def _place(standings: Standings, number: int, place: Place) -> dict[str, object]:
    return {
        "number": number,
        "name": one_line(place.entry.name),
        "rank": place.rank,
        "state": place.state,
        "reference": place.is_reference,
        "note": printable(place.entry.note),
        "worst": _points(place.worst)[0],
        "worst_at": one_line(place.worst_at),
        "utility": _share(place.utility)[0],
        "plot": dumbbell(standings, place) if len(place.precisions) > 1 else "",
        "texts": place.entry.texts and standings.board.rules.publish_texts,
        "runs": [
            {"anchor": _anchor(place, p.run.condition.name), "facts": _facts(p.run)}
            for p in place.entry.runs
        ],
    }


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
        "device": f"{run.environment.device}, {run.environment.dtype}",
        "unlearnbench": f"{run.environment.unlearnbench} ({run.environment.git_hash or 'release'})",
        "made": run.created,
    }
    for name, result in run.tasks.items():
        facts[f"{name} samples SHA-256"] = result.records_sha256
    return [(one_line(name), one_line(value)) for name, value in facts.items()]


def _samples(standings: Standings) -> list[object]:
    """Texts side by side, by entry, task and sample; only where they may be published."""
    found: list[object] = []
    for place in standings.shown:
        allowed = place.entry.texts and standings.board.rules.publish_texts
        found.append(_side_by_side(place) if allowed else [])
    return found


def _side_by_side(place: Place) -> list[dict[str, object]]:
    by_precision = {part.run.condition.name: part.samples for part in place.entry.runs}
    full = by_precision.pop(FULL, {})
    found: list[dict[str, object]] = []
    for task, records in full.items():
        for number, record in enumerate(records):
            if not isinstance(record, GenerationRecord):
                continue
            outputs = [[FULL, _text(record.output), round(100 * record.score, 1)]]
            for precision, samples in by_precision.items():
                other = samples[task][number]
                if isinstance(other, GenerationRecord):
                    score = round(100 * other.score, 1)
                    outputs.append([precision, _text(other.output), score])
            found.append(
                {
                    "task": one_line(task),
                    "id": one_line(record.id),
                    "prompt": _text(record.prompt),
                    "target": _text(record.target),
                    "outputs": outputs,
                }
            )
    return found


def _text(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} [cut]"
