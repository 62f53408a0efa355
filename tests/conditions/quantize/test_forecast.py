"""The published curve, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import why_page
from unlearnbench.conditions.quantize import forecast as module
from unlearnbench.conditions.quantize.forecast import CURVE, expected, forecast

ROWS = [
    {"from": None, "pairs": 20, "low": 0.8, "median": 0.9, "high": 1.004},
    {"from": 0.1, "pairs": 4, "low": 0.3, "median": 0.4, "high": 0.5},
    {"from": 0.9, "pairs": 9, "low": -0.052, "median": 0.0, "high": 0.12},
]


@pytest.fixture
def curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(ROWS))
    monkeypatch.setattr(module, "CURVE", path)
    module._curve.cache_clear()
    monkeypatch.setattr(module, "_curve", module._curve.__wrapped__)


@pytest.mark.usefixtures("curve")
@pytest.mark.parametrize(
    ("survival", "says"),
    [
        (0.04, "survival 0.04 at rtn-int4: expect 80 to 100% back, as in 8 of 10 of 20 measured"),
        (-3.0, "expect 80 to 100% back"),
        (0.1, "too little was measured there to tell"),
        (0.9, "expect -5 to 12% back, as in 8 of 10 of 9 "),
        (7.0, "expect -5 to 12% back"),
        (None, "the same weights"),
    ],
)
def test_the_line(survival: float | None, says: str) -> None:
    assert says in forecast(survival, "rtn-int4")


def test_the_shipped_curve_is_that_of_the_stored_figures() -> None:
    pairs = json.loads(why_page.PAIRS.read_bytes())
    rows = json.loads(CURVE.read_bytes())
    assert rows == why_page.curve(pairs)
    # Against a plain count.
    for low, row in zip(why_page.EDGES, rows, strict=False):
        high = next((edge for edge in why_page.EDGES if edge > low), None)
        shares = []
        for p in pairs:
            inside = low <= p["survival"] < high if high is not None else p["survival"] >= low
            if inside and p["target"] - p["full"] >= 20:
                shares.append((p["there"] - p["full"]) / (p["target"] - p["full"]))
        assert row["pairs"] == len(shares)
        if shares:
            assert min(shares) - 1e-3 <= row["low"] <= row["median"] <= row["high"]
            assert row["high"] <= max(shares) + 1e-3
    assert expected(1.0) is not None
    assert expected(2.2) is None, "nothing was measured there"


def test_the_page_holds_the_tables_of_the_stored_figures() -> None:
    pairs = json.loads(why_page.PAIRS.read_bytes())
    page = why_page.PAGE.read_text(encoding="utf-8")
    assert why_page.with_tables(page, pairs) == page
