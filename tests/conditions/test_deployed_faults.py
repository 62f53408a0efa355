"""Deployed checkpoints that are wrong in a small part, or bring what must not be taken."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conditions.test_deployed import make, met, save_fp8
from tests.conftest import MakeCheckpoint
from tests.deployed_files import WHOLE, write_gguf
from unlearnbench.checkpoints.gguf_parts import open_gguf
from unlearnbench.conditions import deployed, resolve
from unlearnbench.conditions.elsewhere.distance import Distance, Grid
from unlearnbench.conditions.elsewhere.rope import require_rope
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.errors import CheckpointError, PrecisionError

pytest.importorskip("libggml", reason="pip install 'unlearnbench[ggml]'")
pytestmark = pytest.mark.filterwarnings(
    "ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning"
)
SHAPE = {"hidden_size": 128, "intermediate_size": 288, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def plain(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("faults-plain", **SHAPE)


def changed(folder: Path, to: Path, name: str, change: Any) -> Path:
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    for key, tensor in weights.items():
        if name in key:
            weights[key] = change(tensor).contiguous()
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


def configured(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


# ---- a small part of the file is wrong


@pytest.mark.parametrize(("name", "file"), [("_proj", "Q4_0"), ("0.self_attn.k_proj", "Q8_0")])
def test_zeros_in_a_file_are_refused(plain: Path, tmp_path: Path, name: str, file: str) -> None:
    """A group of one value has no step, and any weight was the nearest to it."""
    other = changed(plain, tmp_path / "other", name, torch.zeros_like)
    with pytest.raises(
        PrecisionError, match=r"within one step, and 90% must \(fewest in .*proj.weight: 0%"
    ):
        met(plain, write_gguf(other, tmp_path / "own.gguf", file))


@pytest.mark.parametrize("change", [torch.zeros_like, lambda t: t.flip(0, 1)])
def test_one_wrong_matrix_in_a_folder_is_refused(plain: Path, tmp_path: Path, change: Any) -> None:
    """It looks scaled, as by AWQ; the best scales of a wrong matrix lift a part into reach."""
    other = changed(plain, tmp_path / "other", "0.self_attn.k_proj", change)
    few = r"0\.self_attn\.k_proj.* ([12]?[0-9](\.[0-9]+)?%|as zeros would be)"
    with pytest.raises(PrecisionError, match=few):
        met(plain, make("ct", other, tmp_path / "ct"))


def test_a_small_tensor_is_not_lost_among_large_ones() -> None:
    embedding, norm = torch.randn(1000, 1000), torch.randn(500)
    distance = Distance()
    distance.plain("embedding", embedding, embedding)
    distance.plain("norm", norm, norm + 0.1)
    assert distance.figures()["same_plain"] > 0.999
    with pytest.raises(PrecisionError, match=r"99\.95% are the model's.*fewest in norm: 0%"):
        distance.require("file", "model")
    distance, (large, small) = Distance(), (torch.randn(2000, 1000), torch.randn(40, 50))
    for name, own, now in (("large", large, large), ("small", small, small + 1e-2)):
        half = torch.full_like(own, 9e-3)
        distance.quantized(name, own, now, Grid(half, half))
    assert distance.figures()["nearest"] > 0.999
    with pytest.raises(PrecisionError, match=r"99\.9[0-9]+% of the model.*fewest in small: "):
        distance.require("file", "model")


def test_norms_stay_in_fp32_where_matrices_come_by_way_of_bf16(plain: Path, tmp_path: Path) -> None:
    """As llama.cpp's converter makes it of fp32 weights."""
    base = changed(plain, tmp_path / "base", "norm", lambda t: t + 0.1 * torch.rand_like(t))
    rounded = tmp_path / "rounded"
    shutil.copytree(base, rounded)
    weights = load_file(base / "model.safetensors")
    narrow = {n: t.bfloat16().float() if t.dim() == 2 else t for n, t in weights.items()}
    save_file(narrow, rounded / "model.safetensors", metadata={"format": "pt"})
    model = met(base, write_gguf(rounded, tmp_path / "own.gguf", "Q8_0"))
    figures = model.condition.proof.figures  # type: ignore[union-attr]
    assert figures is not None
    assert figures["nearest"] > 0.9999
    assert figures["same_plain"] == 1


