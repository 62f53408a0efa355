"""Every precision, on a tiny real model: loaded, proven, answering, deterministic, recorded."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conditions.helpers import (
    EXTRAS,
    LINEAR,
    TEXTS,
    answers,
    in_folder,
    largest_difference,
    load,
    require_library,
    scores,
    short_calibration,
)
from tests.conftest import CORPUS, MakeCheckpoint, Toy, load_at, make_tokenizer, write_jsonl
from unlearnbench import conditions, evaluate
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.base import Kernel
from unlearnbench.conditions.load import pick_kernel
from unlearnbench.errors import NotInForceError, PrecisionError
from unlearnbench.models.hf import HFModel
from unlearnbench.runs.folder import RunFolder, model_folder_name, read_run

SPECS = conditions.precisions()
NAMES = sorted(SPECS)
RTN = [name for name in NAMES if name.startswith("rtn")]
PLAIN = ["bf16", "fp16", "fp32", "none"]
# One of every number of bits and group size, with and without zero point: every way through the
# code. The formula is tested on all 48 (test_references).
SOME_RTN = [
    *("rtn-int8", "rtn-int6-asym", "rtn-int5-g128", "rtn-int4", "rtn-int4-g64"),
    *("rtn-int3-g32-asym", "rtn-int2-g128-asym", "rtn-int2"),
]
# So of llama.cpp's: the mixtures have tests of their own.
SOME_GGML = ["gguf-q2_k", "gguf-q3_k_l", "gguf-q4_k_m", "gguf-q5_k_m", "gguf-q6_k", "gguf-iq4_xs"]
SOME = [
    name
    for name in NAMES
    if (name not in RTN and not SPECS[name].by_matrix) or name in [*SOME_RTN, *SOME_GGML]
    # Minutes each; groups of 64 stand for the others.
    if name not in ("auto-round-int4-g32", "auto-round-int4-g128")
]
QUANTIZED = [name for name in NAMES if SPECS[name].kind == "quantized"]
CACHED = ["kv-int4", "kv-int8"]  # tests/conditions/test_cache.py
UNCALIBRATED = [name for name in SOME if not SPECS[name].calibrated]
# Of one module, relative to its weights, by bits: 1.15 times the largest seen on these models
# (0.0083, 0.027, 0.055, 0.147, 0.277, 0.769), which is about half of what one bit less gives.
# Of floating-point numbers as of their mantissa's bits.
LARGEST_ERROR = {8: 0.0095, 6: 0.031, 5: 0.064, 4: 0.17, 3: 0.32, 2: 0.89}


# The same library at 64 columns a group stands for these by default; AutoRound has its own file.
SLOW = (
    "auto-round-int4-g64",
    *("awq-int4-g128", "gptq-int3-g64", "gptq-int3-g128", "gptq-int4-g128", "gptq-int8-g128"),
    *("hqq-int8-g64", "hqq-int2-g64", "fp8-e4m3-tensor", "fp8-e4m3-dynamic"),
)


def on_every(*names: str) -> pytest.MarkDecorator:
    marked = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in names]
    return pytest.mark.parametrize("name", marked)


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Whatever a library writes where it stands does not end up in the repository."""
    with in_folder(tmp_path_factory.mktemp("elsewhere")):
        yield


@pytest.fixture(scope="module")
def source(tiny: Path) -> CheckpointSource:
    return open_checkpoint(str(tiny), LoadOptions())


@pytest.fixture(scope="module")
def square_source(make_checkpoint: MakeCheckpoint) -> CheckpointSource:
    """One layer, every matrix 128 x 128: fits every group size and AWQ's 64 rows."""
    shape = {"hidden_size": 128, "num_key_value_heads": 4, "num_hidden_layers": 1}
    return open_checkpoint(str(make_checkpoint("square", **shape)), LoadOptions())


Loader = Callable[[str], HFModel]


@pytest.fixture(scope="module")
def wide_source(make_checkpoint: MakeCheckpoint) -> CheckpointSource:
    """One layer, every matrix of 256 columns, a whole block of llama.cpp's."""
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    return open_checkpoint(str(make_checkpoint("wide", **shape)), LoadOptions())


@pytest.fixture(scope="module")
def fitting(
    source: CheckpointSource, square_source: CheckpointSource, wide_source: CheckpointSource
) -> Callable[[str], CheckpointSource]:
    """A checkpoint that a precision can take: the tiny Llama, but for AWQ, groups of 128 and blocks
    of 256.
    """

    def pick(name: str) -> CheckpointSource:
        if SPECS[name].by_matrix:
            return wide_source
        odd = name.startswith("awq") or (name.startswith("gptq") and name.endswith("g128"))
        return square_source if odd else source

    return pick


