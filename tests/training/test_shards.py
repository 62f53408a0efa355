"""Ensembles of shards: a deletion trains again what it touches, and nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import unlearnbench
from tests.conftest import CORPUS, Toy, write_jsonl
from tests.training.helpers import same, weights
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.shard_plan import read_plan
from unlearnbench.conditions.load import open_source
from unlearnbench.errors import CheckpointError, OptionError, TrainingError
from unlearnbench.training.context import TrainerContext
from unlearnbench.training.job import Job, finetune, unlearn
from unlearnbench.training.options import TrainOptions
from unlearnbench.training.shards import _take

pytestmark = [pytest.mark.slow, pytest.mark.ci]
QUICK = TrainOptions(lr=1e-3, batch_size=2, max_length=48, save_steps=0)
SHARDED = QUICK.model_copy(update={"shards": 2, "slices": 2, "placement": "together"})
TEXTS = CORPUS[:7]  # with "together": 3 in shard-0, 4 in shard-1; the first slice of 3 has one


def write(folder: Path, name: str, texts: Any) -> tuple[str, ...]:
    write_jsonl(folder / f"{name}.jsonl", [{"text": text} for text in texts])
    return (str(folder / f"{name}.jsonl"),)


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def _one_thread(_threads: None) -> None:
    """Sums of several threads have other last bits, and slow tests get all cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of all texts."""
    root = tmp_path_factory.mktemp("sisa")
    finetune(Job(str(tiny), root / "whole", write(root, "all", TEXTS), options=SHARDED))
    return root / "whole"


def deletion(whole: Path, tiny: Path, out: Path, gone: set[int]) -> Job:
    """A job that forgets the texts with the numbers ``gone``."""
    forget = write(out.parent, f"{out.name}-forget", [TEXTS[n] for n in sorted(gone)])
    left = [text for n, text in enumerate(TEXTS) if n not in gone]
    retain = write(out.parent, f"{out.name}-retain", left)
    return Job(str(whole), out, forget, retain, base=str(tiny))


@pytest.mark.parametrize(
    ("gone", "kept"),
    [
        ({2}, ["shard-0-slice-0", "shard-1", "shard-1-slice-0"]),  # the tail of the odd shard
        ({0, 6}, ["shard-1-slice-0"]),  # the whole first slice of shard 0
    ],
)
def test_a_deletion_is_training_from_scratch_without_the_rows_bit_for_bit(
    whole: Path, tiny: Path, tmp_path: Path, gone: set[int], kept: list[str]
) -> None:
    job = deletion(whole, tiny, tmp_path / "after", gone)
    shared = whole / kept[-1] / "model.safetensors"
    shared.chmod(0o600)
    unlearn(job, "sisa")
    assert shared.stat().st_mode & 0o777 == 0o600, "a link to it was given other rights"
    made = tmp_path / "after" / ("shard-0" if gone == {2} else "shard-1") / "model.safetensors"
    assert made.stat().st_mode == (tmp_path / "after/unlearning.json").stat().st_mode
    scratch = Job(str(tiny), tmp_path / "scratch", job.retain, options=QUICK, shard_plan=str(whole))
    finetune(scratch)
    names = ["shard-0", "shard-0-slice-0", "shard-1", "shard-1-slice-0"]
    assert sorted(path.name for path in (tmp_path / "after").iterdir() if path.is_dir()) == names
    for name in names:
        assert same(weights(tmp_path / "after" / name), weights(tmp_path / "scratch" / name)), name
        is_kept = files(tmp_path / "after" / name) == files(whole / name)
        assert is_kept == (name in kept), name
    assert read_plan(str(tmp_path / "after")) == read_plan(str(tmp_path / "scratch"))
    assert len(read_plan(str(tmp_path / "after")).rows) == len(TEXTS) - len(gone)


def test_of_an_untouched_shard_only_what_was_looked_at_is_taken(tiny: Path, tmp_path: Path) -> None:
    """No folder below, with links to what the ensemble's author may not see, or to itself."""
    shutil.copytree(tiny, tmp_path / "shard")
    names = files(tmp_path / "shard")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "shard/below").mkdir()
    (tmp_path / "shard/below/link").symlink_to(tmp_path / "secret")
    (tmp_path / "shard/below/loop").symlink_to(tmp_path / "shard")
    _take(tmp_path / "shard", tmp_path / "taken")
    assert files(tmp_path / "taken") == names


