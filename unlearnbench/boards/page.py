"""The board as one HTML file that needs no network.

Every text that came from a model, a task or a submitter goes through Jinja's escaping or, for the
script, through JSON whose ``<`` is written as an escape and which it puts in place as text. Control
and direction characters are shown as escapes. The page's policy allows its own script only.

Charts are drawn by that script, as SVG in the page's own colours: so they fit a phone, follow light
and dark, print, and each mark can be reached by keyboard.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files

from unlearnbench.boards.ranking import Ranking
from unlearnbench.boards.view import finding, view
from unlearnbench.errors import one_line, printable
from unlearnbench.lm_eval.tables import utility_cells
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.recovery.reports import counted, points, share

_SCRIPTS = ("page.js", "page_charts.js", "page_table.js")


def page(ranking: Ranking) -> str:
    """The whole page."""
    found = finding(ranking)
    return render(
        "page.html.j2",
        "".join(_own(name) for name in _SCRIPTS),
        rules=ranking.board.rules,
        finding=found[2],
        counts=_counts(ranking),
        places=ranking.shown,
        held=ranking.held,
        shares=ranking.shares,
        cells=ranking.cells,
        utilities=utility_cells(ranking.entries),
        data=_json(view(ranking)),
    )


def _counts(ranking: Ranking) -> str:
    """How much the board has."""
    rules, further = ranking.board.rules, len(ranking.further)
    said = [
        _many(len(ranking.places), "entry", "entries"),
        _many(len(rules.precisions), "condition", "conditions"),
        _many(len(rules.tasks), "task", "tasks"),
    ]
    if further:
        said[1] += f" that count for ranks and {further} that {'do' if further > 1 else 'does'} not"
    return ", ".join(said)


def _many(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def render(template: str, script: str, **values: object) -> str:
    """A template of this folder with the folder's style, filled in."""
    from jinja2 import Environment

    made = Environment(autoescape=True)
    shown = (one_line, printable, points, share, percent, counted)
    made.filters |= {show.__name__: show for show in shown}
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    given = {"script": script, "script_hash": digest, "style": _own("page.css"), **values}
    text: str = made.from_string(_own(template)).render(given)
    return text


def _own(name: str) -> str:
    return files("unlearnbench.boards").joinpath(name).read_text(encoding="utf-8")


def percent(value: float | None) -> str:
    """A share in percent; ``-`` where there is none."""
    return share(None if value is None else Estimate(value))


def _json(value: object) -> str:
    """JSON for a script element: no character in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