@pytest.fixture(scope="module")
def loaded(fitting: Callable[[str], CheckpointSource]) -> Loader:
    """A precision, loaded once for all tests of this file."""

    @functools.cache
    def get(name: str) -> HFModel:
        require_library(name)
        return load(fitting(name), name)

    return get


@on_every(*SOME)
def test_loads_with_proof_and_answers_the_same_twice(
    loaded: Loader, fitting: Callable[[str], CheckpointSource], name: str
) -> None:
    first, second = loaded(name), load(fitting(name), name)
    assert first.condition.name == name
    assert first.condition.proof is not None
    assert first.condition == second.condition
    texts, scored = answers(first)
    again, rescored = answers(second)
    assert texts == again
    assert all(np.array_equal(scored[t], rescored[t]) for t in TEXTS)
    assert all(np.isfinite(scored[t]).all() for t in TEXTS)


# LLM.int8() chooses its 16-bit columns from the whole batch, so only it depends on the batch; where
# activations are rounded, a difference in a last bit becomes one of a step.
@on_every(*(n for n in SOME if n not in ("bf16", "fp16") and SPECS[n].kernels != ("native",)))
def test_batch_of_one_and_of_eight_agree(loaded: Loader, name: str) -> None:
    many = loaded(name)
    one = copy.copy(many)
    one._batch_size = 1
    texts, scored = answers(many)
    alone, scored_alone = answers(one)
    assert alone == texts
    assert largest_difference(scored_alone, scored) < 1e-4  # 7e-6 measured


@on_every(*(n for n in SOME if n in QUANTIZED))
def test_proof_of_a_quantized_precision(
    loaded: Loader, fitting: Callable[[str], CheckpointSource], name: str
) -> None:
    precision, spec = loaded(name).condition, SPECS[name]
    proof = precision.proof
    assert proof is not None
    config: Any = fitting(name).config
    layers = config.num_hidden_layers
    hidden, inner = config.hidden_size, config.intermediate_size
    narrow = hidden // config.num_attention_heads * config.num_key_value_heads
    linear = 2 * hidden * hidden + 2 * hidden * narrow + 3 * hidden * inner
    ends = 2 * config.vocab_size * hidden
    norms = (2 * layers + 1) * hidden
    # All but the output head, and all compared with the checkpoint.
    assert proof.compared_modules == 7 * layers
    assert proof.covered_weights == layers * linear
    assert proof.total_weights == layers * linear + ends + norms
    kinds = {pattern.rsplit(".", 1)[-1] for pattern in proof.covered_modules}
    assert kinds == set(LINEAR)
    assert set(proof.covered_modules.values()) == {layers}
    assert set(proof.uncovered) == {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.*.input_layernorm.weight",
        "model.layers.*.post_attention_layernorm.weight",
        "model.norm.weight",
    }
    assert sum(proof.uncovered.values()) == ends + norms
    # What changed, and by how much.
    assert proof.relative_error is not None
    assert proof.mean_relative_error is not None
    assert proof.max_relative_error is not None
    assert spec.bits is not None
    assert 0 < proof.mean_relative_error <= proof.max_relative_error
    eight = name.startswith(("fp8", "mxfp8"))
    assert proof.max_relative_error < LARGEST_ERROR[6 if eight else int(spec.bits)]
    assert proof.relative_error <= proof.max_relative_error
    assert proof.max_error_module is not None
    assert proof.max_error_module.rsplit(".", 1)[-1] in LINEAR
    assert proof.changed_share is not None
    assert 0.95 < proof.changed_share <= 1  # each group's largest stays
    assert not proof.on_grid
    assert proof.codes is not None
    assert 2 <= proof.codes <= 2 ** (6 if spec.by_matrix else spec.bits)
    # Bytes: what the name says, and the constants; the rest in fp32.
    stored = 8 * (proof.weight_bytes - 4 * (ends + norms)) / proof.covered_weights
    assert spec.bits <= stored < spec.bits + 1.6
    # Recorded as asked for.
    assert (precision.name, precision.options.bits) == (name, spec.bits)
    assert (precision.options.scheme, precision.options.backend) == (spec.scheme, spec.backend)
    assert precision.options.further == dict(spec.options)
    assert precision.options.kernel == pick_kernel("auto", spec, "cpu")
    assert (precision.options.calibration is not None) == spec.calibrated


