"""The command: what it writes, from which kinds of checkpoint, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints.helpers import edit_json, edit_weights
from tests.conftest import MakeCheckpoint
from tests.deployed_files import write_gguf
from unlearnbench import conditions
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.find import files_sha256
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE, Training, read_origin
from unlearnbench.cli.main import run
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.quantize.forecast import expected

INT4 = find_condition("rtn-int4")


@pytest.fixture(scope="module")
def pair(
    make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """An unlearned checkpoint in bf16, in several files, and its target in one."""
    from transformers import AutoModelForCausalLM

    target = make_checkpoint("target", dtype="bfloat16")
    folder: Path = tmp_path_factory.mktemp("unlearned") / "unlearned"
    shutil.copytree(target, folder)
    model: Any = AutoModelForCausalLM.from_pretrained(target, dtype="bfloat16")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            small = weight.abs() < 0.02
            size = 0.02 if "proj" in name else 0.001
            weight.add_((torch.randn_like(weight) * size * small).to(weight.dtype))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder, target


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def rounded_to(weight: torch.Tensor) -> torch.Tensor:
    """By the formula of docs/protocol.md."""
    step = weight.float().abs().amax(1, keepdim=True) / 7
    return (weight.float() / step).round() * step


def command(model: Path, target: Path, out: Path, *more: str) -> list[str]:
    asked = "--model", str(model), "--target", str(target), "--out", str(out)
    how = () if "--strategy" in more else ("--strategy", "grid")
    return ["repair", *asked, *(() if "--quant" in more else ("--quant", "rtn-int4")), *how, *more]


@pytest.mark.parametrize("dtype", ["auto", "fp32"])
def test_a_mended_checkpoint(pair: tuple[Path, Path], tmp_path: Path, dtype: str) -> None:
    model, target = pair
    out, report = tmp_path / "new" / "mended", tmp_path / "report.json"
    more = "--weights-dtype", dtype, "--report", str(report), "--quant", "rtn-int4,bnb-nf4"
    assert run(command(model, target, out, *more)) == 0
    ours, theirs, found = tensors(model), tensors(target), tensors(out)
    assert found.keys() == ours.keys()
    kept, size, changed = 0.0, 0.0, 0
    for name, weight in found.items():
        assert weight.dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)
        if "proj" not in name:
            assert torch.equal(weight, ours[name].to(weight.dtype))
            continue
        rounded = conditions.encode(INT4, weight.float())
        levels, d = rounded_to(weight), (ours[name].double() - theirs[name].double()).numpy()
        # Each weight is its level, as far as the file's dtype can say; rows that were not unlearned
        # are the target's.
        moved = torch.from_numpy((d != 0).any(1))
        rtol = 2**-8 if dtype == "auto" else 1e-6
        assert torch.allclose(weight.float()[moved], levels[moved], rtol=rtol)
        assert torch.equal(weight.float()[~moved], theirs[name].float()[~moved])
        changed += int((rounded.codes != conditions.encode(INT4, ours[name].float()).codes).sum())
        kept += float(((levels - rounded_to(theirs[name])).double().numpy() * d).sum())
        size += float((d * d).sum())
    assert kept / size == pytest.approx(1, abs=0.03)
    for path in model.iterdir():  # byte for byte
        told = path.name == "config.json" and dtype != "auto"
        if path.suffix != ".safetensors" and "index" not in path.name and not told:
            assert (out / path.name).read_bytes() == path.read_bytes()
    assert json.loads((out / "config.json").read_text())["dtype"] in ("bfloat16", "float32")
    said = json.loads(report.read_text())
    assert said["moved"] == changed
    assert said["survival"]["rtn-int4"]["before"] < 0.9
    assert said["survival"]["rtn-int4"]["after"] == pytest.approx(kept / size, abs=0.01)
    assert set(said["survival"]) == {"none", "rtn-int4", "bnb-nf4"}
    assert sorted(p.name for p in out.parent.iterdir()) == ["mended"]
    opened = open_checkpoint(str(out), LoadOptions())
    assert opened.checkpoint.origin["repaired"] == "grid 1 for rtn-int4"
    opened.model()  # its own check of what is there and finite
    # Mended again it is the same, to the bit.
    assert run(command(out, target, tmp_path / "again")) == 0
    again = tensors(tmp_path / "again")
    assert all(torch.equal(weight, again[name]) for name, weight in found.items())


def test_the_target_itself_comes_back_to_the_bit(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, target = pair
    for strategy in ("grid", "concentrated"):
        out = tmp_path / strategy
        assert run(command(target, target, out, "--strategy", strategy)) == 0
        assert (out / "config.json").read_bytes() == (target / "config.json").read_bytes()
        found, before = tensors(out), tensors(target)
        assert all(torch.equal(weight, found[name]) for name, weight in before.items())


def test_several_precisions(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each keeps the update where one grid alone would not do."""
    model, target = pair
    names, report = "rtn-int4,bnb-nf4,gguf-q4_0", tmp_path / "r.json"
    for strategy in ("grid", "concentrated"):
        more = "--for", names, "--quant", names, "--report", str(report), "--strategy", strategy
        assert run(command(model, target, tmp_path / strategy, *more)) == 0
        kept = json.loads(report.read_text())["survival"]
        assert all(kept[name]["after"] > 0.95 for name in names.split(","))
        assert "none: expect " in capsys.readouterr().out
        for name, back in json.loads(report.read_text())["expected_back"].items():
            found = expected(min(kept[name]["after"], 1.0))
            assert back == (found and [found.low, found.high])