def test_a_tensor_without_a_place_is_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    shutil.copytree(plain, own)
    weights = load_file(own / "model.safetensors") | {"model.norm.bias": torch.ones(128)}
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setitem(WHOLE, "model.norm.bias", "output_norm.bias")
    with pytest.raises(CheckpointError, match=r"the model has no place for output_norm\.bias"):
        met(plain, write_gguf(own, tmp_path / "own.gguf", "Q8_0"))


# ---- how positions turn

LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 256},
}
YARN = {
    **{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0},
    "original_max_position_embeddings": 2048,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("own", "there", "said"),
    [
        ({}, LINEAR, "rope.scaling.type linear, and the model's config rope_type default"),
        ({}, LLAMA3, r"factors in rope_freqs.weight, of which number \d is .*, of which it is 1"),
        (LLAMA3, {}, "has no rope_freqs.weight"),
        (LLAMA3, LLAMA3 | {"factor": 4.0}, "factors in rope_freqs.weight, of which number"),
        (LINEAR, LINEAR | {"factor": 4.0}, "rope.scaling.factor 4, and the model's config factor"),
        (YARN, LINEAR, "rope.scaling.type linear, and the model's config rope_type yarn"),
        (YARN, YARN | {"original_max_position_embeddings": 64}, "original_context_length 64"),
    ],
)
def test_a_file_whose_positions_turn_otherwise_is_refused(
    plain: Path, tmp_path: Path, own: dict[str, Any], there: dict[str, Any], said: str
) -> None:
    default = {"rope_theta": 10000.0, "rope_type": "default"}
    model = tmp_path / "model"
    shutil.copytree(plain, model)
    configured(model, rope_parameters=own or default)
    path = write_gguf(model, tmp_path / "a.gguf", metadata={"rope_parameters": there or default})
    with pytest.raises(CheckpointError, match=said):
        require_rope(open_gguf(path, str(path)), json.loads((model / "config.json").read_text()))