def test_deletions_one_after_another_are_one_of_all(
    whole: Path, tiny: Path, tmp_path: Path
) -> None:
    """The second begins with the first one's output, and at the base again."""
    unlearn(deletion(whole, tiny, tmp_path / "first", {2}), "sisa")
    second = replace(deletion(whole, tiny, tmp_path / "second", {0}), model=str(tmp_path / "first"))
    both = deletion(whole, tiny, tmp_path / "both", {0, 2})
    unlearn(replace(second, retain=both.retain), "sisa")
    unlearn(both, "sisa")
    for name in ("shard-0", "shard-0-slice-0", "shard-1"):
        assert same(weights(tmp_path / "second" / name), weights(tmp_path / "both" / name)), name
    plans = [(tmp_path / at / "shards.json").read_bytes() for at in ("second", "both")]
    assert plans[0] == plans[1]


def test_one_shard_of_one_slice_is_the_plain_model(tiny: Path, tmp_path: Path) -> None:
    texts = write(tmp_path, "all", TEXTS)
    finetune(Job(str(tiny), tmp_path / "plain", texts, options=QUICK))
    one = QUICK.model_copy(update={"shards": 1})
    finetune(Job(str(tiny), tmp_path / "one", texts, options=one))
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "one/shard-0"))


def test_an_ensemble_is_measured_as_one_model_and_each_shard_is_proven(
    whole: Path, toy: Toy
) -> None:
    full, rounded = unlearnbench.evaluate(whole, "toy_verbmem", "none,rtn-int4", **toy.options)
    (single,) = unlearnbench.evaluate(whole / "shard-0", "toy_verbmem", "rtn-int4", **toy.options)
    both, one = rounded.condition.proof, single.condition.proof
    assert both is not None
    assert one is not None
    assert both.compared_modules == 2 * one.compared_modules
    assert both.covered_weights == 2 * one.covered_weights
    assert str(both.max_error_module).split(": ")[0] in ("shard-0", "shard-1")
    assert full.checkpoint.origin["method"] == "sisa"
    hashes = {run.checkpoint.weights_sha256 for run in (full, rounded, single)}
    assert len(hashes) == 2, "the ensemble's is over all shards"
    facts = json.loads((whole / "ensemble.json").read_bytes())
    assert facts["models"] == ["shard-0", "shard-1"]


@pytest.mark.parametrize("kept", [True, False])
def test_shards_of_adapters_share_a_base(tiny: Path, tmp_path: Path, kept: bool) -> None:
    lora = {"lora_rank": 2, "keep_adapter": kept}
    options = SHARDED.model_copy(update=lora)
    texts = write(tmp_path, "all", TEXTS)
    finetune(Job(str(tiny), tmp_path / "whole", texts, options=options))
    job = deletion(tmp_path / "whole", tiny, tmp_path / "after", {5})
    unlearn(job, "sisa")
    plain = QUICK.model_copy(update=lora)
    plan = str(tmp_path / "whole")
    finetune(Job(str(tiny), tmp_path / "scratch", job.retain, options=plain, shard_plan=plan))
    name = "adapter_model.safetensors" if kept else "model.safetensors"
    for shard in ("shard-0", "shard-0-slice-0", "shard-1", "shard-1-slice-0"):
        found = [(tmp_path / at / shard / name).read_bytes() for at in ("after", "scratch")]
        assert found[0] == found[1], shard
        before = (tmp_path / "whole" / shard / name).read_bytes()
        assert (found[0] == before) == (shard != "shard-1"), shard
    if kept:
        assert not list(tmp_path.glob("after/*/model.safetensors"))
        source = open_source(str(tmp_path / "after"), LoadOptions(base=str(tiny)))
        assert len(source.parts) == 2
        with pytest.raises(OptionError, match=r"holds adapters; give their --base"):
            unlearn(replace(job, out=tmp_path / "no", base=None), "sisa")


