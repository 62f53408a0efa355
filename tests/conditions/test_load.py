from __future__ import annotations

import logging

import pytest
import torch

from unlearnbench.conditions import find_condition
from unlearnbench.conditions.load import pick_device, pick_dtype, require_available
from unlearnbench.errors import OptionError, PrecisionError


@pytest.mark.parametrize(
    ("asked", "precision", "own", "why"),
    [
        ("bf16", "none", "fp32", "none: compute dtype bf16, asked for by --dtype"),
        ("auto", "fp16", "fp32", "fp16: compute dtype fp16, what the precision stores"),
        ("auto", "bnb-nf4", "fp16", "bnb-nf4: compute dtype fp32, fp16 products are slow on CPU"),
        ("auto", "bnb-nf4", "bf16", "compute dtype bf16, what the checkpoint is stored in"),
    ],
)
def test_a_dtype_is_explained(
    caplog: pytest.LogCaptureFixture, asked: str, precision: str, own: str, why: str
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    pick_dtype(asked, find_condition(precision), own, "cpu")
    assert why in caplog.text


@pytest.mark.parametrize(
    ("asked", "precision", "own", "device", "expected"),
    [
        ("auto", "none", "bf16", "cpu", "bf16"),
        ("auto", "none", "fp16", "cpu", "fp32"),
        ("auto", "none", "fp16", "cuda:0", "fp16"),
        ("auto", "bnb-fp4", "fp16", "cpu", "fp32"),
        ("auto", "bnb-fp4", "fp32", "cpu", "fp32"),
        ("auto", "fp16", "fp32", "cpu", "fp16"),
        ("bf16", "fp32", "fp32", "cpu", "bf16"),
    ],
)
def test_compute_dtype(asked: str, precision: str, own: str, device: str, expected: str) -> None:
    assert pick_dtype(asked, find_condition(precision), own, device) == expected


def test_unknown_device() -> None:
    with pytest.raises(OptionError, match="device 'nowhere'"):
        pick_device("nowhere")
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["meta", "mps"])
def test_only_cpu_and_cuda(name: str) -> None:
    with pytest.raises(OptionError, match="only cpu, cuda and auto"):
        pick_device(name)


def test_auto_spreads_over_several_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("auto") == pick_device(None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == "auto"
    with pytest.raises(PrecisionError, match="hqq-int4.* is made on one device"):
        require_available(find_condition("hqq-int4-g64"), "auto")
