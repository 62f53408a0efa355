"""llama.cpp's mixtures in a model: bits of the library, types of the rule, and importance."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conditions.helpers import load, module_of, short_calibration
from tests.conftest import MakeCheckpoint, load_at
from unlearnbench import conditions
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.load import linear_layers
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.weights import open_weights
from unlearnbench.cli.main import run
from unlearnbench.conditions.quantize import blocks
from unlearnbench.conditions.quantize.imatrix import read_calibration
from unlearnbench.conditions.quantize.overlap import compare_codes
from unlearnbench.errors import DataError, NotInForceError, PrecisionError

pytest.importorskip("libggml", reason="pip install 'unlearnbench[ggml]'")

HIDDEN, INNER, LAYERS = 256, 288, 3
# By hand: of three layers the first and last get more; 288 columns make no blocks of 256.
TYPES = {
    **{"v_proj": ["Q4_K", "Q4_K", "Q6_K"], "down_proj": ["Q5_0", "Q5_0", "Q8_0"]},
    **{name: ["Q4_K"] * 3 for name in ("q_proj", "k_proj", "o_proj", "gate_proj", "up_proj")},
}


@pytest.fixture(scope="module")
def wide(make_checkpoint: MakeCheckpoint) -> Path:
    shape = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    return make_checkpoint("ggml", **shape)


@pytest.fixture(scope="module")
def source(wide: Path) -> CheckpointSource:
    return open_checkpoint(str(wide), LoadOptions())


def kind_of(name: str) -> str:
    return TYPES[name.rsplit(".", 1)[1]][int(name.split(".")[2])]


def weights(source: CheckpointSource) -> dict[str, Any]:
    return {n: m.weight.detach().numpy() for n, m in linear_layers(source.model()).items()}


def test_the_weights_in_force_are_the_librarys_bit_for_bit(source: CheckpointSource) -> None:
    model = load(source, "gguf-q4_k_m")
    for name, weight in weights(source).items():
        kind = kind_of(name)
        expected = blocks.values(kind, blocks.quantize(kind, weight))
        np.testing.assert_array_equal(module_of(model, name).weight.numpy(), expected)
    proof = model.condition.proof
    assert proof is not None
    sizes = Counter[str]()
    for name, weight in weights(source).items():
        sizes[kind_of(name).lower()] += weight.size
    assert {k: n for k, n in proof.weights_by_dtype.items() if k != "float32"} == sizes
    assert proof.codes is not None
    assert 16 < proof.codes <= 32  # of Q5_0 and Q8_0, in groups of 32


def test_inspect_sees_each_matrix_in_its_type(wide: Path, source: CheckpointSource) -> None:
    factor = np.float32(1.01)
    with ExitStack() as stack:
        theirs = open_weights(str(wide), LoadOptions(), stack)
        ours = replace(theirs, read=lambda name: theirs.read(name) * float(factor))
        found = dict(compare_codes(ours, theirs, conditions.resolve(["gguf-q4_k_m"])))
    assert len(found) == LAYERS * len(TYPES)
    for name, (layer,) in found.items():
        if not name.endswith(("v_proj", "down_proj")):  # the others are all of one type
            continue
        kind, weight = kind_of(name), weights(source)[name]
        pair = [blocks.quantize(kind, w) for w in (weight * factor, weight)]
        one, two = (blocks.codes(kind, packed) for packed in pair)
        assert layer.same == (one == two).sum()
        u, t = (blocks.values(kind, packed).astype(np.float64) for packed in pair)
        kept = ((u - t) * (weight * factor - weight.astype(np.float64))).sum()
        assert layer.kept == pytest.approx(kept, rel=1e-6, abs=1e-9)


def test_columns_that_make_no_blocks_at_all_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    odd = open_checkpoint(str(make_checkpoint("odd-ggml", hidden_size=80)), LoadOptions())
    with pytest.raises(NotInForceError, match="the 80 columns of .* make no blocks of 32"):
        load(odd, "gguf-q4_k_m")


# ---- importance matrices


def mean_inputs(wide: Path, source: CheckpointSource) -> dict[str, Any]:
    """Mean squares of what transformers' own layers are given."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(wide).eval()
    seen: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            rows = seen.setdefault(name, [])
            module.register_forward_hook(lambda _, given, __, rows=rows: rows.append(given[0][0]))
    for text in short_calibration().texts:
        with torch.no_grad():
            model(torch.tensor([source.tokenizer(text)["input_ids"][:512]]))
    return {n: (torch.cat(r).double() ** 2).mean(0).float().numpy() for n, r in seen.items()}


