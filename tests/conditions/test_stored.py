"""Checkpoints that are quantized already: loaded as they are, and only so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conditions.helpers import TEXTS, answers, in_folder, load, scores
from tests.conftest import CORPUS, MakeCheckpoint, Toy, load_at
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.packed import stored_scheme
from unlearnbench.conditions.quantize import gptqmodel
from unlearnbench.errors import CheckpointError, NotInForceError, PrecisionError, UnlearnbenchError
from unlearnbench.models.hf import HFModel
from unlearnbench.models.packable import mixes_rows, unrounded

# PEFT 0.21 and GPTQModel 7.7 read an attribute that transformers 5.20 and later renamed.
renamed = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
# GPTQModel leaves a temporary folder of its own, /tmp/gptqmodel_*, to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning"
)
KINDS = ["bnb-nf4", "bnb-int8", "gptq", "awq", "compressed"]
PACKAGES = {"gptq": "gptqmodel", "awq": "gptqmodel", "compressed": "compressed_tensors"}
SCHEMES = {
    "bnb-nf4": (4, "NF4, absmax per block, its scales in 8 bits", "bitsandbytes", "Linear4bit"),
    "bnb-int8": (8, "LLM.int8(), activations quantized too", "bitsandbytes", "Linear8bitLt"),
    "gptq": (4, "GPTQ, symmetric per group of 64 columns", "gptqmodel", "TorchLinear"),
    "awq": (4, "AWQ, with zero point per group of 64 columns", "gptqmodel", None),
    "compressed": (
        4,
        "compressed-tensors, int symmetric per group of 32 columns",
        "compressed_tensors",
        "Linear",
    ),
}


def save_bnb(plain: Path, folder: Path, **config: Any) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model: Any = AutoModelForCausalLM.from_pretrained(
        plain,
        quantization_config=BitsAndBytesConfig(**config),
        dtype=torch.float32,
        device_map={"": "cpu"},
    )
    model.save_pretrained(folder)


def save_gptqmodel(plain: Path, folder: Path, **config: Any) -> None:
    with gptqmodel.gptqmodel():
        from gptqmodel import GPTQModel, QuantizeConfig

        settings = QuantizeConfig(
            bits=4, group_size=64, device="cpu", offload_to_disk=False, **config
        )
        model = GPTQModel.load(str(plain), settings, trust_remote_code=False)
        model.quantize([text * 2 for text in CORPUS[:4]], batch_size=1)
        model.save(str(folder))


def save_awq(plain: Path, folder: Path) -> None:
    from gptqmodel.quantization import FORMAT, METHOD

    save_gptqmodel(plain, folder, method=METHOD.AWQ, format=FORMAT.GEMM, sym=False)


def set_scales(module: Any) -> None:
    """From the smallest and largest values, as compressed-tensors' own observers do it."""
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args, weight, more = module.quantization_scheme.weights, module.weight.data, {}
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("input_"):
            parameter.data.fill_(1)
    strategy = str(args.strategy)
    rows, columns = weight.shape
    over: tuple[int, ...]
    if strategy == "block":
        high, wide = args.block_structure
        parts, over = weight.reshape(rows // high, high, columns // wide, wide), (1, 3)
    elif strategy == "tensor":
        parts, over = weight.reshape(1, -1), (1,)
    else:
        size = args.group_size or columns
        parts, over = weight.reshape(rows, columns // size, size), (2,)
    if strategy == "tensor_group":
        more["global_scale"] = generate_gparam(weight.amin(), weight.amax())
        module.weight_global_scale.data.copy_(more["global_scale"])
    scale, zero = calculate_qparams(parts.amin(over), parts.amax(over), args, **more)
    module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
    if not args.symmetric:
        module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))