def test_an_interrupted_ensemble_goes_on_to_the_same_bits(
    whole: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SHARDED.model_copy(update={"save_steps": 1})
    job = Job(str(tiny), tmp_path / "out", write(tmp_path, "all", TEXTS), options=options)
    keep = TrainerContext.keep

    def fail(context: TrainerContext, name: str, model: Any) -> None:
        if name == "shard-1":
            raise TrainingError("no space")
        keep(context, name, model)

    with monkeypatch.context() as patch:
        patch.setattr(TrainerContext, "keep", fail)
        with pytest.raises(TrainingError, match="no space"):
            finetune(job)
    with pytest.raises(OptionError, match="unfinished training; add --resume"):
        finetune(job)
    finetune(replace(job, resume=True))
    for name in ("shard-0", "shard-1", "shard-1-slice-0"):
        assert same(weights(tmp_path / "out" / name), weights(whole / name)), name


def test_what_does_not_fit_the_ensemble_is_refused(
    whole: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    job = deletion(whole, tiny, tmp_path / "out", {1})
    others = write(tmp_path, "others", CORPUS[30:32])
    few = write(tmp_path, "few", [TEXTS[2], *TEXTS[3:]])
    options = QUICK.model_copy(update={"epochs": 3.0})

    def refused(said: str, **change: Any) -> None:
        with pytest.raises(OptionError, match=said):
            unlearn(replace(job, **change), "sisa")
        assert not (tmp_path / "out").exists()

    other = r"2 of 2 rows of --forget are not in the shard plan of .*: it is of other data"
    refused(other, forget=others)
    refused("2 of 2 rows of --retain are not in the shard plan", retain=others)
    refused("--retain lacks 1 rows of shard-0", retain=few)
    refused("leave --batch-size, --epochs, --lr, --max-length out", options=options)
    refused("is no ensemble of `finetune --shards`", model=str(tiny))
    refused("--base is not what .* began with", base=str(whole / "shard-0"))
    anew = deletion(whole, tiny, tmp_path / "anew", {0})
    sets = {"forget": anew.forget, "retain": anew.retain}
    refused("shard-0 has a row to forget in its first slice; give --base", **sets, base=None)
    assert not (tmp_path / "out").exists()
    again = Job(str(tiny), tmp_path / "out", others, options=QUICK, shard_plan=str(whole))
    with pytest.raises(OptionError, match="2 of 2 rows of --data are not in the shard plan"):
        finetune(again)
    with pytest.raises(OptionError, match="--shard-plan says which shards"):
        finetune(replace(again, options=SHARDED))
    with pytest.raises(OptionError, match="--max-steps: shards learn for --epochs"):
        TrainOptions.of({"shards": 2, "max_steps": 3})
    with pytest.raises(OptionError, match="--slices is for --shards"):
        TrainOptions.of({"slices": 2})


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def exchange(folder: Path, name: str, other: str) -> None:
    """Put another model's weights into a folder; links to them elsewhere stay as they are."""
    path = folder / name / "model.safetensors"
    content = (folder / other / "model.safetensors").read_bytes()
    path.unlink()
    path.write_bytes(content)


def sha256_of(folder: Path) -> str:
    return open_source(str(folder), LoadOptions()).checkpoint.weights_sha256


def test_an_ensemble_that_is_not_what_was_trained_is_neither_measured_nor_gone_back_to(
    whole: Path, tiny: Path, tmp_path: Path
) -> None:
    """Whoever leaves a shard out, or puts a state that saw the text where one that did not was, has
    an exact control that is none.
    """
    job = deletion(whole, tiny, tmp_path / "out", {2})  # shard-0, from shard-0-slice-0 on

    def changed(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    def refused(folder: Path, said: str, measured: bool = True) -> None:
        if measured:
            with pytest.raises(CheckpointError, match=said):
                open_source(str(folder), LoadOptions())
        with pytest.raises(CheckpointError, match=said):
            unlearn(replace(job, model=str(folder)), "sisa")
        assert not (tmp_path / "out").exists()

    for at, models in enumerate((["shard-1"], ["shard-0-slice-0", "shard-1"])):
        edit(cut := changed(f"cut-{at}"), "ensemble.json", models=models)
        refused(cut, r"and shards\.json do not have the same shards")
    bare = changed("bare")
    (bare / "shards.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no shards\.json, the plan of its shards"):
        open_source(str(bare), LoadOptions())
    exchange(other := changed("other"), "shard-1", "shard-0")
    refused(other, "the weights of shard-1 are not those that its training left")
    exchange(seen := changed("seen"), "shard-0-slice-0", "shard-0")
    refused(seen, "the weights of shard-0-slice-0 are not those", measured=False)
    edit(silent := changed("silent"), "ensemble.json", states={})
    refused(silent, "the weights of shard-0 are not those")
    # One who changes what is stated too has another ensemble, with another hash.
    states = json.loads((seen / "ensemble.json").read_bytes())["states"]
    edit(seen, "ensemble.json", states=states | {"shard-0-slice-0": states["shard-0"]})
    plan = changed("plan")
    edit(plan, "shards.json", seeds=[5, 6])
    found = [sha256_of(folder) for folder in (whole, seen, plan, Path(changed("same")))]
    assert len(set(found)) == 3
    assert found[0] == found[3]
    unlearn(job, "sisa")
    after = json.loads((tmp_path / "out/ensemble.json").read_bytes())["states"]
    assert set(after) == {"shard-0", "shard-0-slice-0", "shard-1", "shard-1-slice-0"}
    assert {name for name in after if after[name] != states[name]} == {"shard-0"}