def test_a_merged_adapter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    _, target = pair
    adapted: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(target), LoraConfig(r=2, target_modules=["up_proj"])
    )
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.save_pretrained(tmp_path / "adapter")
    out = tmp_path / "out"
    assert run(command(tmp_path / "adapter", target, out, "--base", str(target))) == 0
    found, before = tensors(out), tensors(target)
    moved = {name for name, weight in before.items() if not torch.equal(weight, found[name])}
    assert moved == {f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1)}


@pytest.mark.parametrize("strategy", ["grid", "concentrated"])
def test_k_quants(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    strategy: str,
) -> None:
    """Of a mixture each matrix in its own type; the searched grid follows, and the update stays."""
    shape = {"hidden_size": 256, "intermediate_size": 256}
    target = shutil.copytree(make_checkpoint("wide256", **shape), tmp_path / "target")
    draw = torch.Generator().manual_seed(0)

    def to_sparse(tensors: dict[str, torch.Tensor]) -> None:
        for name, weight in tensors.items():
            if "proj" in name:
                weight[torch.rand(weight.shape, generator=draw) < 0.7] = 0

    def unlearn(tensors: dict[str, torch.Tensor]) -> None:
        for name, weight in tensors.items():
            if "proj" in name:
                weight.add_(torch.randn(weight.shape, generator=draw) * 3e-4 * (weight == 0))

    edit_weights(target, to_sparse)
    model = shutil.copytree(target, tmp_path / "unlearned")
    edit_weights(model, unlearn)
    name, report = "gguf-q4_k_m", tmp_path / "r.json"
    more = "--for", name, "--quant", name, "--report", str(report), "--strategy", strategy
    assert run(command(model, target, tmp_path / "out", *more)) == 0
    said = json.loads(report.read_text())
    assert said["grid_follows"] == [name]
    assert f"{name}: its grid follows the weights" in capsys.readouterr().out
    kept = said["survival"][name]
    assert kept["before"] < 0.3 < 0.75 < kept["after"] < 1.5
    assert said["moved"] > 0


