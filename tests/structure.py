"""The plan of the package in figures, and the limits that hold it: ``python -m tests.structure``.

Everything is read from the source text, but the trip of one plain request, which is made: a tiny
checkpoint goes through ``unlearnbench --model FOLDER --quant 4bit --tasks demo_verbmem``, and the
files in which a function of the package runs are counted. What runs while a module is imported
does not count.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeAlias

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unlearnbench"
# Lists of the demo's sentences and the like may be as long as they are.
DATA = {"data"}

Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"


@dataclass(frozen=True)
class Figure:
    """One number of the plan."""

    name: str
    value: float
    """As counted."""
    limit: float
    """The most that it may be."""
    where: str = ""
    """The place that makes the number, where one does."""

    def __str__(self) -> str:
        mark = "" if self.value <= self.limit else "  TOO MUCH"
        where = f"  ({self.where})" if self.where else ""
        return f"{self.name:<44}{self.value:>8g}  at most {self.limit:g}{mark}{where}"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> dict[str, set[str]]:
    """Which module imports which, anywhere in it: inside functions and for types too."""
    known = modules()
    return {name: set(_imported(path, known)) - {name} for name, path in known.items()}


def _imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for one in node.names:
                inner = f"{node.module}.{one.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def circles() -> list[list[str]]:
    """Groups of modules that import each other, each group sorted."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    graph = imports()
    names = sorted(graph)
    place = {name: index for index, name in enumerate(names)}
    edges = [(place[a], place[b]) for a in names for b in graph[a]]
    rows, columns = zip(*edges, strict=True)
    matrix = csr_matrix(([1] * len(edges), (rows, columns)), shape=(len(names), len(names)))
    count, labels = connected_components(matrix, directed=True, connection="strong")
    groups = [[n for n, mark in zip(names, labels, strict=True) if mark == k] for k in range(count)]
    return [group for group in groups if len(group) > 1]


def layers() -> list[str]:
    """The lines of the layers contract in pyproject.toml, from the roof down."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.split("\nlayers = [\n")[1].split("\n]")[0]
    return [line.strip(' ",') for line in listed.splitlines()]


def _definitions() -> Iterator[tuple[str, ast.AST]]:
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield name, node


def _lines(node: Function | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _parameters(node: Function) -> int:
    args = node.args
    names = [a.arg for a in [*args.posonlyargs, *args.args, *args.kwonlyargs]]
    return len([n for n in names if n not in ("self", "cls")])


def _largest(sizes: list[tuple[int, str]]) -> tuple[int, str]:
    return max(sizes, default=(0, ""))


def text_figures() -> list[Figure]:
    """All figures that the source text gives."""
    files = [p for p in PACKAGE.iterdir() if p.is_file()]
    folders = [p for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"]
    lengths = {n: len(p.read_text(encoding="utf-8").splitlines()) for n, p in modules().items()}
    functions: list[tuple[int, str]] = []
    parameters: list[tuple[int, str]] = []
    classes: list[tuple[int, str]] = []
    for name, node in _definitions():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parameters.append((_parameters(node), f"{name}.{node.name}"))
            if not DATA & set(name.split(".")):
                functions.append((_lines(node), f"{name}.{node.name}"))
        elif isinstance(node, ast.ClassDef):
            classes.append((_lines(node), f"{name}.{node.name}"))
    ordered = sorted((count, name) for name, count in lengths.items())
    p95 = ordered[int(0.95 * (len(ordered) - 1))]
    groups = circles()
    return [
        Figure("files in the package's root", len(files), 6),
        Figure("folders in the package's root", len(folders), 18),
        Figure("circles of imports", len(groups), 0, "; ".join(map(", ".join, groups))),
        Figure("layers", len(layers()), 14),
        Figure("lines of the package", sum(lengths.values()), 17500),
        Figure("lines of the longest function", *_and_limit(functions, 60)),
        Figure("most parameters of a function", *_and_limit(parameters, 8)),
        Figure("lines of the longest class", *_and_limit(classes, 150)),
        Figure("lines of a file, 95% of files", p95[0], 300, p95[1]),
    ]


def _and_limit(sizes: list[tuple[int, str]], limit: int) -> tuple[int, int, str]:
    size, where = _largest(sizes)
    return size, limit, where


def trip(arguments: list[str]) -> list[str]:
    """The files, below the package, in which a function runs for one command line."""
    import threading

    from unlearnbench.cli import main as command_line

    prefix, seen, importing = f"{PACKAGE}/", set[str](), [0]

    def watch(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(prefix):
            return
        if code.co_name == "<module>":
            importing[0] += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not importing[0] and code.co_flags & 1:  # no class body
            seen.add(code.co_filename.removeprefix(prefix))

    status: object = 0
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        command_line(arguments)
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    if status not in (None, 0):
        raise RuntimeError(f"the plain request ended with {status!r}, so its trip is not known")
    return sorted(seen)


def plain_request(folder: Path) -> list[str]:
    """Make a tiny checkpoint in ``folder``, evaluate it at 4 bits; returns the trip's files."""
    import accelerate  # noqa: F401  # imports are slow under watch, and do not count
    import bitsandbytes  # noqa: F401

    import unlearnbench.evaluation.evaluate  # noqa: F401
    from tests.conftest import make_model, make_tokenizer

    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return trip(
        [
            *("--model", str(folder / "model"), "--quant", "4bit", "--tasks", "demo_verbmem"),
            *("--limit", "2", "--output", str(folder / "out")),
        ]
    )


def trip_figure() -> Figure:
    """How many files the plain request passes through, counted in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.structure", "--trip"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"the plain request failed: {run.stderr[-2000:]}")
    files = [x for x in run.stdout.splitlines() if x.endswith(".py")]
    return Figure("files that the plain request passes through", len(files), 35)


def main() -> None:
    """Print the trip's files with ``--trip``, else every figure; exit 1 where a limit is passed."""
    if "--trip" in sys.argv:
        with tempfile.TemporaryDirectory() as folder:
            print("\n".join(plain_request(Path(folder))))
        return
    figures = [*text_figures(), trip_figure()]
    print("\n".join(map(str, figures)))
    sys.exit(any(figure.value > figure.limit for figure in figures))


if __name__ == "__main__":
    main()