def write_imatrix(path: Path, means: dict[str, Any], tokens: int = 512, **names: str) -> Path:
    """As llama-imatrix writes it: sums of squares, and how many tokens they are of."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_uint32("imatrix.chunk_count", 4)
    writer.add_uint32("imatrix.chunk_size", 128)
    short = {"self_attn": "attn", "mlp": "ffn", "o": "output"}
    for name, mean in means.items():
        _, _, block, part, module = name.split(".")
        end = module.removesuffix("_proj")
        stem = f"blk.{block}.{short[part]}_{short.get(end, end)}.weight"
        writer.add_tensor(
            f"{stem}.in_sum2", np.asarray(mean * np.float32(tokens), np.float32)[None]
        )
        writer.add_tensor(f"{stem}.counts", np.full((1, 1), tokens, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_importance_is_made_of_calibration_texts_or_read(
    wide: Path, source: CheckpointSource, tmp_path: Path
) -> None:
    means = mean_inputs(wide, source)
    made = load(source, "gguf-q4_k_m-imat")
    file = write_imatrix(tmp_path / "imatrix.gguf", means)
    calibration = read_calibration(file)
    given = load_at(source, "gguf-q4_k_m-imat", calibration=calibration)
    assert given.condition.options.calibration == calibration.data
    assert (calibration.data.samples, calibration.data.max_tokens) == (4, 128)
    plain = load(source, "gguf-q4_k_m")
    for name, weight in weights(source).items():
        kind = kind_of(name)
        expected = blocks.values(kind, blocks.quantize(kind, weight, means[name]))
        now = module_of(given, name).weight.numpy()
        np.testing.assert_allclose(now, expected, rtol=0, atol=2e-3)
        assert (now != expected).mean() < 1e-3  # sums divided by a count differ in the last bit
        assert (module_of(made, name).weight.numpy() != expected).mean() < 0.02
        if kind != "Q8_0":  # which takes no importance
            assert (module_of(plain, name).weight.numpy() != expected).mean() > 0.05


def test_an_importance_matrix_of_another_model_is_refused(
    tiny: Path, wide: Path, source: CheckpointSource, tmp_path: Path, capsys: Any
) -> None:
    means = mean_inputs(wide, source)
    cases = {
        "short": {name: mean[:200] if "q_proj" in name else mean for name, mean in means.items()},
        "few": {name: mean for name, mean in means.items() if ".2." not in name},
    }
    for name, said in (("short", "200 columns of it"), ("few", "nothing of it")):
        calibration = read_calibration(write_imatrix(tmp_path / f"{name}.gguf", cases[name]))
        with pytest.raises(PrecisionError, match=f"of another model: .* 256 columns.*{said}"):
            load_at(source, "gguf-q4_k_m-imat", calibration=calibration)
    none = write_imatrix(tmp_path / "none.gguf", means, tokens=0)
    with pytest.raises(PrecisionError, match="no text reached blk"):
        load_at(source, "gguf-q4_k_m-imat", calibration=read_calibration(none))
    told = ["quants", "--model", str(wide), "--calibration", str(none), "--quant"]
    assert run([*told, "prune-wanda-50"]) == 2
    assert "is an importance matrix, and prune-wanda-50 needs texts" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0.0, 1e38])
def test_an_importance_matrix_that_wipes_weights_out_is_refused(
    value: float, wide: Path, source: CheckpointSource, tmp_path: Path
) -> None:
    means = mean_inputs(wide, source)
    name = "model.layers.1.self_attn.q_proj"
    means[name] = np.full_like(means[name], value)
    calibration = read_calibration(write_imatrix(tmp_path / "x.gguf", means, tokens=1))
    for precision in ("gguf-q2_k-imat", "gguf-q4_k_s-imat"):
        with pytest.raises(NotInForceError, match=rf"{name}: its importance .* wipes the weights"):
            load_at(source, precision, calibration=calibration)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, None])
def test_a_file_that_is_no_importance_matrix(tmp_path: Path, content: bytes | None) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    else:
        writer = GGUFWriter(path, "llama")
        writer.add_tensor("a", np.zeros((1, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with pytest.raises(DataError, match=r"--calibration .*x\.gguf"):
        read_calibration(path)


def test_an_importance_matrix_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--calibration .*x\.gguf is not there, or no file$"):
        read_calibration(tmp_path / "x.gguf")
