from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import MakeCheckpoint, Toy
from unlearnbench import evaluate
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.load import pick_device, pick_dtype, prepare_all, require_available
from unlearnbench.conditions.options import KernelOptions
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


PLAIN = "as stored in the checkpoint"


@pytest.mark.parametrize(
    ("name", "stored", "dtype", "bits", "scheme"),
    [
        ("none", "float32", "auto", 32, PLAIN),
        ("none", "float32", "fp32", 32, PLAIN),
        ("none", "float32", "bf16", 16, f"{PLAIN} (fp32), computed in bf16"),
        ("none", "float32", "fp16", 16, f"{PLAIN} (fp32), computed in fp16"),
        ("none", "bfloat16", "auto", 16, PLAIN),
        ("none", "bfloat16", "fp32", 16, PLAIN),
        ("none", "float16", "auto", 16, PLAIN),
        ("fp32", "float32", "auto", 32, "IEEE binary32"),
        ("fp32", "float32", "bf16", 16, "IEEE binary32 (fp32), computed in bf16"),
        ("bf16", "float32", "fp32", 16, "bfloat16"),
        ("rtn-int4", "float32", "bf16", 4, None),
        ("rtn-int4", "float32", "fp32", 4, None),
    ],
)
def test_the_bits_in_force_are_recorded(
    make_checkpoint: MakeCheckpoint,
    name: str,
    stored: str,
    dtype: str,
    bits: float,
    scheme: str | None,
) -> None:
    folder = make_checkpoint(dtype=stored, num_hidden_layers=1)
    options = KernelOptions(device="cpu").updated({"dtype": dtype})
    (prepared,) = prepare_all(str(folder), [find_condition(name)], options)
    made = prepared.condition.options
    assert (made.bits, made.scheme) == (bits, scheme or find_condition(name).scheme)


def test_a_run_whose_file_states_the_bits_that_are_stored_goes_on(toy: Toy, tiny: Path) -> None:
    """An fp32 checkpoint in bf16, as versions before wrote it down."""
    options: dict[str, Any] = {**toy.options, "dtype": "bf16"}
    (first,) = evaluate(tiny, "toy_verbmem", **options)
    assert first.condition.options.bits == 16
    (path,) = toy.out.rglob("run.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    content["condition"]["options"] |= {"bits": 32.0, "scheme": PLAIN}
    path.write_text(json.dumps(content), encoding="utf-8")
    (more,) = evaluate(tiny, "toy_verbmem,toy_knowmem_f", **options)
    assert more.tasks["toy_verbmem"] == first.tasks["toy_verbmem"]
    assert more.condition == first.condition
