"""Bin overlap and update survival against numpy, from files, for every kind of checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conditions.quantize.test_quantize_references import FP4, NF4, q4_0, q8_0, q_1, rtn
from tests.conftest import MakeCheckpoint
from unlearnbench import conditions
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.weights import Weights, open_weights
from unlearnbench.cli.main import run
from unlearnbench.conditions.quantize.overlap import (
    LayerOverlap,
    PrecisionOverlap,
    compare_codes,
    overlap_table,
    plot_overlap,
)
from unlearnbench.errors import CheckpointError, OptionError, PrecisionError

LINEAR = 2 * 7
WEIGHTS = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)


@pytest.fixture(scope="module")
def moved(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny`` with every matrix of layer 0 moved a little, and nothing else."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("moved") / "moved"
    torch.manual_seed(7)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers.0." in name and weight.dim() > 1:
                weight.add_(torch.randn_like(weight) * 2e-3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def overlaps(model: Path, target: Path, names: str) -> dict[str, PrecisionOverlap]:
    specs = conditions.resolve(names.split(","))
    with ExitStack() as stack:
        options = LoadOptions(allow_pickle=True)
        ours, theirs = (open_weights(str(path), options, stack) for path in (model, target))
        layers = [found for _, found in compare_codes(ours, theirs, specs)]
    return {
        spec.name: PrecisionOverlap(spec.name, tuple(found[i] for found in layers))
        for i, spec in enumerate(specs)
    }


def numpy_codes(weight: NDArray[np.float32], bits: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Plain symmetric absmax rounding per row, in double precision."""
    step = np.abs(weight.astype(np.float64)).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.round(weight / step), step


