"""Every table of the terminal at three widths, as it looked when it was last looked at. That of
``compare`` is in tests/recovery/overview.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recovery.test_overview import row
from tests.test_results import make_result, make_task
from unlearnbench.cli.quants import _list
from unlearnbench.cli.tasks import _HEAD
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.quantize.overlap import (
    LayerOverlap,
    PrecisionOverlap,
    overlap_table,
)
from unlearnbench.evaluation.outcome import results_table
from unlearnbench.recovery.attacks import Attack, attack_table
from unlearnbench.repair.matrices import Totals
from unlearnbench.repair.report import report_table
from unlearnbench.util.text import fitted_table

FOLDER = Path(__file__).parent / "tables"


def evaluation() -> str:
    tasks = {
        f"news_{name}": make_task(value=58.4, ci=[52.0, 64.0])
        for name in ("verbmem", "knowmem_f", "knowmem_r")
    }
    leak = {"metric": "privleak", "want": "zero", "value": -99.8, "ci": [-100, -88.4]}
    tasks["news_privleak"] = make_task(**leak, auc=0.0009)
    found = [make_result(tasks), make_result(tasks, condition="prune-wanda-30+bnb-nf4")]
    paths = {r.condition.name: Path("results/unlearned-01234567", r.condition.name) for r in found}
    return results_table(found, paths)


def attack() -> str:
    rows = [row("npo", "relearn-20", 83.7, "the attack teaches"), row("npo", "x", 21.5, "forgets")]
    return attack_table([Attack(rows[0], "20 steps", (4.5, 70.1)), Attack(rows[1], "none", None)])


def inspect() -> str:
    return overlap_table(
        [
            PrecisionOverlap(
                name,
                tuple(
                    LayerOverlap(f"model.layers.{n}.{part}", 10**6, 7 * 10**5, 9 * 10**5, *sizes)
                    for n in range(3)
                    for part in ("mlp.up_proj", "self_attn.q_proj")
                ),
            )
            for name, sizes in {
                "rtn-int4": (0.1, 0.2, 0.1),
                "bnb-nf4": (0.19, 0.2, 0.1),
                "gptq-int4-g128-actorder-forget": (0.1, 0.2, 0.3),
            }.items()
        ]
    )


def repair() -> str:
    sizes = {"rtn-int4": 0.4, "bnb-nf4": 0.5}
    after = {"rtn-int4": 0.9, "bnb-nf4": 0.95}
    unfit = {"gguf-q4_0": "gguf-q4_0: the 80 columns of w make no blocks of 32"}
    totals = Totals(10**6, 10**4, 2000, 150, 1.0, 4.0, 900.0, sizes, after, 2, 3, unfit)
    return report_table(totals, [find_condition("hqq-int4-g64")])


def quants() -> str:
    facts = {"group": "textbook", "bits_per_weight": 4.25, "available": True, "reason": None}
    missing = {
        "group": "calibrated",
        "available": False,
        "reason": "gptqmodel is not installed: pip install '.[gptq]'",
    }
    return _list(
        [
            {
                **facts,
                "name": "bnb-fp4",
                "group": "textbook",
                "aliases": ["4bit", "fp4"],
                "scheme": "FP4 per block",
            },
            {
                **facts,
                **missing,
                "name": "gptq-int4",
                "group": "calibrated",
                "aliases": [],
                "scheme": "words " * 30,
            },
        ]
    )


def tasks() -> str:
    facts = ["news, news_qa", "rougeL", "low", "1", "KnowMem_f: " + "word " * 24]
    return fitted_table([["news_knowmem_f", *facts], ["short", *facts[:4], "Short."]], _HEAD)


def differ() -> str:
    head = ["task", "first", "second", "change", "samples that differ", "in one only"]
    return fitted_table([["news_knowmem_f", "12.0", "83.7", "+71.7", "90 of 100", "0"]], head)


TABLES: tuple[Callable[[], str], ...] = (evaluation, attack, inspect, repair, quants, tasks, differ)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_table_is_as_it_was(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change set UNLEARNBENCH_SNAPSHOTS, which writes what is shown, and look at it."""
    monkeypatch.setenv("COLUMNS", str(width))
    shown = "".join(f"== {table.__name__}\n{table()}\n" for table in TABLES)
    path = FOLDER / f"{width}.txt"
    if os.environ.get("UNLEARNBENCH_SNAPSHOTS"):
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")
    drawn = [line for line in shown.splitlines() if "  " in line or "|" in line]  # no sentences
    assert max(map(len, drawn)) <= width
