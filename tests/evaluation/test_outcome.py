from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_results import make_result, make_task
from unlearnbench.evaluation.outcome import results_table
from unlearnbench.results import RunResult

LEAK = {"metric": "privleak", "want": "zero"}


def cells(results: list[RunResult]) -> list[list[str]]:
    paths = {r.condition.name: Path("out") / "m-01234567" / r.condition.name for r in results}
    lines = results_table(results, paths).split("\n")
    assert set(lines.pop(1)) <= set("|-: ")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def cell(**facts: object) -> str:
    return cells([make_result({"t": make_task(**facts)})])[1][1]


def test_a_table_of_two_precisions() -> None:
    full = make_result(
        {
            "news_verbmem": make_task(value=58.4375, stderr=3.149, ci=[52.0, 64.0]),
            "news_knowmem_r": make_task(value=55.15, stderr=4.05, want="high"),
        }
    )
    coarse = make_result(
        {
            "news_verbmem": make_task(value=34.2, ci=[30.3, 38.2]),
            "news_privleak": make_task(**LEAK, value=-99.81, ci=[-100, -88.42], auc=0.0009),
        },
        condition="bnb-fp4",
    )
    assert cells([full, coarse]) == [
        [
            "condition",
            "news_verbmem (low)",
            "news_knowmem_r (high)",
            "news_privleak (near 0)",
            "run folder",
        ],
        ["none", "58.4 [52.0, 64.0]", "55.1", "not run", "out/m-01234567/none"],
        [
            "bnb-fp4",
            "34.2 [30.3, 38.2]",
            "not run",
            "-99.8 [-100.0, -88.4], AUC 0.001",
            "out/m-01234567/bnb-fp4",
        ],
    ]


def test_a_part_says_so_and_a_failure_behind_it_is_one() -> None:
    part = make_result({"t": make_task(value=0.0, n=4, drawn={"seed": 0, "of": 48})})
    assert cells([part])[1][1] == "0.0, of 4 of 48 samples alone"
    paths = {"none": Path("out")}
    assert "FAILED" in results_table([part], paths, failed=[("none", "t")])
    assert "FAILED" in results_table([part], paths, failed=[("none", None)])
    whole = make_result({"t": make_task(value=0.0)})
    assert "FAILED" not in results_table([whole], paths, failed=[("none", "t")])


def test_every_line_is_as_wide_as_the_others() -> None:
    table = results_table([make_result()], {"none": Path("out")})
    assert len({len(line) for line in table.split("\n")}) == 1


@pytest.mark.parametrize(
    ("facts", "want"),
    [
        ({"value": 50.0}, "50.0"),  # a single sample has no interval
        ({"value": 0.0, "ci": [0.0, 7.397]}, "0.0 [0.0, 7.4]"),
        ({"value": 12.25, "stderr": 0.149, "ci": [11.95, 12.56]}, "12.2 [11.9, 12.6]"),
    ],
)
def test_a_value_with_its_interval(facts: dict[str, object], want: str) -> None:
    assert cell(**facts) == want


@pytest.mark.parametrize(
    ("facts", "want"),
    [
        ({"value": None, "auc": 0.5}, "AUC 0.500"),
        (
            {"value": None, "auc": 0.47719, "auc_ci": [0.3964, 0.5582]},
            "AUC 0.477 [0.396, 0.558]",
        ),
        (
            {"value": 4.81, "ci": [-16, 26], "auc": 0.5, "auc_ci": [0.4, 0.6]},
            "4.8 [-16.0, 26.0], AUC 0.500 [0.400, 0.600]",
        ),
        ({"value": -100.0, "auc": 0.0}, "-100.0, AUC 0.000"),
    ],
)
def test_an_auc_stands_beside_privleak_or_alone(facts: dict[str, object], want: str) -> None:
    assert cell(**LEAK, **facts) == want


def test_an_auc_of_0_is_shown_and_not_taken_for_missing() -> None:
    assert cell(**LEAK, value=None, auc=0.0) == "AUC 0.000"
    assert cell(value=0.0) == "0.0"


@pytest.mark.parametrize("name", ["1e5", "8", "0x10", "1.50"])
def test_names_that_look_like_numbers_stay_as_they_are(name: str) -> None:
    assert cells([make_result(condition=name)])[1][0] == name


def test_tasks_and_precisions_stand_in_the_order_given() -> None:
    tasks = {name: make_task() for name in ("z", "a", "m")}
    results = [make_result(tasks, precision) for precision in ("nf4", "none", "fp4")]
    found = cells(results)
    assert found[0][1:-1] == ["z (low)", "a (low)", "m (low)"]
    assert [row[0] for row in found[1:]] == ["nf4", "none", "fp4"]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_fits_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With folders beside where there is room, else below; at the narrowest a row a score."""
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"news_{name}_f" for name in ("verbmem", "knowmem", "other")]
    made = make_result({name: make_task(value=58.4, ci=[52.0, 64.0]) for name in names})
    shown = results_table([made], {"none": Path("results/unlearned-01234567/none")})
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("58.4 [52.0, 64.0]") == 3
    assert all(name in shown for name in names)
    last = shown.splitlines()[-1]
    assert last.startswith("| none" if width == 160 else "none: results/unlearned-01234567/none")
    assert ("| none        | news_verbmem_f" in shown) == (width == 80)
