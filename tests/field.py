"""What is taken, with a note, or refused, as the tests hold it: ``docs/field.md``, made by
``python -m tests.field docs/field.md`` (``make field``) from the tests' marks
``pytest.mark.field(section, case, outcome)``. They are read from the source: nothing is imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
HEAD = """\
# What checkpoints, tokenizers and files are taken

What the field brings, and what becomes of it: it runs, it runs with a line on stderr that says
what was done, or it is refused with a line that says what to do. Each row is held by the test that
it names, below `tests/`, and made from its mark: `make field`.
"""
SECTIONS = ("Prompts and tokenizers", "Weights", "Data, files, commands")

Row = tuple[str, str, str]


def field_marks(path: Path) -> Iterator[Row]:
    """Section, case and outcome of each mark of a test module; ValueError for others."""
    calls = [
        n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if type(n) is ast.Call
    ]
    for call in sorted(calls, key=lambda call: call.lineno):
        if ast.unparse(call.func) == "pytest.mark.field":
            section, case, outcome = map(ast.literal_eval, call.args)
            if section not in SECTIONS:
                raise ValueError(f"{path}:{call.lineno}: {section!r} is none of {SECTIONS}")
            yield section, case, outcome


def field_page() -> str:
    """The text of docs/field.md."""
    found: dict[Row, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if "pytest.mark.field(" in path.read_text(encoding="utf-8"):
            for row in field_marks(path):
                found.setdefault(row, []).append(f"`{path.relative_to(TESTS).as_posix()}`")
    lines = [HEAD]
    for section in SECTIONS:
        lines += [f"## {section}", "", "| case | | test |", "|---|---|---|"]
        for (where, case, outcome), tests in found.items():
            if where == section:
                lines.append(f"| {case} | {outcome} | {', '.join(dict.fromkeys(tests))} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(field_page(), encoding="utf-8")
