from __future__ import annotations

import logging

import pytest

from unlearnbench.conditions.load import pick_dtype
from unlearnbench.conditions.quantize import find_precision


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
    pick_dtype(asked, find_precision(precision), own, "cpu")
    assert why in caplog.text
