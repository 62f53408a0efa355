from __future__ import annotations

import io
import logging
import sys

import pytest
import torch

from unlearnbench.util import process
from unlearnbench.util.process import ProgressLine


def test_threads_are_explained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    monkeypatch.setattr(process, "_threads_from", "torch's own choice")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for asked, why in [(None, "torch's own choice"), (3, "asked for by --threads")]:
        process.set_threads(asked)
        process.explain_loaded("cpu", "fp32", None)
        assert caplog.records[-1].getMessage().endswith(f"threads: {why}")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_line_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with ProgressLine("task [none]", 4, "sample", done=1) as shown:
        shown.update(1)
        shown.update(2, "(loss 0.5)")
    text = screen.getvalue()
    assert "task [none]: 1 of 4 samples (25%)" in text
    assert "\n" not in text
    assert text.endswith("\r"), "the line is gone at the end"


def test_without_a_terminal_there_is_a_plain_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("unlearnbench.util.process.time.monotonic", lambda: float(next(clock)))
    caplog.set_level(logging.INFO)
    with ProgressLine("train", 12, "step") as shown:  # at 0 s
        shown.goes_on(4)
        for step in range(4):  # at 20, 40, 60 and 80 s
            shown.update(1, f"(loss {step})")
    # A step takes 20 s: after 40 s of 12 steps 4 were there, 2 are new, 6 are left.
    assert caplog.messages == [
        "train (loss 1): 6 of 12 steps, 0.05 a second, 2:00 left",
        "train (loss 3): 8 of 12 steps, 0.05 a second, 1:20 left",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_where_nobody_asks(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal() if terminal else io.StringIO())
    monkeypatch.setattr("unlearnbench.util.process._LINE_EVERY", 0.0)
    caplog.set_level(logging.INFO)
    with ProgressLine("task", 2, "sample", shown=False) as shown:
        shown.update()
    assert (screen.getvalue(), caplog.messages) == ("", [])
