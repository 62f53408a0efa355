from __future__ import annotations

import logging

import pytest
import torch

from unlearnbench.util import process


def test_threads_are_explained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    monkeypatch.setattr(process, "_threads_from", process._threads_from)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for asked, why in [(None, "torch's own choice"), (3, "asked for by --threads")]:
        process.set_threads(asked)
        process.explain_loaded("cpu", "fp32", None)
        assert caplog.records[-1].getMessage().endswith(f"threads: {why}")