@on_every(*(n for n in SOME if n in QUANTIZED))
def test_a_quantized_precision_changes_the_scores(
    loaded: Loader, fitting: Callable[[str], CheckpointSource], name: str
) -> None:
    full = scores(load(fitting(name), "none"))
    assert largest_difference(scores(loaded(name)), full) > 0.05  # least seen: 0.12, at 8 bits


@pytest.mark.slow
@pytest.mark.ci
def test_the_unquantized_sources_are_not_changed_by_any_precision(
    source: CheckpointSource,
    square_source: CheckpointSource,
    fitting: Callable[[str], CheckpointSource],
) -> None:
    sources = (source, square_source)
    before = [{k: t.clone() for k, t in s.state_dict().items()} for s in sources]
    for name in (n for n in SOME if n not in RTN[1:] and not n.endswith("g128")):
        extra = SPECS[name].extra
        if extra is None or importlib.util.find_spec(EXTRAS[extra].split(".")[0]):
            answers(load(fitting(name), name))
    for state, s in zip(before, sources, strict=True):
        assert all(torch.equal(state[k], t) for k, t in s.state_dict().items())


@pytest.mark.parametrize(("name", "bits"), [("none", 32), ("fp32", 32), ("bf16", 16)])
def test_bits_of_unquantized_weights(loaded: Loader, name: str, bits: float) -> None:
    assert loaded(name).condition.options.bits == bits


def test_storage_is_rounded_though_compute_is_wider(loaded: Loader) -> None:
    model: Any = loaded("bf16")
    weight = model.network.lm_head.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, weight.bfloat16().float())
    proof = model.condition.proof
    assert proof.relative_error > 0
    assert proof.uncovered == {}  # a storage dtype spares nothing
    assert model.condition.options.kernel is None


def test_a_weight_beyond_fp16_is_an_error(make_checkpoint: MakeCheckpoint) -> None:
    large = open_checkpoint(str(make_checkpoint("large")), LoadOptions())
    large.state_dict()["lm_head.weight"][3, 4] = 1e5
    with pytest.raises(NotInForceError, match="overflows"):
        load_at(large, "fp16")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> CheckpointSource:
    """A tiny Mixtral, whose experts are fused into one tensor."""
    from transformers import MixtralConfig, MixtralForCausalLM

    folder = tmp_path_factory.mktemp("experts") / "moe"
    tokenizer = make_tokenizer()
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return open_checkpoint(str(folder), LoadOptions())


@on_every(
    *("bnb-fp4", "bnb-int8", "rtn-int4", "rtn-int8-g64-asym", "gguf-q4_0", "hqq-int4-g64"),
    *("quanto-int8", "quanto-int4", "torchao-int8", "gptq-int4-g64", "awq-int4-g64"),
    *("auto-round-int4-g128",),
    *("prune-magnitude-30", "noise-5", "prune-wanda-50"),
)
def test_fused_experts_left_as_they_are_are_an_error(experts: CheckpointSource, name: str) -> None:
    require_library(name)
    with pytest.raises(NotInForceError, match="leaves .* weights as they are, .*experts"):
        load(experts, name)


def test_fused_experts_run_unquantized(experts: CheckpointSource) -> None:
    assert load(experts, "none").condition.proof is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_precision_describes_itself(name: str) -> None:
    spec = SPECS[name]
    assert spec.scheme
    assert (name in ("none", *CACHED)) == (spec.bits is None)
    assert bool(spec.kernels) == (name in [*QUANTIZED, *CACHED])
    json.dumps(dict(spec.options), allow_nan=False)
    if spec.bits is not None and name in QUANTIZED:
        assert spec.bits_per_weight is not None
        assert spec.bits <= spec.bits_per_weight < spec.bits + 1.5
    assert conditions.has_codes(spec) == (name in QUANTIZED and not spec.calibrated)


def test_names_are_resolved_once_each_in_order() -> None:
    names = [spec.name for spec in conditions.resolve(["4bit", "none", "bnb-fp4"])]
    assert names == ["bnb-fp4", "none"]


def test_no_name_is_an_error() -> None:
    with pytest.raises(PrecisionError, match="no condition was asked for"):
        conditions.resolve([])


def test_unknown_precision_suggests_near_ones() -> None:
    with pytest.raises(PrecisionError, match="unknown condition 'bnb-fp5'.*bnb-fp4"):
        conditions.find_condition("bnb-fp5")


