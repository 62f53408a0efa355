"""The recovery table of the terminal: what it says, and that it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unlearnbench.recovery.overview import MARKS, conclusion, overview
from unlearnbench.recovery.verdicts import RecoveryRow, Verdict
from unlearnbench.util.text import paint

FIGURES: dict[str, Any] = {"want": "low", "n": 48, "excess": 0.0, "change": 0.0}
SNAPSHOTS = Path(__file__).parent / "overview"


def row(entry: str, condition: str, score: float, verdict: Verdict, **more: Any) -> RecoveryRow:
    facts = FIGURES | {"entry": entry, "task": "demo_knowmem_f", "precision": condition}
    facts |= {"full": 20.0, "full_ci": (10.0, 32.6), "target": 95.0, "target_ci": (85.3, 99.1)}
    facts |= {"target_full": 97.2, "retrained": 4.5, "retrained_ci": (1.2, 13.1)}
    facts |= {"quantized": score, "quantized_ci": (max(score - 12, 0), score + 8)}
    return RecoveryRow.model_validate(facts | {"verdict": verdict} | more)


def rows() -> list[RecoveryRow]:
    found = []
    for entry, back, verdict in (
        ("ga_gdr", 83.7, "recovers"),
        ("npo_klr", 79.5, "recovers"),
        ("sure", 25.8, "not decided"),
    ):
        seeds = {"seeds": 3} if entry == "npo_klr" else {}
        found.append(row(entry, "rtn-int4", back, verdict, **seeds))  # type: ignore[arg-type]
        found.append(row(entry, "rtn-int8", 20.1, "forgets", **seeds))
        kept = {"task": "demo_knowmem_r", "want": "high", "n": 120, "target_full": 94.7, **seeds}
        kept |= {"full": 85.6 if entry != "sure" else 40.0}
        at4 = {"utility": 0.9 if entry != "sure" else 0.42}
        found.append(row(entry, "rtn-int4", 88.0, "holds", **kept, **at4))
        found.append(row(entry, "rtn-int8", 88.0, "holds", **kept, utility=0.95))
    return found


@pytest.mark.parametrize("width", [80, 100, 160])
def test_what_is_shown_at_a_width(width: int) -> None:
    """To look at after a change: write what is shown into the file."""
    shown = overview(rows(), 0.5, width)
    expected = (SNAPSHOTS / f"{width}.txt").read_text(encoding="utf-8")
    assert shown == expected.rstrip("\n")


@pytest.mark.parametrize("width", [80, 100, 160])
def test_every_score_is_shown_and_no_line_is_too_long(width: int) -> None:
    """Many conditions, long names, and names of a stranger."""
    entries = ["x" * 200, "\x1b[31mred\nline", "| a | b", *(f"npo_klr-{i}" for i in range(4))]
    names = [f"prune-wanda-{i}+bnb-nf4" for i in range(10, 22)]
    made = [
        row(entry, name, 1.0 + i + 20 * j, "recovers")
        for i, entry in enumerate(entries)
        for j, name in enumerate(names[:4])
    ] + [row(entries[3], name, 99.0, "collapsed") for name in names[4:]]
    shown = overview(made, 0.5, width)
    assert max(map(len, shown.splitlines())) <= width
    assert "\x1b" not in shown
    assert "\\x1b[31mred line" in shown
    assert all(f" {one.quantized:.1f}" in shown for one in made)
    assert all(name in shown for name in names)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["recovers", "forgets"], "1 of 2 recovers at q"),
        (["forgets", "forgets (utility not measured)"], "0 of 2 recover at q"),
        (
            ["recovers", "recovers", "collapsed", "not decided", "not decided"],
            "2 of 5 recover at q (1 collapsed, 2 not decided)",
        ),
    ],
)
def test_the_conclusion_counts(verdicts: list[Verdict], said: str) -> None:
    assert conclusion([row(str(i), "q", 50.0, v) for i, v in enumerate(verdicts)]) == said


def test_conditions_that_say_the_same_are_told_together() -> None:
    made = [row("a", name, 50.0, "recovers") for name in ("p", "q")]
    made += [row("a", "r", 9.0, "forgets")]
    assert conclusion(made) == "1 of 1 recovers at p, q; 0 of 1 at r"


def test_every_verdict_has_a_mark_of_its_own() -> None:
    marks = [mark for mark, _ in MARKS.values()]
    assert len(set(marks)) == len(marks)
    assert set(MARKS) == set(Verdict.__args__)  # type: ignore[attr-defined]


def test_colour_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = overview(rows(), 0.5, 100, lambda text, colour: f"<{colour}>{text}</>")
    assert "<red>83.7" in shown
    assert "<green>20.1" in shown
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint("x", "red") == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("x", "red") == "x"
