from __future__ import annotations

import logging

import pytest
import torch

from unlearnbench.util import explain


def test_threads_are_explained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    monkeypatch.setattr(explain, "_THREADS", dict(explain._THREADS))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    for asked, why in [(None, "torch's own choice"), (3, "asked for by --threads")]:
        explain.set_threads(asked)
        explain.explain_loaded("cpu", "fp32", None)
        assert caplog.records[-1].getMessage().endswith(f"threads: {why}")
