"""The two ways to run a weight-only precision give the same answers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from torch import nn

from tests.conditions.helpers import (
    in_folder,
    largest_difference,
    load,
    module_of,
    require_library,
    scores,
)
from tests.conftest import MakeCheckpoint, Toy
from unlearnbench import conditions, evaluate
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.load import pick_kernel
from unlearnbench.errors import OptionError, PrecisionError, ResultError

SPECS = conditions.precisions()
BOTH = sorted(name for name, spec in SPECS.items() if len(spec.kernels) == 2)
# All but torchao's differ by nothing at all here; torchao-int8 by 5e-6.
FP32_BOUND = 5e-5
# Where the processor has bf16 products bitsandbytes' 4-bit kernel is one of its own, which rounds
# to bf16 even in fp32: on an EPYC 0.14 at most in fp32, 0.21 in bf16.
BF16_KERNEL = bool(has_avx512bf16())  # type: ignore[no-untyped-call]
BF16_KERNEL_BOUND = 0.3
# bf16 keeps 8 bits, and products are rounded in another order or at another place. Measured:
# 0 for bnb, quanto-int4, hqq and gptq; 0.093, 0.088 and 0.079 of some 5 nats for quanto-int8,
# torchao-int8 and awq.
BF16_BOUND = {
    "bnb-nf4": 1e-3,
    "bnb-fp4-dq": 1e-3,
    "quanto-int8": 0.3,
    "quanto-int4": 1e-3,
    "torchao-int8": 0.3,
    "hqq-int4-g64": 1e-3,
}


def fp32_bound(name: str) -> float:
    return (
        BF16_KERNEL_BOUND if BF16_KERNEL and name.startswith(("bnb-fp4", "bnb-nf4")) else FP32_BOUND
    )


def fitting(
    name: str, source: CheckpointSource, square_source: CheckpointSource
) -> CheckpointSource:
    return square_source if name.startswith("awq") or name.endswith("g128") else source


# quanto's 4-bit kernel is compiled when it first runs, more than a minute; AWQ searches for scales.
DEAR = {"quanto-int4", "awq-int4-g64"}


def marked(name: str) -> object:
    marks = [pytest.mark.slow, pytest.mark.ci] if name in DEAR else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [marked(n) for n in BOTH if not n.endswith("g128")])
def test_both_kernels_give_the_same_scores_in_fp32(
    source: CheckpointSource, square_source: CheckpointSource, name: str
) -> None:
    require_library(name)
    where = fitting(name, source, square_source)
    native, dense = load(where, name, "native"), load(where, name, "dequantized")
    assert largest_difference(scores(native), scores(dense)) < fp32_bound(name)
    # Told apart in the results, and in the model; the proof is the same, as the weights are.
    assert (native.condition.options.kernel, dense.condition.options.kernel) == (
        "native",
        "dequantized",
    )
    assert native.condition.proof == dense.condition.proof
    key = "model.layers.0.mlp.up_proj"
    assert type(module_of(dense, key)) is nn.Linear
    assert type(module_of(native, key)) is not nn.Linear or name == "torchao-int8"


@pytest.mark.parametrize("name", [marked(n) for n in sorted(BF16_BOUND)])
def test_both_kernels_give_near_scores_in_bf16(source: CheckpointSource, name: str) -> None:
    require_library(name)
    native, dense = (scores(load(source, name, k, "bf16")) for k in ("native", "dequantized"))
    bound = max(BF16_BOUND[name], fp32_bound(name))
    assert largest_difference(native, dense) < bound


@pytest.mark.parametrize(
    ("hardware", "dtype", "kernel", "said"),
    [
        (True, "fp32", "native", True),
        (True, "bf16", "native", False),
        (True, "fp32", "dequantized", False),
        (False, "fp32", "native", False),
    ],
)
def test_a_kernel_that_computes_in_another_dtype_is_told(
    source: CheckpointSource,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hardware: bool,
    dtype: str,
    kernel: str,
    said: bool,
) -> None:
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: hardware)
    load(source, "bnb-nf4", kernel, dtype)
    assert ("computes in bf16 on this processor, not in float32" in caplog.text) == said


@pytest.fixture(scope="module")
def biased(make_checkpoint: MakeCheckpoint) -> CheckpointSource:
    """The tiny Llama with biases in its attention that are not zero."""
    source = open_checkpoint(str(make_checkpoint("biased", attention_bias=True)), LoadOptions())
    with torch.no_grad():
        for key, tensor in source.state_dict().items():
            if key.endswith(".bias"):
                tensor.copy_(torch.linspace(-1, 1, len(tensor)))
    return source


@pytest.mark.parametrize("name", ["bnb-nf4", "hqq-int4-g64", "quanto-int8", "torchao-int8"])
def test_biases_stay_and_are_counted(biased: CheckpointSource, name: str) -> None:
    require_library(name)
    key = "model.layers.0.self_attn.q_proj"
    native, dense = load(biased, name, "native"), load(biased, name, "dequantized")
    assert torch.equal(module_of(dense, key).bias, biased.state_dict()[f"{key}.bias"])
    assert largest_difference(scores(native), scores(dense)) < fp32_bound(name)
    proof = dense.condition.proof
    assert proof is not None
    assert proof.uncovered["model.layers.*.self_attn.q_proj.bias"] == 128


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("bnb-int8", "dequantized", "bnb-int8 runs only native .it quantizes activations too"),
        ("rtn-int4", "native", "rtn-int4 runs only dequantized .it has no kernel"),
        ("rtn-int8-g64-asym", "native", "runs only dequantized"),
        ("gguf-q4_0", "native", "gguf-q4_0 runs only dequantized"),
    ],
)
def test_a_kernel_that_is_not_there_is_an_error(
    source: CheckpointSource, name: str, asked: str, said: str
) -> None:
    with pytest.raises(PrecisionError, match=f"{said}.*use --quant-kernel auto"):
        load(source, name, asked)


@pytest.mark.parametrize(
    ("name", "on_cpu", "on_cuda"),
    [
        ("none", None, None),
        ("bnb-nf4", "dequantized", "native"),
        ("bnb-int8", "native", "native"),
        ("rtn-int4", "dequantized", "dequantized"),
    ],
)
def test_what_auto_means(name: str, on_cpu: str | None, on_cuda: str | None) -> None:
    found = [pick_kernel("auto", SPECS[name], device) for device in ("cpu", "cuda:0")]
    assert found == [on_cpu, on_cuda]


@pytest.mark.slow
@pytest.mark.ci
def test_awq_leaves_nothing_in_the_current_folder(
    square_source: CheckpointSource, tmp_path: Any
) -> None:
    require_library("awq-int4-g64")
    (tmp_path / "here").mkdir()
    with in_folder(tmp_path / "here"):
        load(square_source, "awq-int4-g64")
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quant_kernel": "native"}, "quant-kernel is dequantized there and native here"),
        ({"dtype": "bf16"}, "dtype is fp32 there and bf16 here"),
    ],
)
def test_another_kernel_in_a_run_folder_is_refused_by_name(
    tiny: Any, toy: Toy, changes: dict[str, Any], said: str
) -> None:
    evaluate(str(tiny), "toy_verbmem", "bnb-nf4", **toy.options)
    with pytest.raises(ResultError, match=said):
        evaluate(str(tiny), "toy_verbmem", "bnb-nf4", **toy.options, **changes)


def test_a_kernel_that_does_not_exist_is_refused_before_anything_is_read(
    tiny: Any, toy: Toy
) -> None:
    with pytest.raises(OptionError, match="--quant-kernel fast: use auto, native or dequantized"):
        evaluate(str(tiny), "toy", "bnb-nf4", quant_kernel="fast", **toy.options)
    with pytest.raises(PrecisionError, match="rtn-int4 runs only dequantized"):
        evaluate(str(tiny), "toy", ["none", "rtn-int4"], quant_kernel="native", **toy.options)
    assert not list(toy.out.rglob("run.json"))


@pytest.mark.slow
@pytest.mark.ci
def test_gptqmodel_leaves_the_hubs_caches_where_they_are() -> None:
    """Its tokenizer package names folders of its own for this process and its children."""
    pytest.importorskip("gptqmodel")
    code = (
        "import os\n"
        "before = {k: v for k, v in os.environ.items() if k.startswith('HF_')}\n"
        "from unlearnbench.conditions.quantize.gptqmodel import gptqmodel\n"
        "with gptqmodel(): pass\n"
        "import tokenicer\n"
        "assert before == {k: v for k, v in os.environ.items() if k.startswith('HF_')}"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