def test_a_training_s_record_goes_on(
    pair: tuple[Path, Path],
    quick: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its recipe is another one, so that compare makes no one row of both. A target that says it
    was made from the model is refused.
    """
    assert run(quick) == 0
    trained, tiny = tmp_path / "out", Path(quick[2])
    assert run(command(trained, tiny, tmp_path / "mended", "--strength", "0.5")) == 0
    before, after = read_origin(trained / FILE), read_origin(tmp_path / "mended" / FILE)
    assert after.pop("repaired") == "grid 0.5 for rtn-int4"
    assert after.pop("recipe") != before.pop("recipe")
    assert after == before
    record = Training.model_validate_json((tmp_path / "mended" / FILE).read_text(), strict=False)
    assert record.repairs[0].model.weights_sha256 == files_sha256([trained / "model.safetensors"])
    assert "other weights" not in caplog.text
    for by, of in ((tiny, trained), (trained, tmp_path / "mended")):
        assert run(command(by, of, tmp_path / "swapped")) == 2
        assert "swap them" in capsys.readouterr().err
        assert not (tmp_path / "swapped").exists()
    other = shutil.copytree(tiny, tmp_path / "other")
    edit_weights(other, lambda w: w["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    assert run(command(trained, other, tmp_path / "from-another")) == 0
    assert "was unlearned from other weights than those of" in caplog.text


def test_one_shard_with_an_index_stays_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, target = pair
    model = shutil.copytree(target, tmp_path / "model")
    edit_weights(model, lambda w: w["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    name = "model-00001-of-00001.safetensors"
    (model / "model.safetensors").rename(model / name)
    homes = dict.fromkeys(load_file(model / name), name)
    index = {"metadata": {}, "weight_map": homes}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert run(command(model, target, tmp_path / "out")) == 0
    assert open_checkpoint(str(tmp_path / "out"), LoadOptions()).model() is not None


def test_what_does_not_fit_is_told_of_only_where_it_was_asked_for(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = make_checkpoint("narrow", hidden_size=48, intermediate_size=80)
    model = shutil.copytree(target, tmp_path / "model")
    edit_weights(model, lambda w: w["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    words = ["repair", "--model", str(model), "--target", str(target), "--out"]
    report = tmp_path / "r.json"
    assert run([*words, str(tmp_path / "out"), "--report", str(report)]) == 0
    assert "nothing is told of gguf-q4_0: the 80 columns" in capsys.readouterr().out
    told = json.loads(report.read_text())["survival"]
    assert "rtn-int4" in told
    assert not {"gguf-q4_0"} & set(told)
    assert run([*words, str(tmp_path / "no"), "--quant", "gguf-q4_0"]) == 2
    assert "make no blocks of 32" in capsys.readouterr().err


def test_an_option_given_twice_is_both(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "--for", "rtn-int4", "--for", "bnb-nf4", "--quant", "rtn-int8", "--quant", "gguf-q6_k"
    assert run(command(*pair, tmp_path / "out", *more)) == 0
    said = capsys.readouterr().out
    assert "mended for rtn-int4, bnb-nf4" in said
    assert "rtn-int8: expect" in said


@pytest.mark.parametrize("name", ["**", "x" * 300, "link", "."])
def test_names_of_out(
    pair: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """What is no folder that can be made is one clear line; a strange name is a name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if name == "link":
        Path(name).symlink_to(tmp_path / "elsewhere")
    status, said = run(command(*pair, Path(name))), capsys.readouterr().err
    assert status == (0 if name == "**" else 2), said
    assert "internal error" not in said
    assert status == 0 or len(said.strip().splitlines()) == 1
    assert [path.name for path in Path().iterdir() if path.name != "link"] == ["**"] * (status == 0)


def test_what_a_killed_repair_left_goes_and_nothing_else(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in (".out.repairing-99999999", ".out.repairing-notes", ".outer.repairing-99999999"):
        (tmp_path / name).mkdir()
    assert run(command(*pair, tmp_path / "out")) == 0
    left = [".out.repairing-notes", ".outer.repairing-99999999", "out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_an_interruption_leaves_nothing(
    pair: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearnbench.repair.job.write_shard", stop)
    assert run(command(*pair, tmp_path / "new" / "out")) != 0
    assert capsys.readouterr().err.strip() == "interrupted; nothing was written"
    assert not any(tmp_path.iterdir())


def test_bad_input(
    pair: tuple[Path, Path],
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line, exit 2, and nothing half-written."""
    model, target = pair
    out = tmp_path / "place" / "out"

    def refused(words: str, *more: str, of: Path = target, by: Path = model) -> None:
        assert run(command(by, of, out, *more)) == 2, words
        said = capsys.readouterr().err
        assert words in said
        assert len(said.strip().splitlines()) == 1
        assert not out.parent.exists() or not any(out.parent.iterdir())

    wide, exact = make_checkpoint("wide", intermediate_size=96), make_checkpoint("exact")
    capsys.readouterr()
    refused("one architecture only", of=wide)
    edited = shutil.copytree(target, tmp_path / "words")
    known = json.loads((edited / "tokenizer.json").read_text())
    known["model"]["merges"] = known["model"]["merges"][:5]
    (edited / "tokenizer.json").write_text(json.dumps(known))
    refused("different tokenizers", of=edited)
    packed = shutil.copytree(target, tmp_path / "packed")
    edit_json(packed / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    refused("quantized already", by=packed)
    refused("quantized already", of=packed)
    for file in ("by", "of"):
        refused(
            "quantized already (Q8_0)",
            **{file: write_gguf(target, tmp_path / f"{file}.gguf", "Q8_0")},
        )
    broken = shutil.copytree(target, tmp_path / "broken")
    edit_weights(broken, lambda w: w["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")))
    refused("NaN or infinite", of=broken)
    for key in ("model.embed_tokens.weight", "model.norm.weight"):
        torn = shutil.copytree(target, tmp_path / f"torn {key}")
        edit_weights(torn, lambda w: w[key].fill_(float("nan")))  # noqa: B023
        refused(f"{key} has NaN or infinite values", by=torn)
    edit_weights(torn, lambda w: w.pop("model.norm.weight"))
    refused("has no tensor model.norm.weight", by=torn)
    refused("has no tensor model.norm.weight", of=torn)
    double = shutil.copytree(target, tmp_path / "double")
    edit_weights(double, lambda w: w.update({n: t.double() for n, t in w.items()}))
    refused("is in float64", by=double)
    huge = shutil.copytree(target, tmp_path / "huge")
    edit_weights(huge, lambda w: w["model.layers.1.mlp.up_proj.weight"][0, 0].fill_(1e8))
    refused("that gguf-q4_0 cannot hold", "--for", "gguf-q4_0", by=huge)
    refused("--base is for adapter folders", "--base", str(target))
    refused("--revision is for hub ids", "--revision", "main")
    refused("--for names no precision", "--for", " ,")
    for place in (tmp_path, tmp_path / "nowhere" / "r.json"):
        refused("give another --report", "--report", str(place))
    for source in (model, target):
        assert run(command(model, target, source / "in" / "it")) == 2
        assert "it is inside of" in capsys.readouterr().err
        assert not (source / "in").exists()
    refused("--for awq-int4-g64: its levels do not follow", "--for", "awq-int4-g64")
    refused("unknown condition", "--for", "int44")
    other = shutil.copytree(exact, tmp_path / "moved")
    edit_weights(other, lambda w: w["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    fine = "--for", "rtn-int8", "--weights-dtype", "bf16"
    refused("would not be those", *fine, by=other, of=exact)
    refused("--strength", "--strength", "0")
    refused("no such path", of=tmp_path / "nowhere.x" / "y.gguf")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    refused("GiB are free")
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unlearnbench.repair.job.write_shard", full)
    refused("No space left on device")
    out.mkdir(parents=True)
    (out / "mine").touch()
    assert run(command(model, target, out)) == 2
    assert "is in the way" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine"]