LIBRARIES = [
    ("bnb-nf4", "bitsandbytes", "pip install unlearnbench"),
    ("bnb-int8", "bitsandbytes", "pip install unlearnbench"),
    ("gguf-q4_0", "gguf", "pip install unlearnbench"),
    ("gguf-q4_k_m", "libggml", "pip install 'unlearnbench[ggml]'"),
    ("hqq-int4-g64", "hqq", "pip install 'unlearnbench[hqq]'"),
    ("mxfp4", "compressed_tensors", "pip install 'unlearnbench[compressed-tensors]'"),
    ("quanto-int4", "optimum.quanto", "pip install 'unlearnbench[quanto]'"),
    ("quanto-int8", "optimum", "pip install 'unlearnbench[quanto]'"),
    ("torchao-int8", "torchao", "pip install 'unlearnbench[torchao]'"),
    ("gptq-int4-g128", "gptqmodel", "pip install 'unlearnbench[gptq]'"),
    ("gptq-int8-g64", "optimum", "pip install 'unlearnbench[gptq]'"),
    ("awq-int4-g64", "gptqmodel", "pip install 'unlearnbench[gptq]'"),
    ("auto-round-int4-g64", "auto_round", "pip install 'unlearnbench[auto-round]'"),
]


@pytest.mark.parametrize(("name", "library", "command"), LIBRARIES)
def test_a_missing_library_is_refused_with_the_command_before_anything_is_loaded(
    tiny: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch, name: str, library: str, command: str
) -> None:
    find = importlib.util.find_spec

    def lacking(wanted: str, package: str | None = None) -> Any:
        return None if f"{wanted}.".startswith(f"{library}.") else find(wanted, package)

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("importlib.util.find_spec", lacking)
    monkeypatch.setattr("unlearnbench.checkpoints.load.load_weights", never)
    monkeypatch.setattr("unlearnbench.conditions.load.Prepared.load", never)
    # Nor is anything else put in its place, though it was asked for beside others.
    with pytest.raises(PrecisionError) as raised:
        evaluate(str(tiny), "toy", ["none", name], **toy.options)
    assert str(raised.value).startswith(f"{name} cannot run here: ")
    assert "is not installed" in str(raised.value)
    assert command in str(raised.value)
    assert not list(toy.out.rglob("run.json"))


def test_every_optional_precision_names_its_extra() -> None:
    told = {name for name, _, _ in LIBRARIES}
    assert {SPECS[n].extra for n in NAMES} == {SPECS[n].extra for n in told}


@pytest.mark.parametrize(
    ("kernel", "tasks"),
    [
        pytest.param(
            "dequantized",
            "toy_verbmem,toy_knowmem_f",
            marks=[pytest.mark.slow, pytest.mark.ci],
        ),
        ("native", "toy"),
    ],
)
def test_runs_are_written_and_read_back(
    tiny: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch, kernel: Kernel, tasks: str
) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)  # half a second for each precision otherwise
    names = [
        name
        for name in UNCALIBRATED
        if SPECS[name].kernels == () or kernel in SPECS[name].kernels
        if (extra := SPECS[name].extra) is None or importlib.util.find_spec(EXTRAS[extra])
    ]
    results = evaluate(str(tiny), tasks, names, quant_kernel=kernel, **toy.options)
    assert [result.condition.name for result in results] == names
    for name, result in zip(names, results, strict=True):
        folder = toy.out / model_folder_name(result.checkpoint) / name
        assert read_run(folder) == result
        assert result.condition.options.kernel == (kernel if SPECS[name].kernels else None)
        assert result.condition.options.calibration is None
        assert result.condition.proof is not None
        assert len(result.tasks) == (3 if tasks == "toy" else 2)
        for task, found in result.tasks.items():
            assert found.records_sha256 is not None
            assert RunFolder(folder).read_records(task, found.records_sha256)
    if kernel == "dequantized":
        again = evaluate(str(tiny), tasks, names[:2], quant_kernel=kernel, **toy.options)
        assert again == results[:2]  # taken over, not computed again


@on_every("gptq-int4-g64", "awq-int4-g64")
def test_calibrated_runs_are_written_and_read_back(
    square_source: CheckpointSource, toy: Toy, name: str
) -> None:
    require_library(name)
    file = toy.data / "short.jsonl"
    write_jsonl(file, [{"text": text.strip() * 2} for text in CORPUS[20:24]])
    (result,) = evaluate(
        square_source.files.path,
        "toy",
        name,
        quant_kernel="native",
        calibration=str(file),
        calibration_samples=4,
        **toy.options,
    )
    folder = toy.out / model_folder_name(result.checkpoint) / name
    assert read_run(folder) == result
    assert result.condition.options.kernel == "native"
    assert result.condition.proof is not None
    assert result.condition.options.calibration == short_calibration().data
    assert (
        result.condition.options.calibration.name,
        result.condition.options.calibration.samples,
    ) == (
        "short.jsonl",
        4,
    )