def tensors(folder: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("bits", [8, 4])
def test_every_figure_against_numpy(tiny: Path, moved: Path, bits: int) -> None:
    found = overlaps(moved, tiny, f"rtn-int{bits}")[f"rtn-int{bits}"]
    ours, theirs = tensors(moved), tensors(tiny)
    assert len(found.layers) == LINEAR
    assert found.weights == WEIGHTS
    same = changed = 0
    for layer in found.layers:
        u, t = ours[f"{layer.name}.weight"], theirs[f"{layer.name}.weight"]
        (one, _), (two, step) = numpy_codes(u, bits), numpy_codes(t, bits)
        # fp32 against double precision: a weight on the edge of two bins may fall either way.
        assert abs(layer.same - int((one == two).sum())) <= 2
        assert layer.changed == int((u != t).sum())
        moved_by = u.astype(np.float64) - t
        assert layer.update == pytest.approx(float((moved_by**2).sum()), rel=1e-12)
        # The steps of the two differ where a row's largest weight moved.
        kept = float(((one * numpy_codes(u, bits)[1] - two * step) * moved_by).sum())
        assert layer.kept == pytest.approx(kept, rel=1e-3, abs=1e-12)
        same, changed = same + layer.same, changed + layer.changed
    assert found.overlap == same / WEIGHTS
    assert found.changed_share == changed / WEIGHTS
    assert 0.49 < found.changed_share < 0.51  # one of two layers
    blocks = found.by_block()
    assert list(blocks) == ["model.layers.0", "model.layers.1"]
    assert blocks["model.layers.1"].overlap == 1
    assert blocks["model.layers.1"].survival is None
    assert blocks["model.layers.0"].overlap < 1
    assert blocks["model.layers.0"].survival == found.survival
    modules = found.by_module()
    assert next(iter(modules)) == "self_attn.q_proj"
    assert len(modules) == 7
    assert sum(each.weights for each in modules.values()) == WEIGHTS
    assert all(len(each.layers) == 2 for each in modules.values())


def in_blocks(size: int, of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda w: of(w.reshape(-1, size)).reshape(w.shape)


def from_book(book: Any) -> Callable[[Any], Any]:
    def nearest(w: Any) -> Any:
        scale = np.abs(w).max(axis=1, keepdims=True)
        return book[np.abs(w[..., None] / scale[..., None] - book).argmin(-1)] * scale

    return in_blocks(64, nearest)


FORMULAS = {
    "bnb-nf4": from_book(NF4),
    "bnb-fp4": from_book(FP4),
    "gguf-q8_0": in_blocks(32, q8_0),
    "gguf-q5_1": in_blocks(32, lambda x: q_1(x, 5)),
    "gguf-q4_1": in_blocks(32, lambda x: q_1(x, 4)),
    "gguf-q4_0": in_blocks(32, q4_0),
}


def reference(name: str, weight: Any) -> Any:
    """The weight in force, by the formula in numpy where there is one; what the others' libraries
    make of it is held against the loaded model's weights elsewhere.
    """
    spec = conditions.find_condition(name)
    if name.startswith("rtn"):
        size = spec.options["group_size"]
        group = None if size == "channel" else int(size)
        codes, step, zero = rtn(weight, int(spec.bits or 0), group, not spec.options["symmetric"])
        return (codes.astype(np.float64) - zero) * step
    if name in FORMULAS:
        return FORMULAS[name](weight)
    return conditions.encode(spec, torch.from_numpy(weight)).values.numpy()


def _given(weight: torch.Tensor, _: str) -> torch.Tensor:
    return weight


def two(ours: Any, theirs: Any) -> tuple[Weights, Weights]:
    facts = {"model_type": "llama"}
    return tuple(  # type: ignore[return-value]
        Weights(name, facts, ("a",), partial(_given, torch.as_tensor(w)))
        for name, w in (("u", ours), ("t", theirs))
    )


def test_survival_against_a_loop_in_double_precision_for_every_scheme() -> None:
    rng = np.random.default_rng(0)
    theirs = np.asarray(rng.standard_t(3, (8, 160)) * 0.02, np.float32)
    ours = theirs + np.asarray(rng.standard_normal(theirs.shape) * 4e-3, np.float32)
    names = [n for n, s in conditions.precisions().items() if conditions.has_codes(s)]
    names = [n for n in names if not _missing(n)]
    assert {"rtn-int6-g32-asym", "bnb-nf4-dq", "bnb-int8", *FORMULAS} <= set(names)
    ((_, layers),) = compare_codes(*two(ours, theirs), conditions.resolve(names))
    for name, layer in zip(names, layers, strict=True):
        u, t = reference(name, ours), reference(name, theirs)
        kept = update = 0.0
        for i in range(len(ours)):
            for j in range(len(ours[i])):
                moved = float(ours[i][j]) - float(theirs[i][j])
                kept += (float(u[i][j]) - float(t[i][j])) * moved
                update += moved * moved
        found = PrecisionOverlap(name, (layer,)).survival
        assert found == pytest.approx(kept / update, rel=1e-5), name
        assert np.isfinite(kept), name
    survivals = [layer.kept / layer.update for layer in layers]
    assert min(survivals) < 0.5 < 1.02 < max(survivals)  # and they are not trivially 1
    assert len(set(survivals)) > 50


GRID = np.array([[7, 0.1, -0.3, 2.2, -4, 0.2]], np.float32)  # a step of rtn-int4 is 1


@pytest.mark.parametrize(
    ("update", "survival"),
    [
        ([0, 1, -2, 3, 1, 0], 1.0),  # whole steps
        ([0, 0.3, -0.1, 0, 0, -0.4], 0.0),  # inside the zero bin
        ([0, 0, 0, 0.4, 0, 0], 2.5),  # over an edge: the whole step for 0.4 of one
        ([0, 0.3, 0, 0, 1, 0], 1 / 1.09),
    ],
)
def test_survival_in_the_limits(update: list[float], survival: float) -> None:
    ours = GRID + np.array([update], np.float32)
    ((_, (layer,)),) = compare_codes(*two(ours, GRID), conditions.resolve(["rtn-int4"]))
    assert PrecisionOverlap("", (layer,)).survival == pytest.approx(survival, rel=1e-6, abs=1e-9)


def test_a_matrix_is_taken_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    theirs = rng.standard_normal((7, 64))
    ours = theirs + rng.standard_normal((7, 64)) * 0.05
    pair = two(np.float32(ours), np.float32(theirs))
    ((_, whole),) = compare_codes(*pair, conditions.resolve(["rtn-int4"]))
    monkeypatch.setattr("unlearnbench.conditions.quantize.overlap._CHUNK", 50)
    ((_, pieces),) = compare_codes(*pair, conditions.resolve(["rtn-int4"]))
    assert pieces[0].kept == pytest.approx(whole[0].kept, rel=1e-12)


def test_values_that_a_precision_cannot_hold_are_an_error() -> None:
    weight = np.full((2, 64), 1e5, np.float32)  # LLM.int8() goes through float16
    with pytest.raises(CheckpointError, match="a has values that bnb-int8 cannot hold"):
        list(compare_codes(*two(weight * 1.01, weight), conditions.resolve(["bnb-int8"])))


def test_more_bits_keep_fewer_codes(tiny: Path, moved: Path) -> None:
    found = overlaps(moved, tiny, "rtn-int8,rtn-int6,rtn-int4,rtn-int3,rtn-int2")
    shares = [p.overlap for p in found.values()]
    assert shares == sorted(shares)


def test_every_precision_with_codes_sees_the_same_weights(tiny: Path, moved: Path) -> None:
    names = [n for n, s in conditions.precisions().items() if conditions.has_codes(s)]
    names = [n for n in names if "rtn" not in n and not _missing(n)]
    assert {"bnb-int8", "bnb-nf4", "gguf-q4_0"} <= set(names)
    for name, found in overlaps(moved, tiny, ",".join(names)).items():
        assert found.weights == WEIGHTS, name
        assert 0.5 < found.overlap < 1, name
        assert found.by_block()["model.layers.1"].overlap == 1, name


def _missing(name: str) -> bool:
    spec = conditions.find_condition(name)
    return spec.missing() is not None


def test_the_same_checkpoint_twice(tiny: Path) -> None:
    found = overlaps(tiny, tiny, "bnb-nf4")["bnb-nf4"]
    assert (found.overlap, found.changed_share, found.survival) == (1, 0, None)
    assert "no update whose survival could be told" in overlap_table([found])


def test_a_share_just_below_all_is_not_shown_as_all() -> None:
    layer = LayerOverlap("a", 10**8, 10**8 - 1, 1, 0.1, 0.2, 0.1)
    assert "0.500, 99.999%" in overlap_table([PrecisionOverlap("rtn-int4", (layer,))])


def test_shards_pickles_and_adapters_give_what_one_file_gives(
    tiny: Path, moved: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(moved)
    tokenizer: Any = AutoTokenizer.from_pretrained(moved)
    shards, pickled = tmp_path / "shards", tmp_path / "pickled"
    model.save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    tokenizer.save_pretrained(shards)
    shutil.copytree(moved, pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    plain = overlaps(moved, tiny, "rtn-int4")
    assert overlaps(shards, tiny, "rtn-int4") == plain
    assert overlaps(pickled, tiny, "rtn-int4") == plain


def test_another_architecture_is_an_error(
    tiny: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    deeper = make_checkpoint("deeper", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="num_hidden_layers 3, .* has 2"):
        overlaps(deeper, tiny, "rtn-int4")
    heads = make_checkpoint("heads", num_key_value_heads=4)
    with pytest.raises(CheckpointError, match=r"k_proj has shape \(64, 64\) .* \(32, 64\)"):
        overlaps(heads, tiny, "rtn-int4")


def test_nan_weights_are_an_error(tiny: Path, moved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(moved, broken)
    state = load_file(broken / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="up_proj has NaN"):
        overlaps(broken, tiny, "rtn-int4")


def test_a_missing_tensor_is_an_error(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    short = tmp_path / "short"
    shutil.copytree(tiny, short)
    state = load_file(short / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, short / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no tensor model.layers.1.mlp.up_proj.weight"):
        overlaps(short, tiny, "rtn-int4")


def test_a_mixture_of_experts_is_an_error(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    with pytest.raises(PrecisionError, match="leaves .* weights as they are, .*experts"):
        overlaps(tmp_path / "moe", tmp_path / "moe", "rtn-int4")


@pytest.mark.field("Weights", "`inspect` of Bloom, OPT without prefix", "runs")
@pytest.mark.parametrize("kind", ["bloom", "opt"])
def test_stored_names_are_read_as_transformers_reads_them(tmp_path: Path, kind: str) -> None:
    """Published checkpoints of both kinds name their tensors without the model's prefix."""
    from safetensors.torch import load_file, save_file
    from transformers import BloomConfig, BloomForCausalLM, OPTConfig, OPTForCausalLM

    model: Any
    if kind == "bloom":
        size: dict[str, Any] = {"vocab_size": 300, "hidden_size": 64, "n_layer": 1, "n_head": 4}
        prefix, model = "transformer.", BloomForCausalLM(BloomConfig(**size))
    else:
        size = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 1, "ffn_dim": 128}
        size |= {"num_attention_heads": 4, "word_embed_proj_dim": 64}
        prefix, model = "model.", OPTForCausalLM(OPTConfig(**size))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    model.save_pretrained(theirs)
    bare = load_file(theirs / "model.safetensors")
    assert all(name.startswith(prefix) for name in bare)
    model.save_pretrained(ours)
    bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items()}
    save_file(bare, ours / "model.safetensors", metadata={"format": "pt"})
    found = overlaps(ours, theirs, "rtn-int4")["rtn-int4"]
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert {layer.name for layer in found.layers} == set(linear) - {"lm_head"}
    assert found.overlap == 1
    with ExitStack() as stack:
        weights = open_weights(str(ours), LoadOptions(), stack)
        for name in weights.linear:
            assert torch.equal(weights.read(name), model.get_parameter(f"{name}.weight"))


@pytest.mark.field("Weights", "`inspect` of GPT-2", "runs")
def test_the_columns_of_gpt2_are_outputs(tmp_path: Path) -> None:
    """Its Conv1D are stored as (in, out); published files name them without the prefix."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folders, stored = (tmp_path / "ours", tmp_path / "theirs"), []
    for seed, folder in enumerate(folders):
        torch.manual_seed(0)
        size: dict[str, Any] = {"vocab_size": 300, "n_embd": 64, "n_layer": 1, "n_head": 4}
        model: Any = GPT2LMHeadModel(GPT2Config(**size))
        torch.manual_seed(1)
        if seed:
            with torch.no_grad():
                for weight in model.parameters():
                    weight += 2e-3 * torch.randn_like(weight)
        model.transformer.save_pretrained(folder)
        _edit_config(folder / "config.json", architectures=["GPT2LMHeadModel"])
        stored.append(tensors(folder))
    assert "h.0.attn.c_attn.weight" in stored[0]
    found = overlaps(*folders, "rtn-int4")["rtn-int4"]
    assert len(found.layers) == 4
    for layer in found.layers:
        u, t = (part[f"{layer.name.removeprefix('transformer.')}.weight"].T for part in stored)
        (one, _), (two, _) = numpy_codes(u, 4), numpy_codes(t, 4)
        assert abs(layer.same - int((one == two).sum())) <= 2
        (one, _), (two, _) = numpy_codes(u.T, 4), numpy_codes(t.T, 4)
        assert abs(layer.same - int((one == two).sum())) > 10, "by rows it would be another number"


def _edit_config(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["none", "bf16", "gptq-int4-g128", "awq-int4-g64"])
def test_precisions_without_codes_of_their_own(
    tiny: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["inspect", "--model", str(tiny), "--target", str(tiny), "--quant", name]
    assert run(arguments) == 2
    assert f"cannot tell bins of {name}" in capsys.readouterr().err


def test_command_writes_table_json_and_plot(
    tiny: Path, moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, plot = tmp_path / "o.json", tmp_path / "o.png"
    arguments = ["inspect", "--model", str(moved), "--target", str(tiny)]
    arguments += ["--quant", "int8,int4", "--json", str(facts), "--plot", str(plot)]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert re.search(r"model.layers.1 +no update, 100.000%", shown)
    assert "\nmlp.up_proj " in shown
    assert " at rtn-int4: " in shown
    content = json.loads(facts.read_text())
    assert set(content["precisions"]) == {"rtn-int8", "rtn-int4"}
    expected = overlaps(moved, tiny, "rtn-int4")["rtn-int4"]
    part = content["precisions"]["rtn-int4"]
    assert (part["overlap"], part["survival"]) == (expected.overlap, expected.survival)
    assert len(part["layers"]) == LINEAR
    assert part["layers"]["model.layers.1.mlp.up_proj"]["overlap"] == 1
    assert part["layers"]["model.layers.1.mlp.up_proj"]["survival"] is None
    assert part["blocks"]["model.layers.0"]["survival"] == expected.survival
    assert part["modules"]["mlp.up_proj"]["weights"] == WEIGHTS * 64 * 128 // (WEIGHTS // 2)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("option", "name", "says"),
    [
        ("--plot", "o.foo", "use a file ending in .png, .svg or .pdf"),
        ("--plot", "no/o.png", "cannot be written (No such file or directory)"),
        ("--json", "no/o.json", "cannot be written (No such file or directory)"),
        ("--json", "", "cannot be written (Is a directory)"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, name: str, says: str
) -> None:
    arguments = ["inspect", "--model", "none/here", "--target", "none/here", "--quant", "int4"]
    assert run([*arguments, option, str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bad_files_are_one_line(tiny: Path, tmp_path: Path) -> None:
    layer = LayerOverlap("a.0.b", 10, 9, 1, 1.0, 10.0, 2.5)
    found = [PrecisionOverlap("rtn-int4", (layer,))]
    with pytest.raises(OptionError, match="ending in .png"):
        plot_overlap(tmp_path / "plot.txt", found)
    with pytest.raises(OptionError, match="cannot be written"):
        plot_overlap(tmp_path / "no" / "plot.svg", found)
    plot_overlap(tmp_path / "plot.svg", found)
    assert b"<svg" in (tmp_path / "plot.svg").read_bytes()
