"""What is taken, with a note, or refused, as the tests hold it: ``docs/field.md``, made by
``python -m tests.field docs/field.md`` (``make field``) from the tests' marks
``pytest.mark.field(section, case, outcome)``. They are read from the source: nothing is imported.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
EVERY = TESTS / "contracts" / "every.json"
"""What becomes of each architecture and tokenizer class: ``python -m tests.contracts.every``."""
HEAD = """\
# What checkpoints, tokenizers and files are taken

What the field brings, and what becomes of it: it runs, it runs with a line on stderr that says
what was done, or it is refused with a line that says what to do. Each row is held by the test that
it names, below `tests/`, and made from its mark: `make field`.
"""
SECTIONS = ("Prompts and tokenizers", "Weights", "Data, files, commands")

ARCHITECTURES = """\
Each model type of the installed transformers, made tiny; a BERT as a decoder. What runs gives
continuations and scores of plain transformers in fp32, one prompt at a time; "padded" and "one
prompt at a time" say how it generates, which takes longer. Held by `contracts/test_every.py`."""
CLASSES = """\
Each class of the installed transformers, trained on a few lines: over its own rules, and over a
tokenizer.json that splits otherwise. What runs gives the ids of the file as the tokenizers library
reads it, of a class without that file those of transformers. Held by `contracts/test_every.py`."""

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
    lines += every_tables(json.loads(EVERY.read_text(encoding="utf-8")))
    return "\n".join(lines)


def every_tables(known: dict[str, str | list[str]]) -> list[str]:
    """Tables of what becomes of architectures (a text each) and tokenizer classes (a list: over the
    class's own rules, and over others), as lines.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, found in known.items():
        key: tuple[str, ...] = (found,) if isinstance(found, str) else (found[0], (*found, "")[1])
        groups.setdefault(key, []).append(f"`{name}`")
    lines = ["## Architectures", "", ARCHITECTURES, "", "| | model types |", "|---|---|"]
    tables = {1: lines, 2: ["## Tokenizer classes", "", CLASSES, "", "| | | |", "|---|---|---|"]}
    tables[2][4] = "| own rules | other rules in tokenizer.json | classes |"
    for key, names in sorted(groups.items(), key=lambda group: (group[0][0][:3], -len(group[1]))):
        tables[len(key)].append(f"| {' | '.join(key)} | {', '.join(names)} |")
    return [*tables[1], "", *tables[2], ""]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(field_page(), encoding="utf-8")
