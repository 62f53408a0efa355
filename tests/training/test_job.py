"""Whole trainings of a tiny model, from files to a checkpoint folder."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import MakeCheckpoint, make_tokenizer, write_jsonl
from tests.training.helpers import go, same, weights
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.find import read_json
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE, Training, read_origin
from unlearnbench.errors import CheckpointError, DataError, OptionError
from unlearnbench.methods import find_method, method_names, pieces
from unlearnbench.methods.base import inner_linears
from unlearnbench.training import context as context_module
from unlearnbench.training.job import Job, finetune, unlearn
from unlearnbench.training.options import CorpusOptions, TrainOptions
from unlearnbench.training.steps import Noise, Shrink, rates


def kinds(name: str) -> set[str]:
    return {piece.kind for piece in find_method(name).pieces}


# One method of each kind, with every loss and term among them; the others are slow.
QUICKLY = ("ga", "npo_klr", "simnpo_gdr", "ga_gdr_sure", "rmu", "tv", "whp_ft")
ENDS = (*(f"ga_gdr_{p.about.name}" for p in pieces().values() if p.kind in ("steps", "masks")),)
TRAININGS = {"depn": 0, "grom": 0, **dict.fromkeys(("whp_ft", "flearn", "pcgu"), 2)}
TRAININGS |= {"ga_gdr_contrast": 2, "quark": 4}
EVERY = [
    pytest.param(name, marks=[] if name in QUICKLY else pytest.mark.slow)
    for name in method_names()
    if name in ENDS or (name not in ("whp", "sisa") and not {"steps", "masks"} & kinds(name))
]


@pytest.mark.field("Data, files, commands", "a mask beside the weights", "in `masks/`")
@pytest.mark.parametrize("method", EVERY)
def test_every_method_makes_an_ordinary_checkpoint(
    job: Job, tiny: Path, tmp_path: Path, method: str
) -> None:
    if "auxiliary" in find_method(method).data:
        job = replace(job, auxiliary=job.retain)
    training = go(job, tmp_path / "out", method)
    assert Training.model_validate(read_json(tmp_path / "out/unlearning.json")) == training
    assert not same(weights(tmp_path / "out"), weights(tiny))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    expected = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "unlearning.json",
    }
    more = {"masks"} if "masks" in kinds(method) else set()
    assert files == expected | (more or ({"forgotten"} if method == "flearn" else set()))
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == {"model.safetensors"}
    assert all(math.isfinite(record.loss) for record in training.losses)
    others = ("unseen", "specialist", "teacher")  # with epochs of their own
    own = [record for record in training.losses if not record.stage.startswith(others)]
    assert len(own) == 3 * TRAININGS.get(method, 1)
    assert (tmp_path / "out/model.safetensors").stat().st_mode & 0o444 == 0o444
    for record in training.losses:
        if record.retain is not None and record.forget is not None:
            total = record.forget + record.retain + (record.auxiliary or 0.0)
            assert record.loss == pytest.approx(total, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("method", ["ga_lora", "npo_klr_lora", "tv_lora", "rmu_lora"])
def test_lora_is_merged_and_changes_only_linear_weights(
    job: Job, tiny: Path, tmp_path: Path, method: str
) -> None:
    training = go(job, tmp_path / "out", method)
    assert training.options.model_dump()["lora_rank"] == 8
    before, after = weights(tiny), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)


def test_an_adapter_can_be_kept_and_gives_the_merged_weights(
    job: Job, tiny: Path, tmp_path: Path
) -> None:
    from unlearnbench.checkpoints.checkpoint import open_checkpoint
    from unlearnbench.checkpoints.options import LoadOptions

    go(job, tmp_path / "merged", "ga_gdr", lora_rank=4)
    go(job, tmp_path / "kept", "ga_gdr", lora_rank=4, keep_adapter=True)
    assert (tmp_path / "kept/adapter_model.safetensors").is_file()
    merged = open_checkpoint(str(tmp_path / "kept"), LoadOptions(base=str(tiny))).state_dict()
    for name, tensor in weights(tmp_path / "merged").items():
        assert torch.allclose(tensor, merged[name], atol=1e-6), name


def test_lora_has_its_reference_in_the_model_itself(job: Job, tmp_path: Path) -> None:
    """At the first step the adapter is 0, so KL and NPO start where they do with a copy."""
    lora = go(job, tmp_path / "lora", "npo_klr_lora").losses[0]
    full = go(job, tmp_path / "full", "npo_klr").losses[0]
    assert lora.retain == pytest.approx(0.0, abs=1e-6)
    assert lora.loss == pytest.approx(full.loss, rel=1e-6)
    assert lora.forget == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5), "NPO at the target"


@pytest.mark.parametrize("level", ["row", "module"])
def test_sure_leaves_every_weight_outside_its_mask_bit_identical(
    job: Job, tiny: Path, tmp_path: Path, level: str
) -> None:
    knobs = {"sure_level": level, "sure_top": 0.1}
    training = go(job, tmp_path / "out", "npo_gdr_sure", knobs=knobs, lr=1e-2, max_steps=6)
    before, after = weights(tiny), weights(tmp_path / "out")
    masks = load_file(tmp_path / "out/masks/sure_mask.safetensors")
    for name, tensor in before.items():
        held = ~masks[name] if name in masks else torch.ones(len(tensor), dtype=torch.bool)
        ours, theirs = after[name][held], tensor[held]
        assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32)), name
        if name in masks and bool(masks[name].any()):
            assert not torch.equal(after[name][masks[name]], tensor[masks[name]])
    rows, chosen = sum(map(len, masks.values())), sum(int(m.sum()) for m in masks.values())
    assert training.mask is not None
    assert (training.mask.rows, training.mask.chosen_rows) == (rows, chosen)
    if level == "row":
        assert chosen == math.ceil(0.1 * rows)
    else:
        assert sum(bool(m.any()) for m in masks.values()) == math.ceil(0.1 * len(masks))
    assert len(masks) == 14, "seven linear layers in each of two blocks, without the head"


def test_a_task_vector_without_strength_is_the_target_bit_for_bit(
    job: Job, tiny: Path, tmp_path: Path
) -> None:
    distances = []
    for alpha in (0.0, 0.5, 1.0, 2.0):
        go(job, tmp_path / f"{alpha}", "tv", knobs={"alpha": alpha})
        moved, target = weights(tmp_path / f"{alpha}"), weights(tiny)
        distances.append(sum(float((moved[n] - target[n]).norm()) for n in target))
    assert distances[0] == 0.0
    assert same(weights(tmp_path / "0.0"), weights(tiny))
    assert distances == sorted(set(distances))


def test_rmu_trains_only_its_layers_towards_one_direction(
    job: Job, tiny: Path, tmp_path: Path
) -> None:
    training = go(job, tmp_path / "out", "rmu", max_steps=20, knobs={"retain_weight": 1.0})
    before, after = weights(tiny), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.layers.0.") for name in changed)
    forget = [record.forget or 0.0 for record in training.losses]
    assert forget[-1] < forget[0]
    assert training.losses[0].retain == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulated_batches_give_the_same_step(job: Job, tmp_path: Path, micro: int) -> None:
    whole = go(job, tmp_path / "whole", "npo_klr", gradient_checkpointing=micro == 2)
    parts = go(job, tmp_path / "parts", "npo_klr", micro_batch_size=micro)
    for first, second in zip(whole.losses, parts.losses, strict=True):
        assert second.loss == pytest.approx(first.loss, rel=1e-5)
        assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-4)
        assert second.retain == pytest.approx(first.retain, rel=1e-3, abs=1e-6)


def test_the_same_seed_gives_the_same_weights(job: Job, tmp_path: Path) -> None:
    for name in ("first", "second"):
        go(job, tmp_path / name, "ga_klr")
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))
    go(job, tmp_path / "other", "ga_klr", seed=1)
    assert not same(weights(tmp_path / "first"), weights(tmp_path / "other"))
    first, other = (read_origin(tmp_path / name / FILE) for name in ("first", "other"))
    assert {name for name in first if first[name] != other[name]} == {"seed"}, "one recipe"


def test_other_texts_of_the_same_rows_are_another_recipe(job: Job, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "both.jsonl", [{"text": "Ada wrote.", "story": "Bo sang."}] * 4)
    both = replace(job, forget=(str(tmp_path / "both.jsonl"),))
    other = replace(both, corpus=CorpusOptions(text_field="story"))
    made = [go(j, tmp_path / n, "ga", max_steps=1) for j, n in ((both, "text"), (other, "story"))]
    assert made[0].data == made[1].data
    assert made[0].recipe != made[1].recipe


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_weights_are_trained_and_saved_in_the_dtype_asked_for(
    job: Job, tmp_path: Path, dtype: str
) -> None:
    go(job, tmp_path / "out", "npo_klr", weights_dtype=dtype, reference_dtype="bf16")
    found = {str(tensor.dtype) for tensor in weights(tmp_path / "out").values()}
    assert found == {"torch.bfloat16" if dtype == "bf16" else "torch.float32"}


def test_finetuning_lowers_the_loss_and_l1_makes_weights_zero(job: Job, tmp_path: Path) -> None:
    options = job.options.model_copy(update={"max_steps": 12})
    plain = finetune(replace(job, out=tmp_path / "plain", retain=(), options=options))
    assert plain.losses[-1].loss < plain.losses[0].loss
    assert plain.data[0].role == "data"
    sparse = options.model_copy(update={"l1": 20.0})
    finetune(replace(job, out=tmp_path / "sparse", retain=(), options=sparse))
    after = weights(tmp_path / "sparse")
    zeros = {name: float((tensor == 0).float().mean()) for name, tensor in after.items()}
    assert min(share for name, share in zeros.items() if "proj" in name) > 0.3
    assert zeros["model.embed_tokens.weight"] < 0.01


@pytest.mark.parametrize("method", ["", "ga_gdr", "ga_gdr_sure"])
def test_gradients_are_taken_under_weight_noise_and_weights_keep_none_of_it(
    method: str, job: Job, tmp_path: Path
) -> None:
    before = weights(Path(job.model))
    losses = {}
    for width in (0.0, 1.0):
        options = job.options.model_copy(
            update={"max_steps": 1, "lr": 1e-6, "weight_noise": width, "weights_dtype": "fp32"}
        )
        out = tmp_path / f"noise{width:g}"
        own = replace(job, out=out, options=options)
        trained = unlearn(own, method) if method else finetune(replace(own, retain=()))
        losses[width] = trained.losses[0].loss
        after = weights(out)
        # Adam's first step moves a weight by lr at most; the noise is a thousand times as wide.
        assert max(float((after[n] - before[n]).abs().max()) for n in after) < 2e-6
    assert abs(losses[1.0] - losses[0.0]) > 1e-4


def test_a_model_to_compare_with_is_trained_without_noise(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, float] = {}
    made = context_module._run

    def run(context: Any, model: Any, stage: Any, stop: Any) -> Any:
        seen[stage.folder.name] = stage.noise
        return made(context, model, stage, stop)

    monkeypatch.setattr(context_module, "_run", run)
    go(job, tmp_path / "loo", "loo", max_steps=1, weight_noise=1.0, weights_dtype="fp32")
    assert seen.pop("unlearn") == 1.0
    assert seen
    assert set(seen.values()) == {0.0}
    seen.clear()
    few = job.options.updated(
        {"weight_noise": 1.0, "shards": 2, "max_steps": None, "batch_size": 8}
    )
    finetune(replace(job, out=tmp_path / "shards", retain=(), options=few))
    assert sorted(seen.items()) == [("shard-0-stage-0", 1.0), ("shard-1-stage-0", 1.0)]


def test_what_is_told_before_the_first_step_is_of_methods_of_pieces(
    job: Job, tmp_path: Path
) -> None:
    told: list[int] = []
    asked = replace(job, forecast=lambda model, options, steps: told.append(steps))
    for method in ("pcgu", "rmu"):
        go(asked, tmp_path / method, method, max_steps=1)
    assert not told, "they train otherwise than what is made up"
    go(asked, tmp_path / "ga", "ga", max_steps=2)
    assert told == [2]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rates_of_all_steps_are_known_before_the_first(
    job: Job, tmp_path: Path, schedule: str
) -> None:
    given = {"schedule": schedule, "warmup_steps": 2, "max_steps": 5}
    made = go(job, tmp_path / "out", "ga", **given)
    known = rates(job.options.updated(given), 5)
    assert [record.lr for record in made.losses] == pytest.approx(known)


def test_the_noise_is_uniform_and_as_wide_as_a_step_of_int4(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    before = {name: m.weight.detach().clone() for name, m in inner_linears(model).items()}
    noise = Noise(model, 1.0)
    noise.on_step_begin(None, None, None)
    for name, module in inner_linears(model).items():
        step = before[name].abs().amax(dim=1, keepdim=True) / 7
        shares = ((module.weight.detach() - before[name]) / step).flatten()
        assert float(shares.abs().max()) <= 0.5 + 1e-5
        assert float(shares.std()) == pytest.approx(12**-0.5, abs=0.02)
    noise.on_pre_optimizer_step(None, None, None)
    for name, module in inner_linears(model).items():
        assert torch.equal(module.weight.detach(), before[name])


def test_the_soft_threshold_is_the_proximal_step_of_l1() -> None:
    layer = torch.nn.Linear(5, 6, dtype=torch.float64)
    weight = layer.weight.detach().numpy().copy()
    expected = np.sign(weight) * np.maximum(np.abs(weight) - 0.2 * 0.7, 0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    Shrink(torch.nn.Sequential(layer), 0.7).on_optimizer_step(None, None, None, optimizer=optimizer)
    found = layer.weight.detach().numpy()
    assert 0 < (found == 0).mean() < 1
    assert np.abs(found - expected).max() < 1e-12


@pytest.mark.field("Weights", "SURE, L1, weight noise on GPT-2", "runs, by its outputs")
def test_sure_chooses_among_the_outputs_of_gpt2(job: Job, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2}
    target = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=1))
    target.save_pretrained(tmp_path / "gpt2")
    make_tokenizer().save_pretrained(tmp_path / "gpt2")
    go(replace(job, model=str(tmp_path / "gpt2")), tmp_path / "out", "ga_gdr_sure")
    masks = load_file(tmp_path / "out/masks/sure_mask.safetensors")
    before, after = weights(tmp_path / "gpt2"), weights(tmp_path / "out")
    inner = {n: m for n, m in target.named_modules() if type(m).__name__ == "Conv1D"}
    assert set(masks) == {f"{name}.weight" for name in inner}
    assert sum(int(mask.sum()) for mask in masks.values()) == math.ceil(0.05 * (96 + 32 + 128 + 32))
    for name, mask in masks.items():
        assert mask.shape == (before[name].shape[1],)
        moved = (after[name] != before[name]).any(dim=0)
        assert torch.equal(moved, mask), "columns are outputs"
    others = set(before) - set(masks)
    assert all(torch.equal(before[name], after[name]) for name in others)


def test_the_head_is_no_inner_layer(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    names = inner_linears(AutoModelForCausalLM.from_pretrained(tiny))
    assert len(names) == 14
    assert not any("lm_head" in name for name in names)


def test_bad_input_is_refused(job: Job, tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OptionError, match="give --retain"):
        unlearn(replace(job, out=out, retain=()), "ga_gdr")
    with pytest.raises(OptionError, match="leave --retain out"):
        unlearn(replace(job, out=out), "ga")
    with pytest.raises(OptionError, match="--beta means nothing to ga_gdr"):
        unlearn(replace(job, out=out), "ga_gdr", {"beta": 1.0})
    with pytest.raises(OptionError, match="unknown method 'npo_kl'; known: npo_klr"):
        unlearn(replace(job, out=out), "npo_kl")
    with pytest.raises(OptionError, match="LoRA"):
        find_method("ga_gdr_sure_lora")
    with pytest.raises(OptionError, match="drop --lora-rank"):
        go(job, out, "ga_gdr_sure", lora_rank=2)
    with pytest.raises(OptionError, match="--pack and --l1 are for finetune"):
        go(job, out, "ga", l1=1.0)
    for whole in ("tv", "rmu"):
        says = f"--weight-noise is for methods of pieces .*, not for {whole}$"
        with pytest.raises(OptionError, match=says):
            go(job, out, whole, weight_noise=1.0)
    with pytest.raises(OptionError, match="^--weight-noise: .* which LoRA does not train$"):
        go(job, out, "ga_gdr_lora", weight_noise=1.0)
    with pytest.raises(ValueError, match="--weight-noise: it moves the weights, which LoRA"):
        TrainOptions(weight_noise=1.0, lora_rank=2)
    with pytest.raises(OptionError, match="beyond the model's context of 8192"):
        go(job, out, "ga", max_length=9000)
    with pytest.raises(OptionError, match="--rmu-layer 1"):
        go(job, out, "rmu", knobs={"rmu_layer": 1})
    empty = tmp_path / "empty.jsonl"
    empty.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="no rows"):
        unlearn(replace(job, out=out, forget=(str(empty),), retain=()), "ga")
    full = tmp_path / "full"
    shutil.copytree(tiny, full)
    with pytest.raises(OptionError, match="in the way"):
        go(job, full, "ga")
    go(job, tmp_path / "done", "ga")
    with pytest.raises(OptionError, match="finished training"):
        go(job, tmp_path / "done", "ga")


def test_the_record_is_checked_when_it_is_read(job: Job, tmp_path: Path) -> None:
    training = go(job, tmp_path / "out", "npo", knobs={"beta": 0.2})
    assert read_origin(tmp_path / "out" / FILE)["method"] == training.method == "npo"
    assert read_origin(tmp_path / "out" / FILE)["beta"] == "0.2"
    path = tmp_path / "out/unlearning.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for change, says in (
        ({"method": "\x1b[31m"}, "method"),
        ({"processes": 0}, "processes"),
        ({"more": 1}, "more"),
    ):
        path.write_text(json.dumps(content | change), encoding="utf-8")
        with pytest.raises(CheckpointError, match=f"unlearning.json: {says}"):
            read_origin(tmp_path / "out" / FILE)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="no valid JSON"):
        read_origin(tmp_path / "out" / FILE)


def test_a_target_in_half_precision_and_a_model_without_room(
    job: Job, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    half = make_checkpoint("half", "bfloat16")
    go(replace(job, model=str(half)), tmp_path / "half", "ga")
    assert {t.dtype for t in weights(tmp_path / "half").values()} == {torch.bfloat16}
    short = make_checkpoint("short", max_position_embeddings=16)
    training = go(replace(job, model=str(short)), tmp_path / "short", "ga", max_length=None)
    assert training.max_length == 16
    assert training.sequences["forget"] > 6, "cut into pieces"


def test_where_a_pairs_blank_stands_is_part_of_the_recipe(job: Job, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qa.jsonl", [{"question": "Who?", "answer": "the harbour"}] * 4)
    pairs = replace(job, forget=(str(tmp_path / "qa.jsonl"),), retain=())
    made = {}
    for asked in ("auto", "prompt", "answer"):
        corpus = CorpusOptions.of({"answer_blank": asked})
        made[asked] = go(replace(pairs, corpus=corpus), tmp_path / asked, "ga", max_steps=1)
    recorded = {asked: getattr(t.options, "answer_blank", None) for asked, t in made.items()}
    assert recorded == {"auto": "answer", "prompt": None, "answer": "answer"}
    assert made["auto"].recipe == made["answer"].recipe != made["prompt"].recipe
    assert not same(weights(tmp_path / "auto"), weights(tmp_path / "prompt"))
    texts = go(job, tmp_path / "texts", "ga", max_steps=1)
    assert not hasattr(texts.options, "answer_blank"), "there is no pair in it"


@pytest.mark.field(
    "Prompts and tokenizers", "unlearned copy of a target", "tokenizer files byte for byte"
)
def test_the_targets_tokenizer_is_copied_byte_for_byte(
    job: Job, tiny: Path, tmp_path: Path
) -> None:
    """As transformers saves it, it may be another: ``unlearn`` wrote the class's rules."""
    from tokenizers import Tokenizer, pre_tokenizers

    target = Path(shutil.copytree(tiny, tmp_path / "target"))
    backend = Tokenizer.from_file(str(target / "tokenizer.json"))
    digits = pre_tokenizers.Digits(individual_digits=True)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    backend.save(str(target / "tokenizer.json"))
    facts = json.loads((target / "tokenizer_config.json").read_text())
    facts |= {"tokenizer_class": "GPT2Tokenizer", "legacy": True}
    (target / "tokenizer_config.json").write_text(json.dumps(facts))
    for method, folder in (("ga", "out"), ("whp", "whp/baseline")):
        go(replace(job, model=str(target)), tmp_path / folder.split("/")[0], method)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / folder / name).read_bytes() == (target / name).read_bytes()