@pytest.mark.parametrize("own", [LLAMA3, YARN, LINEAR], ids=lambda own: own["rope_type"])
def test_a_file_whose_positions_turn_alike_is_taken(
    plain: Path, tmp_path: Path, own: dict[str, Any]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(plain, model)
    configured(model, rope_parameters=own)
    assert met(model, write_gguf(model, tmp_path / "a.gguf")).condition.proof is not None


def write_head(path: Path, said: dict[str, Any], table: Any = None) -> Path:
    """A file of one small tensor, and a table of factors."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in said.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"llama.rope.{key}", value)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    if table is not None:
        writer.add_tensor("rope_freqs.weight", np.array(table, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("own", "there", "table", "said"),
    [
        ({}, {"scaling.factor": 4.0}, None, "rope.scaling.type linear, and .* default"),
        ({}, {"scale_linear": 4.0}, None, "rope.scaling.type linear, and .* default"),
        ({"full_attention": None}, {"scaling.factor": 4.0}, None, "type linear, and .* default"),
        (YARN, {"scaling.type": "yarn"}, None, "rope.scaling.factor 1, and .* factor 4"),
        (LINEAR, {"scaling.type": "linear"}, None, "rope.scaling.type none"),
        (LINEAR, {"scaling.factor": float("nan")}, None, "rope.scaling.factor nan"),
        ({}, {}, [[1.0, 1.0], [1.0, 2.0]], "number 3 is 2, and .* 4, of which it is 1"),
        ({}, {}, [float("nan")], "number 0 is nan"),
        ({}, {}, [], "0 factors in rope_freqs.weight"),
        (LLAMA3, {}, [], "0 factors in rope_freqs.weight, and the model's config 8"),
        (LLAMA3 | {"high_freq_factor": 1.0}, {}, [1.0], "does not say how llama3 scales positions"),
    ],
)
def test_what_llama_cpp_takes_where_a_file_says_little(
    tmp_path: Path, own: dict[str, Any], there: dict[str, Any], table: Any, said: str
) -> None:
    """A factor without a type is linear there; and tables of odd shapes end in a line."""
    path = write_head(tmp_path / "a.gguf", there, table)
    config = {"head_dim": 16, "rope_parameters": own or {"rope_theta": 10000.0}}
    with pytest.raises(CheckpointError, match=said):
        require_rope(open_gguf(path, "a.gguf"), config)


YARN_FILE = {
    **{"scaling.type": "yarn", "scaling.factor": 4.0},
    "scaling.original_context_length": 2048.0,
}
DEEPSEEK = {"mscale": 1.0, "mscale_all_dim": 1.0}


def yarn_scale(own: dict[str, Any]) -> float:
    """By how much transformers scales attention."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    made = LlamaConfig(rope_parameters=own, max_position_embeddings=8192)
    return float(ROPE_INIT_FUNCTIONS["yarn"](made, torch.device("cpu"))[1])


@pytest.mark.parametrize(
    ("own", "there", "said"),
    [
        ({}, {"yarn_beta_fast": 16.0}, "yarn_beta_fast 16, and the model's config beta_fast 32"),
        ({"beta_fast": 16.0}, {}, "yarn_beta_fast 32, and the model's config beta_fast 16"),
        ({"beta_slow": 2.0}, {}, "yarn_beta_slow 1, and the model's config beta_slow 2"),
        ({"beta_slow": 2}, {"yarn_beta_slow": float("nan")}, "yarn_beta_slow nan"),
        ({"attention_factor": 1.0}, {}, "attention factor of 1.13863 .* config 1:"),
        ({"mscale": 0.7, "mscale_all_dim": 1.0}, {}, "factor of 1.13863 .* config 0.963475:"),
        ({}, {"yarn_attn_factor": 2.0}, "attention factor of 2.27726 .* config 1.13863:"),
        ({}, {"yarn_log_multiplier": 0.1}, "yarn_log_multiplier 0.1, and .* mscale_all_dim 0"),
        ({}, {"yarn_log_multiplier": 0.0, "yarn_attn_factor": 7.0}, "attention factor of 7.97"),
        (DEEPSEEK, {"yarn_log_multiplier": 0.1, "yarn_attn_factor": 7.0}, "of 7 .* config 1:"),
        (DEEPSEEK | {"mscale": 0.7}, {"yarn_log_multiplier": 0.1}, "of 1 .* config 0.963475:"),
        ({"factor": None}, {"factor": 2.0}, "rope.scaling.factor 2, and .* config factor 4:"),
        ({"mscale": 1.0, "mscale_all_dim": -10 / math.log(4)}, {}, "does not say how yarn"),
        ({"beta_fast": "many"}, {}, "does not say how yarn scales positions"),
        ({"mscale": [1]}, {}, "does not say how yarn scales positions"),
        ({"factor": None, "original_max_position_embeddings": None}, {}, "does not say how yarn"),
    ],
)
def test_yarns_lesser_settings_are_held(
    tmp_path: Path, own: dict[str, Any], there: dict[str, Any], said: str
) -> None:
    named = {f"scaling.{key}": value for key, value in there.items()}
    path = write_head(tmp_path / "a.gguf", YARN_FILE | named)
    config = {"rope_parameters": YARN | own, "max_position_embeddings": 8192}
    with pytest.raises(CheckpointError, match=said):
        require_rope(open_gguf(path, "a.gguf"), config)


@pytest.mark.parametrize(
    "own",
    [
        *(
            {},
            {"beta_fast": 16.0},
            {"attention_factor": 0.8},
            {"mscale": 0.7, "mscale_all_dim": 1.0},
        ),
        {"factor": None},
    ],
)
def test_yarn_as_converters_write_it_is_taken(tmp_path: Path, own: dict[str, Any]) -> None:
    scale = yarn_scale(YARN | own)
    plain = yarn_scale(YARN)
    for factor in (scale, scale / plain):  # as written by some, and as llama.cpp computes
        there = {"scaling.yarn_attn_factor": factor}
        there |= {f"scaling.yarn_{key}": value for key, value in own.items() if "beta" in key}
        path = write_head(tmp_path / f"{factor}.gguf", YARN_FILE | there)
        config = {"rope_parameters": YARN | own, "max_position_embeddings": 8192}
        require_rope(open_gguf(path, "a.gguf"), config)


@pytest.mark.parametrize("further", [{}, {"yarn_attn_factor": 1.0}])
@pytest.mark.parametrize("log_mul", [0.1, 1.0])
def test_deepseeks_yarn_is_taken(tmp_path: Path, log_mul: float, further: dict[str, float]) -> None:
    assert yarn_scale(YARN | DEEPSEEK) == 1
    there = {f"scaling.{k}": v for k, v in (further | {"yarn_log_multiplier": log_mul}).items()}
    path = write_head(tmp_path / "a.gguf", YARN_FILE | there)
    require_rope(open_gguf(path, "a.gguf"), {"rope_parameters": YARN | DEEPSEEK})


@pytest.mark.parametrize(("truncate", "lines"), [(True, 0), (False, 1)])
def test_yarn_without_truncation_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, truncate: bool, lines: int
) -> None:
    path = write_head(tmp_path / "a.gguf", YARN_FILE)
    require_rope(open_gguf(path, "a.gguf"), {"rope_parameters": YARN | {"truncate": truncate}})
    told = [r.message for r in caplog.records if "has no YaRN without truncation" in r.message]
    assert len(told) == lines