def save_compressed(plain: Path, folder: Path, preset: str = "") -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(plain)
    if preset:
        scheme = preset_name_to_scheme(preset, ["Linear"])
    else:
        args = QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=32)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
    config = QuantizationConfig(
        config_groups={"g0": scheme},
        ignore=["lm_head"],
        quantization_status="frozen",
        quant_method="compressed-tensors",
        **({} if preset else {"format": "pack-quantized"}),
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            set_scales(module)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


@pytest.fixture(scope="module")
def stored(
    make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A quantized checkpoint of a kind, made once."""
    shape = {"hidden_size": 64, "num_key_value_heads": 4}
    plain, root = make_checkpoint("plain", **shape), tmp_path_factory.mktemp("stored")
    makers: dict[str, Callable[[Path], None]] = {
        "bnb-nf4": lambda folder: save_bnb(
            plain,
            folder,
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
        ),
        "bnb-int8": lambda folder: save_bnb(plain, folder, load_in_8bit=True),
        "gptq": lambda folder: save_gptqmodel(plain, folder),
        "awq": lambda folder: save_awq(plain, folder),
        "compressed": lambda folder: save_compressed(plain, folder),
    }

    def get(kind: str) -> Path:
        if kind in PACKAGES:
            pytest.importorskip(PACKAGES[kind], reason=f"{PACKAGES[kind]} is not installed")
        folder = root / kind
        if not folder.exists():
            with in_folder(root):
                makers[kind](folder)
            for path in plain.glob("tokenizer*"):
                shutil.copy(path, folder)
        return folder

    return get


def opened(folder: Path, **options: Any) -> CheckpointSource:
    return open_checkpoint(str(folder), LoadOptions(**options))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_loaded_as_it_is_and_said(stored: Callable[[str], Path], kind: str) -> None:
    source = opened(stored(kind))
    bits, text, backend, module = SCHEMES[kind]
    model = load(source, "none")
    precision = model.condition
    assert (precision.name, precision.options.bits) == ("none", bits)
    assert (precision.options.scheme, precision.options.backend) == (f"as stored: {text}", backend)
    assert precision.options.kernel is None
    assert precision.options.further == {}
    assert source.checkpoint.origin == {"quantized": f"{bits} bits, {text}"}
    proof = precision.proof
    assert proof is not None
    assert sum(proof.covered_modules.values()) == 14
    if module is not None:
        assert proof.module_types[module] == 14 + (module == "Linear")
    assert proof.covered_weights == 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert proof.total_weights == proof.covered_weights + 2 * 300 * 64 + 5 * 64
    assert set(proof.uncovered) >= {"lm_head.weight", "model.embed_tokens.weight"}
    assert proof.codes is not None
    assert 12 <= proof.codes <= 2**bits
    assert proof.compared_modules == 0  # there is nothing to compare it with
    assert proof.relative_error is None
    assert not proof.on_grid
    packed = 8 * (proof.weight_bytes - 4 * (2 * 300 * 64 + 5 * 64)) / proof.covered_weights
    assert bits <= packed < bits + 1.1
    assert answers(model) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_two_loads_answer_the_same(stored: Callable[[str], Path], kind: str) -> None:
    one, two = (answers(load(opened(stored(kind)), "none")) for _ in range(2))
    assert one[0] == two[0]
    assert all(np.array_equal(one[1][t], two[1][t]) for t in TEXTS)


@renamed
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_transformers_own_loading(
    stored: Callable[[str], Path], kind: str
) -> None:
    from transformers import AutoModelForCausalLM

    source = opened(stored(kind))
    # One text at a time: LLM.int8() looks at the whole batch.
    ours = scores(one_at_a_time(source))
    with gptqmodel.gptqmodel() if kind in ("gptq", "awq") else in_folder(Path.cwd()):
        model: Any = AutoModelForCausalLM.from_pretrained(
            stored(kind), dtype=torch.float32, device_map={"": "cpu"}
        ).eval()
        if kind in ("gptq", "awq"):
            gptqmodel.without_compilation(model)
        for text in TEXTS:
            ids = torch.tensor([source.tokenizer(text)["input_ids"]])
            with torch.no_grad():
                table = model(ids).logits[0, :-1].float().log_softmax(-1)
            theirs = table.gather(1, ids[0, 1:, None])[:, 0].numpy()
            np.testing.assert_allclose(ours[text], theirs, atol=2e-5)  # 3e-6 measured


def one_at_a_time(source: CheckpointSource) -> HFModel:
    return load_at(source, "none", batch=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bnb-nf4", "rtn-int4", "bf16", "fp32", "gguf-q4_0"])
def test_no_other_precision_can_be_asked_for(
    stored: Callable[[str], Path], toy: Toy, kind: str, name: str
) -> None:
    text = SCHEMES[kind][1].split(",")[0].split("(")[0]
    with pytest.raises(PrecisionError, match=f"quantized already .{text}.* loaded as {name}"):
        load(opened(stored(kind)), name)
    if name == "rtn-int4":  # refused at once, not after the precisions before it
        with pytest.raises(PrecisionError, match="use --quant none for it as it is"):
            evaluate(str(stored(kind)), "toy_verbmem", ["none", name], **toy.options)
        assert not list(toy.out.rglob("run.json"))


def test_a_run_says_what_was_measured(stored: Callable[[str], Path], toy: Toy) -> None:
    folder = stored("bnb-nf4")
    (result,) = evaluate(str(folder), "toy_verbmem", "none", **toy.options)
    assert result.condition.options.bits == 4
    assert result.checkpoint.origin == {"quantized": f"4 bits, {SCHEMES['bnb-nf4'][1]}"}
    assert evaluate(str(folder), "toy_verbmem", "none", **toy.options) == [result]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_library_is_refused_with_the_command(
    stored: Callable[[str], Path], toy: Toy, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import importlib.util

    folder, package = stored(kind), SCHEMES[kind][2]
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, where=None: None if name == package else find(name, where),
    )
    with pytest.raises(PrecisionError, match=f"{package}, which unpacks it, is not .*pip install"):
        evaluate(str(folder), "toy_verbmem", "none", **toy.options)


def changed(folder: Path, where: Path, facts: object) -> Path:
    """A copy of a checkpoint with another quantization_config."""
    shutil.copytree(folder, where)
    path = where / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["quantization_config"] = facts
    path.write_text(json.dumps(config), "utf-8")
    return where


def test_a_scheme_that_is_not_known_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = changed(tiny, tmp_path / "odd", {"quant_method": "aqlm\x1b[2J", "bits": 2})
    with pytest.raises(PrecisionError, match=r"quantized already, by 'aqlm.*known: gptq, awq"):
        opened(folder)


MALFORMED = [
    ("not an object", "is no object"),
    ([4], "is no object"),
    (4, "is no object"),
    ({}, "quantized already, by 'None'"),
    ({"quant_method": ["gptq"]}, "quantized already, by"),
    ({"quant_method": "gptq"}, "does not state the scheme of gptq"),
    ({"quant_method": "gptq", "bits": None}, "does not state the scheme of gptq"),
    ({"quant_method": "gptq", "bits": "four"}, "does not state the scheme of gptq"),
    ({"quant_method": "gptq", "bits": 4, "group_size": {}}, "does not state the scheme of gptq"),
    ({"quant_method": "gptq", "bits": 0}, "states 0 bits"),
    ({"quant_method": "gptq", "bits": -4}, "states -4 bits"),
    ({"quant_method": "gptq", "bits": 10**6}, "states 1000000 bits"),
    ({"quant_method": "awq"}, "states 0 bits"),
    ({"quant_method": "bitsandbytes"}, "does not state the scheme of bitsandbytes"),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp5"}, "scheme of bitsandbytes .*fp5"),
    ({"quant_method": "compressed-tensors"}, "does not state the scheme of compressed-tensors"),
    ({"quant_method": "compressed-tensors", "config_groups": {}}, "does not state the scheme"),
    ({"quant_method": "compressed-tensors", "config_groups": [1]}, "does not state the scheme"),
    (
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": None}}},
        "does not state the scheme",
    ),
]


@pytest.mark.parametrize(("facts", "said"), MALFORMED)
def test_a_malformed_scheme_is_a_clean_error(facts: Any, said: str) -> None:
    with pytest.raises((CheckpointError, PrecisionError), match=said) as raised:
        stored_scheme({"quantization_config": facts}, "somewhere")
    assert str(raised.value).startswith("somewhere")


@pytest.mark.parametrize(
    "bits",
    [float("inf"), float("-inf"), float("nan"), 10**400],
    ids=["inf", "-inf", "nan", "10**400"],
)
def test_bits_that_are_no_number_are_a_clean_error(bits: float) -> None:
    for method in ("gptq", "awq"):
        with pytest.raises(CheckpointError):
            stored_scheme(
                {"quantization_config": {"quant_method": method, "bits": bits}}, "somewhere"
            )


@pytest.mark.parametrize(
    "facts",
    [
        "x",
        {"quant_method": "gptq"},
        {"quant_method": "gptq", "bits": 1e999},
        {"quant_method": "gptq", "bits": 4, "group_size": 64},
        {"quant_method": "awq", "bits": 4, "group_size": 64},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ],
)
def test_a_scheme_that_the_weights_are_not_in_is_a_clean_error(
    tiny: Path, tmp_path: Path, facts: object
) -> None:
    # Whatever is refused first, it is an error of ours, and never scores.
    with pytest.raises(UnlearnbenchError) as raised:
        load(opened(changed(tiny, tmp_path / "odd", facts)), "none")
    assert "\n" not in str(raised.value)


def test_other_bits_than_the_weights_have_are_an_error(
    stored: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = stored("gptq")
    facts = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    with pytest.raises(UnlearnbenchError):
        load(opened(changed(folder, tmp_path / "odd", facts | {"bits": 2})), "none")


def test_packed_weights_without_a_scheme_are_refused(
    stored: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "unsaid"
    shutil.copytree(stored("bnb-nf4"), folder)
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    del config["quantization_config"]
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(UnlearnbenchError):
        load(opened(folder), "none")


@pytest.fixture(scope="module")
def adapter(stored: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter that changes something, trained for the checkpoints of this file."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base: Any = AutoModelForCausalLM.from_pretrained(
        stored("bnb-nf4"), dtype=torch.float32, device_map={"": "cpu"}
    )
    config = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    get_peft_model(base, config).save_pretrained(str(folder))
    return folder


@renamed
def test_nothing_is_merged_into_a_quantized_base(
    stored: Callable[[str], Path], adapter: Path
) -> None:
    with pytest.raises(PrecisionError, match="quantized already .NF4.* use --adapter keep"):
        opened(adapter, base=str(stored("bnb-nf4")))


@renamed
@pytest.mark.parametrize("kind", ["bnb-nf4", "bnb-int8"])
def test_an_adapter_is_kept_beside_a_quantized_base(
    stored: Callable[[str], Path], adapter: Path, kind: str
) -> None:
    source = opened(adapter, base=str(stored(kind)), adapter="keep")
    assert source.checkpoint.adapter == "kept"
    assert source.checkpoint.base is not None
    model = load(source, "none")
    assert model.condition.options.bits == SCHEMES[kind][0]
    bare = scores(load(opened(stored(kind)), "none"))
    assert any(not np.allclose(found, bare[t], atol=0.1) for t, found in scores(model).items())
    with pytest.raises(PrecisionError, match="quantized already"):
        load(source, "rtn-int4")


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("strategy", ["token", "tensor"])
def test_compressed_schemes_that_round_activations(
    stored: Callable[[str], Path], strategy: str, side: str
) -> None:
    """Looked into as they lie in a loaded model; one scale of a whole pass lets rows move rows."""
    from compressed_tensors.quantization import QuantizationArgs

    network = one_at_a_time(opened(stored("compressed"))).network
    layers: list[Any] = [part for part in network.modules() if hasattr(part, "quantization_scheme")]
    rounding = QuantizationArgs(num_bits=8, symmetric=True, strategy=strategy, dynamic=True)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        dense = network(input_ids=ids).logits
        for layer in layers:
            setattr(layer.quantization_scheme, f"{side}_activations", rounding)
        rounded = network(input_ids=ids).logits
        with unrounded(network):
            found = network(input_ids=ids).logits
    assert not torch.allclose(rounded, dense, atol=1e-4)
    assert torch.equal(found, dense)
    assert mixes_rows(network) == (strategy == "tensor")


@pytest.fixture(scope="module")
def wide(make_checkpoint: MakeCheckpoint) -> Path:
    """In bf16, of whole blocks of 128."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4}
    return make_checkpoint("wide", "bfloat16", **shape)


@pytest.mark.field("Weights", "compressed-tensors FP8, MXFP8, NVFP4, MXFP4", "runs")
@pytest.mark.parametrize(
    ("preset", "bits", "per", "size", "off"),
    [
        ("FP8", 8, "per matrix", None, 0.04),
        ("FP8_DYNAMIC", 8, "per output channel", None, 0.04),
        ("FP8_BLOCK", 8, "per block of 128 rows and 128 columns", 128, 0.04),
        ("MXFP8", 8, "per group of 32 columns", 32, 0.04),
        ("NVFP4A16", 4, "per group of 16 columns", 16, 0.15),
        ("NVFP4", 4, "per group of 16 columns", 16, 0.15),
        ("MXFP4A16", 4, "per group of 32 columns", 32, 0.2),
    ],
)
def test_stored_floats_of_few_bits(
    wide: Path, tmp_path: Path, preset: str, bits: int, per: str, size: int | None, off: float
) -> None:
    """FP8, NVFP4 and MXFP4 checkpoints run, in fp32 too, on values near the unquantized ones."""
    pytest.importorskip("compressed_tensors", reason="compressed_tensors is not installed")
    folder = tmp_path / "packed"
    save_compressed(wide, folder, preset)
    for path in wide.glob("tokenizer*"):
        shutil.copy(path, folder)
    plain = opened(wide).state_dict()
    for dtype in ("auto", "fp32"):
        source = opened(folder)
        assert source.stored is not None
        assert (source.stored.bits, source.stored.group) == (bits, size)
        assert f"float symmetric {per}" in source.stored.text
        model = load_at(source, "none", dtype)
        for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.k_proj"):
            exact = plain[f"{name}.weight"].float()
            weight: Any = model.network.get_submodule(name).weight
            assert weight.dtype is (torch.float32 if dtype == "fp32" else torch.bfloat16)
            assert 0 < float((weight.float() - exact).norm() / exact.norm()) < off
        assert all(np.isfinite(found).all() for found in scores(model).values())


def nibbles(packed: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    """Eight signed codes of each int32, the lowest bits first, along ``axis``."""
    words = np.moveaxis(packed.view(np.uint32), axis, -1)
    codes = (words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    return np.moveaxis(codes.reshape(*words.shape[:-1], -1).astype(np.float32) - 8, -1, axis)


@pytest.mark.field("Weights", "compressed-tensors W4A16_ASYM (packed zero points)", "runs")
def test_packed_zero_points_run(
    wide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """W4A16_ASYM, as llm-compressor's AWQ writes it: each weight as its file says."""
    pytest.importorskip("compressed_tensors", reason="compressed_tensors is not installed")
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor

    folder = tmp_path / "packed"
    save_compressed(wide, folder, "W4A16_ASYM")
    for path in wide.glob("tokenizer*"):
        shutil.copy(path, folder)
    before = PackedQuantizationCompressor.__dict__["compress"]
    model = load_at(opened(folder), "none", "fp32")
    assert PackedQuantizationCompressor.__dict__["compress"] is before, "the library is as it was"
    scheme = "compressed-tensors, int with zero point per group of 128 columns"
    assert model.condition.options.scheme == f"as stored: {scheme}"
    assert "are packed, the others are not" not in caplog.text
    state, plain = load_file(folder / "model.safetensors"), opened(wide).state_dict()
    zeros = set[float]()
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.k_proj"):
        part = {
            n.removeprefix(f"{name}.weight_"): t for n, t in state.items() if n.startswith(name)
        }
        codes = nibbles(part["packed"].numpy(), 1)
        zero = nibbles(part["zero_point"].numpy(), 0)
        scale = part["scale"].float().numpy()
        expected = (codes - zero.repeat(128, 1)) * scale.repeat(128, 1)
        layer: Any = model.network.get_submodule(name)
        np.testing.assert_allclose(layer.weight.float().numpy(), expected, rtol=1e-2, atol=1e-6)
        exact = plain[f"{name}.weight"].float().numpy()
        assert np.linalg.norm(expected - exact) < 0.15 * np.linalg.norm(exact)
        zeros |= {*zero.flatten().tolist()}
    assert len(zeros) > 2
    proof = model.condition.proof
    assert proof is not None
    groups = proof.covered_weights // 128
    rest = sum(proof.uncovered.values())
    assert proof.weight_bytes == proof.covered_weights // 2 + groups // 2 + 4 * groups + 4 * rest
    assert proof.codes is not None
    assert proof.codes <= 16
    assert all(np.isfinite(found).all() for found in scores(model).values())


@pytest.mark.field("Weights", "stored quantized, less than a tenth not packed", "with a note")
@pytest.mark.field(
    "Weights", "stored quantized, over a tenth of the linear weights not packed", "refused"
)
def test_a_checkpoint_with_one_packed_layer_is_not_measured_as_4_bits(
    stored: Callable[[str], Path], tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rule is that for our own precisions; where little is left out, the share is said."""
    parts = ("q", "k", "v", "o", "gate", "up", "down")
    for skipped, refused in ((parts, True), (("k",), False)):
        keep = [f"model.layers.0.{'mlp' if len(p) > 1 else 'self_attn'}.{p}_proj" for p in skipped]
        folder = tmp_path / str(len(skipped))
        save_bnb(tiny, folder, load_in_4bit=True, llm_int8_skip_modules=[*keep, "lm_head"])
        for path in tiny.glob("tokenizer*"):
            shutil.copy(path, folder)
        if refused:
            with pytest.raises(NotInForceError, match=r"leaves [\d,]+ of [\d,]+ weights"):
                load_at(opened(folder), "none")
        else:
            load_at(opened(folder), "none")
    assert "% of the weights of its linear layers are packed, the others are not" in caplog.text
