from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints.helpers import edit_json, edit_weights, load, logprobs, texts
from tests.conftest import MakeCheckpoint, load_at
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import CheckpointError, OptionError, PrecisionError


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
    ],
)
@pytest.mark.parametrize("name", ["bnb-nf4", "rtn-int4", "bf16"])
def test_a_quantized_checkpoint_is_not_quantized_again(
    copy: Path, quantization: dict[str, object], name: str
) -> None:
    edit_json(copy / "config.json", quantization_config=quantization)
    with pytest.raises(PrecisionError, match="quantized already.*give the unquantized checkpoint"):
        load_at(open_checkpoint(str(copy), LoadOptions()), name)


def test_an_unknown_quantizer_is_refused(copy: Path) -> None:
    edit_json(copy / "config.json", quantization_config={"quant_method": "nonesuch"})
    with pytest.raises(PrecisionError, match="quantized already, by 'nonesuch'.*Give the unquant"):
        open_checkpoint(str(copy), LoadOptions())


def test_a_revision_of_a_local_path_is_an_error(tiny: Path) -> None:
    with pytest.raises(OptionError, match="--revision"):
        open_checkpoint(str(tiny), LoadOptions(revision="main"))


def test_a_base_is_for_adapters_only(tiny: Path) -> None:
    with pytest.raises(OptionError, match="--base is for adapter folders"):
        open_checkpoint(str(tiny), LoadOptions(base=str(tiny)))


class Reads:
    """Counts how often transformers reads weight files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import transformers.modeling_utils as library

        self.count = 0
        original: Any = library._get_resolved_checkpoint_files

        def counted(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            self.count += found[0] is not None
            return found

        monkeypatch.setattr(library, "_get_resolved_checkpoint_files", counted)


def answers(
    source: CheckpointSource, precisions: Sequence[str]
) -> list[tuple[list[str], list[float]]]:
    """Each precision as the evaluator runs them: loaded, released, asked."""
    found = []
    for name in precisions:
        model = load_at(source, name)
        source.release()
        found.append((texts(model), logprobs(model).tolist()))
    return found


ORDER = ["none", "rtn-int4", "bnb-fp4", "none", "bf16", "bnb-int8", "rtn-int4"]


def test_files_are_read_once_or_again_with_the_same_answers(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    kept = answers(open_checkpoint(str(tiny), LoadOptions(), keep=True), ORDER)
    assert reads.count == 1
    again = answers(open_checkpoint(str(tiny), LoadOptions(), keep=False), ORDER)
    assert reads.count == 1 + len(ORDER)
    assert kept == again
    assert kept[0] == kept[3]
    assert kept[1] == kept[6]
    assert len({str(answer) for answer in kept}) == len(set(ORDER))
    assert answers(open_checkpoint(str(tiny), LoadOptions()), ["bnb-fp4"]) == [kept[2]]


def test_a_source_that_does_not_fit_twice_is_not_kept(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (tiny / "model.safetensors").stat().st_size
    reads = Reads(monkeypatch)
    for available, expected in ((2 * size, 2), (3 * size, 1)):
        monkeypatch.setattr(
            "psutil.virtual_memory",
            lambda available=available: SimpleNamespace(available=available, total=2**40),
        )
        reads.count = 0
        answers(open_checkpoint(str(tiny), LoadOptions(), keep=True), ["none", "rtn-int8"])
        assert reads.count == expected


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("dtype", "short"), [("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "fp16")]
)
def test_own_dtype(make_checkpoint: MakeCheckpoint, dtype: str, short: str, named: bool) -> None:
    folder = make_checkpoint(f"own-{short}", dtype)
    if not named:
        edit_json(folder / "config.json", dtype=None)
    source = open_checkpoint(str(folder), LoadOptions())
    assert source.own_dtype == short
    assert source.model().dtype is getattr(torch, dtype)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_stored_dtype_wins_over_the_one_that_the_config_names(copy: Path, key: str) -> None:
    edit_json(copy / "config.json", **{"dtype": None, key: "bfloat16"})
    source = open_checkpoint(str(copy), LoadOptions())
    assert (source.own_dtype, source.model().dtype) == ("fp32", torch.float32)


WIDE = [f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "gate", "down")]


def widen(folder: Path, dtype: torch.dtype = torch.float32, by: float = 1.001) -> Path:
    """Store three matrices wider, moved by less than bf16 can tell apart."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights |= {name: weights[name].to(dtype) * by for name in WIDE}

    edit_weights(folder, change)
    return folder


@pytest.mark.field("Weights", "weights in several dtypes", "the widest, with a note")
@pytest.mark.parametrize("precision", ["none", "rtn-int8"])
def test_the_widest_stored_dtype_wins(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, notes: list[str], precision: str
) -> None:
    """An update of 0.1% is measured; rounded to the bf16 of most weights, it would vanish."""
    narrow = make_checkpoint("mixed", "bfloat16")
    mixed = widen(shutil.copytree(narrow, tmp_path / "mixed"))
    stored, rounded = (load_file(folder / "model.safetensors") for folder in (mixed, narrow))
    assert all(torch.equal(stored[name].bfloat16(), rounded[name]) for name in WIDE)
    source = open_checkpoint(str(mixed), LoadOptions())
    assert source.own_dtype == "fp32"
    assert all(torch.equal(source.state_dict()[n], stored[n]) for n in WIDE)
    assert not np.array_equal(
        logprobs(load(mixed, precision, "auto")), logprobs(load(narrow, precision, "fp32"))
    )
    whole = Path(shutil.copytree(mixed, tmp_path / "whole"))
    edit_weights(whole, lambda w: w.update({name: t.float() for name, t in w.items()}))
    assert np.array_equal(
        logprobs(load(mixed, precision, "auto")), logprobs(load(whole, precision, "fp32"))
    )
    (said,) = {line for line in notes if "rounds none" in line}
    assert "bfloat16 (18 tensors) and float32 (3 tensors); loaded in float32" in said


@pytest.mark.field("Weights", "bf16 beside fp16", "loads in fp32, with a note")
def test_bf16_beside_fp16_loads_in_fp32(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Neither of the two holds the other."""
    narrow = make_checkpoint("mixed", "bfloat16")
    mixed = widen(shutil.copytree(narrow, tmp_path / "mixed"), torch.float16)
    assert open_checkpoint(str(mixed), LoadOptions()).own_dtype == "fp32"


def test_what_is_no_weight_widens_nothing(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, notes: list[str]
) -> None:
    """Old Llama checkpoints hold a table of positions in fp32."""
    narrow = make_checkpoint("mixed", "bfloat16")
    folder = Path(shutil.copytree(narrow, tmp_path / "table"))
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    edit_weights(folder, lambda weights: weights.update(table))
    assert open_checkpoint(str(folder), LoadOptions()).own_dtype == "bf16"
    assert not notes


@pytest.mark.parametrize("named", [True, False])
def test_own_dtype_that_is_not_computed_in(make_checkpoint: MakeCheckpoint, named: bool) -> None:
    folder = make_checkpoint("double", "float64")
    if not named:
        edit_json(folder / "config.json", dtype=None)
    with pytest.raises(CheckpointError, match="save it as bfloat16"):
        _ = open_checkpoint(str(folder), LoadOptions()).own_dtype