@pytest.mark.parametrize("there", [{}, {"scaling.factor": 1.0}, {"scaling.type": "none"}])
def test_positions_that_are_not_scaled_are_taken(tmp_path: Path, there: dict[str, Any]) -> None:
    path = write_head(tmp_path / "a.gguf", there, [1.0] * 8)
    require_rope(open_gguf(path, "a.gguf"), {"head_dim": 16})


# ---- what a folder's config says


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}}, "rope_parameters"),
        ({"rms_norm_eps": 0.5}, "rms_norm_eps 0.5, and the model's 1e-0"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True"),
    ],
)
def test_a_folder_that_computes_otherwise_is_refused(
    plain: Path, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    folder = configured(save_fp8(plain, tmp_path / "fp8"), **fields)
    with pytest.raises(CheckpointError, match=said):
        met(plain, folder)


def test_a_folders_own_code_never_runs(plain: Path, tmp_path: Path) -> None:
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    fields = {"auto_map": names, "model_type": "own"}
    folder = configured(save_fp8(plain, tmp_path / "fp8"), **fields)
    mark = tmp_path / "ran"
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    with pytest.raises(CheckpointError, match="brings its own Python code"):
        met(plain, folder, trust_remote_code=True)
    assert not mark.exists()


# ---- names


def test_a_condition_that_is_named_twice_is_measured_once(plain: Path, tmp_path: Path) -> None:
    file = str(write_gguf(plain, tmp_path / "own.gguf", "Q8_0"))
    named = resolve(["none", "deployed:gguf-q8_0"])
    found = deployed.beside(named, KernelOptions.of({"deployed": (file,)}))
    assert [spec.name for spec in found] == ["none", "deployed:gguf-q8_0"]
    assert found[1].scheme.startswith("by another tool: llama.cpp Q8_0")
