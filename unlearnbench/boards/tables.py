"""What is generated from a board: a Markdown table, a CSV and the page. The same entries give the
same bytes.
"""

from __future__ import annotations

import csv
import html
import io
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from unlearnbench.boards.entry import Board
from unlearnbench.boards.page import page, percent
from unlearnbench.boards.ranking import Place, Ranking, rank_entries
from unlearnbench.boards.verify import sound_entries
from unlearnbench.errors import one_line
from unlearnbench.lm_eval.tables import headline, utility_cells
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.recovery.reports import counted, points, share
from unlearnbench.results import Environment
from unlearnbench.runs.fingerprint import environments
from unlearnbench.util.files import write_text


def build_board(board: Board) -> list[Path]:
    """Verify every entry, then write ``README.md``, ``board.csv`` and ``index.html``. Raises as
    ``sound_entries``, and OptionError where the target or the retrained model is missing.
    """
    ranking = rank_entries(board, sound_entries(board))
    made = {"README.md": markdown, "board.csv": csv_text, "index.html": page}
    for name, make in made.items():
        write_text(board.folder / name, make(ranking))
    return [board.folder / name for name in made]


def markdown(ranking: Ranking) -> str:
    """The board for a README or a pull request."""
    from jinja2 import Environment

    template = files("unlearnbench.boards").joinpath("board.md.j2").read_text(encoding="utf-8")
    # No HTML: ``md`` escapes, for Markdown, all that is not the board's own.
    made = Environment(trim_blocks=True, keep_trailing_newline=True)  # noqa: S701
    made.filters |= {
        "md": md,
        "points": points,
        "share": share,
        "percent": percent,
        "counted": counted,
        "selected": lambda entry: entry.runs[0].run.checkpoint.origin.get("selected", ""),
        "verdicts": lambda place: verdicts(place, ranking.board.rules.precisions),
        "scores": _scores,
    }
    runs = [part.run for place in ranking.shown for entry in place.entries for part in entry.runs]
    machines = {_machine(found) for run in runs for found in environments(run).values()}
    text: str = made.from_string(template).render(
        vars(ranking),
        rules=ranking.board.rules,
        held=ranking.held,
        controls=any(place.is_control for place in ranking.places),
        names=list(dict.fromkeys(p for place in ranking.references for p in place.precisions)),
        forgets=any(p.verdict(*at) for p in ranking.references for at in p.standings),
        others=[x for x in ranking.lines() if not (x.required or x.place.is_reference)],
        general=utility_cells(ranking.entries),
        machines=sorted(machines),
    )
    return text


def verdicts(place: Place, required: Sequence[str]) -> str:
    """Which precisions bring something back, or how often that is not known; the page has every
    row.
    """
    rows = [row for (_, precision), row in place.rows.items() if precision in required]
    back = [row for row in rows if row.verdict == "recovers"]
    if back:
        return "recovers: " + ", ".join(md(f"{row.task} at {row.precision}") for row in back)
    unknown = Counter(row.verdict for row in rows if row.verdict not in ("forgets", "holds"))
    return ", ".join(f"{n} {verdict}" for verdict, n in unknown.items()) or "nothing recovers"


def _scores(place: Place, task: str, precisions: Sequence[str]) -> str:
    """The cells of a reference's scores of a task."""
    cells = []
    for at in ((task, precision) for precision in precisions):
        shown, forgets = "-", ""
        if at in place.standings:
            shown, forgets = points(place.standings[at].value), place.verdict(*at)
        cells.append(f"{shown}, {forgets}" if forgets else shown)
    return " | ".join(cells)


def _machine(environment: Environment) -> str:
    threads = f"{environment.threads} thread{'s' if environment.threads > 1 else ''}"
    versions = [f"unlearnbench {environment.unlearnbench}", f"Python {environment.python}"]
    shown = ("torch", "transformers", "bitsandbytes")
    versions += [f"{n} {environment.packages[n]}" for n in shown if n in environment.packages]
    return f"{environment.device}, {environment.dtype}, {threads}; {', '.join(versions)}"


def md(text: str, limit: int = 400) -> str:
    """Text that GitHub's Markdown takes literally, in a table cell too."""
    safe = html.escape(one_line(text, limit), quote=False)  # quotes mean nothing in a cell
    return "".join(f"&#{ord(c)};" if c in "|\\`*_[]!~@#:" else c for c in safe)


def csv_text(ranking: Ranking) -> str:
    """One line for each entry, task and precision; the references' lines come last."""
    parts = [(p.entry.name, part.run) for p in ranking.shown for part in p.entry.runs]
    runs = {(name, run.condition.name): run for name, run in parts}
    general = sorted({name for run in runs.values() for name in run.harness or {}})
    rows = list[dict[str, object]]()
    for line in ranking.lines():
        place, row, standing = line.place, line.row, line.standing
        harness = runs[place.entry.name, line.precision].harness or {}
        low, high = place.ranks or ("", "")
        known = place.state in ("ranked", "collapsed")
        rows.append(
            {
                "rank": "" if place.rank is None else place.rank,
                "rank_low": low,
                "rank_high": high,
                "first": _number(place.first),
                "state": cell(place.state),
                "state_certain": str(place.certain).lower() if known else "",
                "entry": cell(place.name),
                "seeds": len(place.entries),
                "task": cell(line.task),
                "precision": cell(line.precision),
                "required": str(line.required).lower(),
                "want": standing.want,
                "n": standing.n,
                **_figures("value", standing.value),
                **_figures("excess", standing.excess),
                **_figures("utility", standing.utility),
                **_figures("change", line.came_back("change")),
                "significant": "" if row is None else str(row.significant).lower(),
                **_figures("recovered", line.came_back("recovered")),
                "retained": _number(row.retained if row else None),
                "verdict": line.verdict,
            }
        )
        for name in general:
            value = headline(harness[name]).value if name in harness else None
            rows[-1][cell(f"lm_eval {name}")] = _number(value)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _figures(name: str, figure: Estimate | None) -> dict[str, str]:
    value, ci = (None, None) if figure is None else (figure.value, figure.ci)
    low, high = ci or (None, None)
    ends = {name: value, f"{name}_low": low, f"{name}_high": high}
    return {column: _number(end) for column, end in ends.items()}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


# Full-width forms too, which spreadsheets of East Asia read alike.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def cell(text: str) -> str:
    """A text cell that no spreadsheet takes for a formula."""
    clean = one_line(text)
    return f"'{clean}" if clean[:1] in _FORMULA else clean