@pytest.mark.field(
    "Prompts and tokenizers",
    "a checkpoint without a tokenizer",
    "with `--tokenizer`, a folder or hub id; refused without",
)
def test_a_targets_tokenizer_may_be_elsewhere(job: Job, tiny: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(tiny, tmp_path / "target"))
    (tmp_path / "tok").mkdir()
    for path in target.glob("tokenizer*"):
        path.rename(tmp_path / "tok" / path.name)
    bare = replace(job, model=str(target))
    with pytest.raises(CheckpointError, match="target has no tokenizer.*--tokenizer PATH"):
        go(bare, tmp_path / "out", "ga")
    named = replace(bare, load=LoadOptions(tokenizer=str(tmp_path / "tok")))
    training = go(named, tmp_path / "out", "ga")
    own = go(job, tmp_path / "own", "ga")
    assert same(weights(tmp_path / "out"), weights(tmp_path / "own"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        given = (tmp_path / "tok" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == given
    record = json.loads((tmp_path / "out" / FILE).read_text())
    assert record["target"]["tokenizer"] == {"path": str(tmp_path / "tok")}
    assert training.recipe != own.recipe
    assert open_checkpoint(str(tmp_path / "out"), LoadOptions()).checkpoint.tokenizer is None


@pytest.mark.field(
    "Prompts and tokenizers",
    "end token behind every text, ordinary word as end",
    "refused, before a training too",
)
@pytest.mark.parametrize("change", ["tokenizer", "generation_config"])
def test_what_an_evaluation_refuses_is_refused_before_training(
    job: Job, tiny: Path, tmp_path: Path, change: str
) -> None:
    """An end token behind every text would be trained between question and answer."""
    from tokenizers import Tokenizer, processors

    target = Path(shutil.copytree(tiny, tmp_path / "target"))
    if change == "tokenizer":
        backend = Tokenizer.from_file(str(target / "tokenizer.json"))
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        backend.save(str(target / "tokenizer.json"))
    else:
        (target / "generation_config.json").write_text(json.dumps({"eos_token_id": 50}))
    said = "ends texts with an end-of-text" if change == "tokenizer" else "token 50, an ordinary"
    with pytest.raises(CheckpointError, match=said):
        go(replace(job, model=str(target)), tmp_path / "out", "ga")
    assert not (tmp_path / "out").exists()
