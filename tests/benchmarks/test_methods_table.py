"""What the table says of cells whose answer is known, and that every method has a row."""

from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks import measure_methods, methods_table
from tests.benchmarks.methods_table import grouped, page, said
from unlearnbench.methods import find_method, pieces


def cell(row: str, seed: int, share: float | None, half: float = 0.05) -> dict[str, Any]:
    scores = {"demo_knowmem_f": 10.0, "demo_knowmem_r": 90.0}
    found: dict[str, Any] = {"full": 10.0, "utility": 0.9}
    if share is not None:
        found |= {"recovered": share, "recovered_ci": [share - half, share + half]}
    made: dict[str, Any] = {"row": row, "method": row, "seed": seed, "steps": 72}
    made |= {"scores": dict.fromkeys(measure_methods.CONDITIONS, scores)}
    return made | {"back": dict.fromkeys(methods_table.PRECISIONS, found)}


@pytest.mark.parametrize(
    ("row", "shares", "half", "word"),
    [
        ("quark", [0.3], 0.05, "right"),
        ("quark", [1.1], 0.05, "wrong"),
        ("loo_klr", [1.1], 0.05, "right"),
        ("loo_klr", [0.1], 0.05, "wrong"),
        ("ga_gdr", [0.8], 0.05, "right"),
        ("ga_gdr", [0.52], 0.05, "likely right"),
        ("ga_gdr", [0.3], 0.05, "wrong"),
        ("ga_gdr", [0.48], 0.05, "likely wrong"),
        ("ga_gdr", [0.9, 0.55, 0.9], 0.01, "likely right"),  # the seeds are far apart
        ("depn", [0.1], 0.05, "right"),
        ("depn", [0.4], 0.05, "wrong"),
        ("quark", [0.1], 0.05, "wrong"),
        ("ga_gdr", [None], 0.0, "had not forgotten"),
        ("ga_gdr", [None, 0.8], 0.05, "right"),
        ("tv", [0.8], 0.05, "no prediction"),
        ("ga_gdr", [], 0.05, "not measured"),
        ("flearn_large", [0.3], 0.05, "right"),  # beside flearn's 0.7
        ("flearn_large", [0.69], 0.05, "likely right"),
        ("flearn_large", [0.9], 0.05, "wrong"),
    ],
)
def test_a_prediction_is_right_or_wrong_as_its_interval_says(
    row: str, shares: list[float | None], half: float, word: str
) -> None:
    cells = [cell(row, seed, share, half) for seed, share in enumerate(shares)]
    cells.append(cell("flearn", 0, 0.7))
    assert said(row, "rtn-int4", grouped(cells)) == word


def test_the_page_is_made_of_the_cells() -> None:
    marks = "".join(
        f"<!-- {n} -->\nold\n<!-- end of {n} -->\n" for n in ("summary", "table", "open")
    )
    cells = [
        cell("ga_gdr", 0, 0.8),
        cell("depn", 0, 0.1),
        cell("depn", 1, 0.1),
        cell("depn", 2, 0.1),
    ]
    made = page(marks, cells, ["ga_gdr", "depn", "kga"])
    assert "old" not in made
    assert "Of 4 predictions with a measurement (a method at a precision): 4 right" in made
    assert "80% [75, 85]" in made
    assert "Not measured yet: kga." in made
    assert "Fewer than 3 seeds (at rtn-int4, at bnb-nf4): ga_gdr (1, 1)." in made
    assert page(made, cells, ["ga_gdr", "depn", "kga"]) == made


def test_every_method_file_has_a_row_that_can_be_asked_for() -> None:
    rows = measure_methods.rows()
    found = {piece.about.name for row in rows[1:] for piece in find_method(row.of).pieces}
    assert found == set(pieces())
    for row in rows[1:]:
        find_method(row.of).with_options(measure_methods.knobs_of(row))
        measure_methods.options_of(row, 0)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert set(methods_table.PREDICTED) <= set(names)
    at = [names.index(row.name) for row in rows if row.after]
    before = [names.index(row.after) for row in rows if row.after]
    assert all(first < place for first, place in zip(before, at, strict=True))
