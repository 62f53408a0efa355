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

from unlearnbench.boards.definition import Board
from unlearnbench.boards.page import page
from unlearnbench.boards.ranking import Place, Ranking, rank_entries
from unlearnbench.boards.verify import verify_board
from unlearnbench.errors import OptionError, ResultError, one_line
from unlearnbench.lm_eval.tables import headline, utility_cells
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.recovery.reports import points, share
from unlearnbench.results import Environment
from unlearnbench.util.files import write_text


def build_board(board: Board) -> list[Path]:
    """Verify every entry, then write ``README.md``, ``board.csv`` and ``index.html``.

    Raises:
        ResultError: an entry is wrong in more than a missing run, or a file cannot be written.
        OptionError: there are no entries, or no target or retrained model among them.
    """
    entries, verdicts = verify_board(board)
    wrong = [v for v in verdicts if v.problems]
    if wrong:
        raise ResultError(f"{board.name}: {wrong[0].name}: {one_line(wrong[0].problems[0])}")
    if not entries:
        raise OptionError(f"{board.name} has no entries yet")
    ranking = rank_entries(board, entries)
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
        "verdicts": lambda place: verdicts(place, ranking.board.rules.precisions),
        "scores": _scores,
    }
    machines = {_machine(p.run.environment) for place in ranking.shown for p in place.entry.runs}
    text: str = made.from_string(template).render(
        rules=ranking.board.rules,
        places=ranking.places,
        references=ranking.references,
        retained=ranking.retained,
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
    for precision in precisions:
        standing = place.standings.get((task, precision))
        forgets = "" if standing is None else place.verdict(task, precision)
        shown = points(None if standing is None else standing.value)
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


_HEAD = ["rank", "state", "entry", "task", "precision", "required", "want", "n"]
_HEAD += ["value", "value_low", "value_high", "excess", "excess_low", "excess_high"]
_HEAD += ["utility", "utility_low", "utility_high", "change", "change_low", "change_high"]
_HEAD += ["significant", "recovered", "recovered_low", "recovered_high", "retained", "verdict"]


def csv_text(ranking: Ranking) -> str:
    """One line for each entry, task and precision; the references' lines come last."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parts = [part for place in ranking.shown for part in place.entry.runs]
    general = sorted({name for part in parts for name in part.run.harness or {}})
    writer.writerow([*_HEAD, *(cell(f"lm_eval {name}") for name in general)])
    for line in ranking.lines():
        place, row = line.place, line.row
        (run,) = [p.run for p in place.entry.runs if p.run.condition.name == line.precision]
        harness = run.harness or {}
        writer.writerow(
            [
                "" if place.rank is None else place.rank,
                *map(cell, (place.state, place.entry.name, line.task, line.precision)),
                str(line.required).lower(),
                line.standing.want,
                line.standing.n,
                *_figures(line.standing.value),
                *_figures(line.standing.excess),
                *_figures(line.standing.utility),
                *_figures(line.came_back("change")),
                "" if row is None else str(row.significant).lower(),
                *_figures(line.came_back("recovered")),
                "" if row is None else _number(row.retained),
                line.verdict,
                *(_number(headline(harness[n]).value if n in harness else None) for n in general),
            ]
        )
    return buffer.getvalue()


def _figures(figure: Estimate | None) -> list[str]:
    if figure is None:
        return ["", "", ""]
    return [_number(x) for x in (figure.value, *(figure.ci or (None, None)))]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def cell(text: str) -> str:
    """A text cell that no spreadsheet takes for a formula."""
    clean = one_line(text)
    return f"'{clean}" if clean[:1] in _FORMULA else clean


# Full-width forms too, which spreadsheets of East Asia read alike.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
