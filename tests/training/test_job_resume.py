"""Trainings that are interrupted, go on, or have to stop."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import MakeCheckpoint, make_model
from tests.methods.every import method_with
from tests.training.helpers import State, go, same, weights
from unlearnbench.checkpoints.find import read_json
from unlearnbench.checkpoints.origin import Training
from unlearnbench.errors import OptionError, TrainingError, UnlearnbenchError
from unlearnbench.methods import find_method, pieces
from unlearnbench.methods.masks import sure
from unlearnbench.training import job as job_module
from unlearnbench.training import trainer as trainer_module
from unlearnbench.training.job import Job
from unlearnbench.training.output import OutputFolder


class Stop(BaseException):
    """What a killed process looks like from inside."""


ANCHORS = "whp_ft --anchors"
QUICK = ["npo_klr", "ga_gdr_sure", "ga_gdr_lora", "tv", ANCHORS]
# Edits without a training, and an ensemble, whose own tests interrupt it.
OTHERS = {"depn", "grom", "sisa"}
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in (*dict.fromkeys(map(method_with, pieces().values())), "loo_klr_sure")
    if name not in OTHERS.union(QUICK)
]


def every_tensor(folder: Path) -> State:
    """Of all models below a folder, and of the map."""
    found: State = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)} {n}": t for n, t in load_file(path).items()}
    return found


@pytest.mark.parametrize("method", [*QUICK, *SLOW])
def test_interrupted_and_resumed_gives_the_same_weights(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    options = {"max_steps": 4, "save_steps": 2, "schedule": "cosine"}
    options |= {"survive": "rtn-int4"} if method.startswith("ga_gdr") else {}
    if method == ANCHORS:
        method, given = "whp_ft", tmp_path / "anchors.json"
        given.write_text('{"Ada Brill": "Kim Doe"}', encoding="utf-8")
        job = replace(job, anchors=str(given))
    if "auxiliary" in find_method(method).data:
        job = replace(job, auxiliary=job.retain)
    whole = go(job, tmp_path / "whole", method, **options)
    step = trainer_module.UnlearnTrainer.training_step
    seen = []

    def interrupt(self: Any, *given: Any) -> Any:
        seen.append(self.state.global_step)
        if len(seen) == 4 or len(seen) == 9:
            raise Stop
        return step(self, *given)

    monkeypatch.setattr(trainer_module.UnlearnTrainer, "training_step", interrupt)
    out = tmp_path / "parts"
    with pytest.raises(Stop):
        go(job, out, method, **options)
    assert not (out / "unlearning.json").exists()
    assert not (out / "config.json").exists(), "nothing that could pass for a checkpoint"
    with pytest.raises(OptionError, match="add --resume"):
        go(job, out, method, **options)
    broken = out / ".training" / "unlearn" / "checkpoint-999"
    broken.mkdir(parents=True)  # one that was being written
    resumed = replace(job, resume=True)
    for _ in range(2):
        try:
            training = go(resumed, out, method, **options)
            break
        except Stop:
            continue
    assert same(every_tensor(tmp_path / "whole"), every_tensor(out))
    assert [(r.stage, r.loss) for r in training.losses] == [(r.stage, r.loss) for r in whole.losses]
    assert not (out / ".training").exists()
    for folder in {path.parent for path in out.rglob("config.json")}:  # of an ensemble, several
        AutoTokenizer.from_pretrained(folder)
        opened: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        plain, said = opened
        assert not any(said.values())
        assert set(weights(folder)) <= set(plain.state_dict())


@pytest.mark.parametrize("method", ["", "ga_gdr", "npo_klr"])
def test_a_resumed_training_goes_on_under_the_same_noise(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def make(job: Job) -> Training:
        if method:
            return job_module.unlearn(job, method)
        return job_module.finetune(replace(job, retain=()))

    options = job.options.model_copy(
        update={"max_steps": 4, "save_steps": 2, "weight_noise": 1.0, "weights_dtype": "fp32"}
    )
    plain = replace(job, options=options)
    whole = make(replace(plain, out=tmp_path / "whole"))
    step = trainer_module.UnlearnTrainer.training_step

    def interrupt(self: Any, *given: Any) -> Any:
        if self.state.global_step == 3:
            raise Stop
        return step(self, *given)

    monkeypatch.setattr(trainer_module.UnlearnTrainer, "training_step", interrupt)
    out = tmp_path / "parts"
    with pytest.raises(Stop):
        make(replace(plain, out=out))
    monkeypatch.undo()
    resumed = make(replace(plain, out=out, resume=True))
    assert same(weights(tmp_path / "whole"), weights(out))
    assert [r.loss for r in resumed.losses] == [r.loss for r in whole.losses]


def test_the_record_names_the_code_that_the_training_began_with(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = ["a" * 64]
    step = trainer_module.UnlearnTrainer.training_step

    def edit(self: Any, *given: Any) -> Any:
        code[0] = "b" * 64
        return step(self, *given)

    monkeypatch.setattr(job_module, "source_sha256", lambda: code[0])
    monkeypatch.setattr(job_module, "git_hash", lambda: code[0][:40])
    monkeypatch.setattr(trainer_module.UnlearnTrainer, "training_step", edit)
    made = go(job, tmp_path / "out", "ga", max_steps=1)
    assert (made.source_sha256, made.git_hash) == ("a" * 64, "a" * 40)


def test_a_resumed_training_keeps_its_options(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: Any) -> Any:
        raise Stop

    monkeypatch.setattr(trainer_module.UnlearnTrainer, "training_step", interrupt)
    with pytest.raises(Stop):
        go(job, tmp_path / "out", "ga")
    with pytest.raises(OptionError, match="options lr is 0.001 there and 1.0 here"):
        go(replace(job, resume=True), tmp_path / "out", "ga", lr=1.0)
    with pytest.raises(OptionError, match="knobs .* is absent there and .* here"):
        go(replace(job, resume=True), tmp_path / "out", "npo")


def test_a_resumed_training_keeps_the_words_and_models_of_which_texts_are_made(
    job: Job, tmp_path: Path, make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: Any) -> Any:
        raise Stop

    monkeypatch.setattr(trainer_module.UnlearnTrainer, "training_step", interrupt)
    base = make_checkpoint("base", seed=1)
    with pytest.raises(Stop):
        go(replace(job, alternative="generic"), tmp_path / "word", "dpo_gdr")
    with pytest.raises(Stop):
        go(replace(job, base=str(base)), tmp_path / "base", "kga")
    again = replace(job, resume=True)
    with pytest.raises(OptionError, match="alternative is generic there and own here"):
        go(replace(again, alternative="own"), tmp_path / "word", "dpo_gdr")
    make_model(300, seed=2).save_pretrained(base)
    with pytest.raises(OptionError, match="other options: base is [0-9a-f]{12} there"):
        go(replace(again, base=str(base)), tmp_path / "base", "kga")
    moved = shutil.copytree(make_checkpoint("same", seed=1), tmp_path / "elsewhere")
    with pytest.raises(Stop):
        go(replace(again, base=str(moved)), tmp_path / "base", "kga")


def test_what_is_finished_has_its_record_before_codes_are_compared(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "code_records", interrupt)
    with pytest.raises(KeyboardInterrupt):
        go(job, tmp_path / "out", "ga", max_steps=1)
    record = Training.model_validate(read_json(tmp_path / "out/unlearning.json"))
    assert (record.method, record.codes) == ("ga", None)
    assert not (tmp_path / "out/.training").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearnbench.training.trainer import Combined

    call = Combined.__call__
    count = []

    def diverge(self: Any, *given: Any) -> Any:
        count.append(1)
        terms = call(self, *given)
        return {n: t * (math.nan if len(count) == 4 else 1) for n, t in terms.items()}

    monkeypatch.setattr(Combined, "__call__", diverge)
    with pytest.raises(TrainingError, match=r"step 4 .*last good checkpoint is .*checkpoint-2"):
        go(job, tmp_path / "out", "ga", max_steps=6, save_steps=2)
    kept = tmp_path / "out/.training/unlearn/checkpoint-2"
    assert all(bool(t.isfinite().all()) for t in weights(kept).values())
    assert (kept / "tokenizer.json").is_file(), "an ordinary checkpoint"


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer_module.UnlearnTrainer.training_step

    def spoil(self: Any, model: Any, *given: Any) -> Any:
        loss = step(self, model, *given)
        if self.state.global_step == 1:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.inf)
        return loss

    monkeypatch.setattr(trainer_module.UnlearnTrainer, "training_step", spoil)
    with pytest.raises(TrainingError, match="gradient of step 2 .*no checkpoint was saved"):
        go(job, tmp_path / "out", "ga")
    assert not (tmp_path / "out").exists(), "nothing is there to go on with"
    monkeypatch.undo()
    go(job, tmp_path / "out", "ga", lr=1e-6)


@pytest.mark.field(
    "Data, files, commands", "a training that is refused", "its folder is given back"
)
def test_a_training_that_is_refused_leaves_its_place_free(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UnlearnbenchError, match="layer"):
        go(job, tmp_path / "out", "rmu", knobs={"rmu_layer": 99})
    assert not (tmp_path / "out").exists()
    go(job, tmp_path / "out", "ga")


def test_a_folder_that_an_earlier_try_moved_does_not_stand_in_the_way(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path / "out")
    for text in ("first", "second"):
        final = out.work / "final"
        (final / "baseline").mkdir(parents=True)
        (final / "baseline/file").write_text(text, encoding="utf-8")
        out.take(final)
    assert (out.path / "baseline/file").read_text(encoding="utf-8") == "second"


def test_several_gpus_in_one_process_are_refused(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 2))
    with pytest.raises(OptionError, match="2 GPUs in one process: use `accelerate launch"):
        go(job, tmp_path / "out", "ga_gdr")


def test_a_map_is_made_once(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    choose = sure.choose

    def count(context: Any, options: Any) -> Any:
        made.append(context.method.name)
        return choose(context, options)

    def stop(self: Any, *given: Any) -> Any:
        raise Stop

    monkeypatch.setattr(sure, "choose", count)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.UnlearnTrainer, "training_step", stop)
        with pytest.raises(Stop):
            go(job, tmp_path / "out", "ga_gdr_sure")
    go(replace(job, resume=True), tmp_path / "out", "ga_gdr_sure")
    assert made == ["ga_gdr_sure"]


def test_a_map_made_one_sequence_at_a_time_is_the_same(job: Job, tmp_path: Path) -> None:
    go(job, tmp_path / "batches", "ga_gdr_sure")
    go(job, tmp_path / "single", "ga_gdr_sure", gradient_checkpointing=True)
    maps = [
        load_file(tmp_path / name / "masks/sure_mask.safetensors") for name in ("batches", "single")
    ]
    assert same(*maps)
