from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.helpers import edit_json
from tests.conftest import Toy, make_model, make_tokenizer
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.find import files_sha256
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE, Training, read_origin
from unlearnbench.errors import CheckpointError
from unlearnbench.runs.folder import read_run
from unlearnbench.util.files import content_sha256


def test_other_ends_of_texts_are_another_configuration(copy: Path) -> None:
    """They move answers, so half a task is not to be finished with others."""

    def hashed(**changes: object) -> str | None:
        edit_json(copy / "generation_config.json", **changes)
        return open_checkpoint(str(copy), LoadOptions()).checkpoint.config_sha256

    same = hashed()
    assert hashed(temperature=0.5) == same == hashed(eos_token_id=[1])
    assert len({same, hashed(eos_token_id=[1, 0]), hashed(eos_token_id=None)}) == 3
    (copy / "generation_config.json").unlink()
    assert open_checkpoint(str(copy), LoadOptions()).checkpoint.config_sha256 == same


def test_the_recorded_checkpoint(tiny: Path) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())
    found = source.checkpoint
    assert found.path == str(tiny)
    assert found.format == "safetensors"
    assert found.weights_sha256 == files_sha256(source.files.weights)
    assert (found.revision, found.adapter, found.base, found.origin) == (None, None, None, {})


def test_hashes_survive_saving_again(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    model.save_pretrained(tmp_path / "again")
    make_tokenizer().save_pretrained(tmp_path / "again")
    ours, theirs = (
        open_checkpoint(str(p), LoadOptions()).checkpoint for p in (tiny, tmp_path / "again")
    )
    assert theirs == ours.model_copy(update={"path": theirs.path})


def test_config_hash_does_not_see_names_versions_or_key_order(tiny: Path, copy: Path) -> None:
    path = copy / "config.json"
    edit_json(path, transformers_version="4.1.0", _name_or_path="/home/somebody/model")
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    ours, theirs = (open_checkpoint(str(p), LoadOptions()).checkpoint for p in (tiny, copy))
    assert ours.config_sha256 == theirs.config_sha256


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", 1e-5),
        ("rope_parameters", {"rope_theta": 5e5, "rope_type": "default"}),
        ("hidden_act", "gelu"),
        ("max_position_embeddings", 4096),
    ],
)
def test_config_hash_sees_what_changes_the_model(
    tiny: Path, copy: Path, key: str, value: object
) -> None:
    edit_json(copy / "config.json", **{key: value})
    ours, theirs = (open_checkpoint(str(p), LoadOptions()).checkpoint for p in (tiny, copy))
    assert ours.config_sha256 != theirs.config_sha256


def test_content_hash_is_that_of_sorted_json() -> None:
    assert content_sha256({"b": [1, "\u2028"], "a": None}) == content_sha256(
        {"a": None, "b": [1, "\u2028"]}
    )
    assert content_sha256({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert content_sha256([1, 2]) != content_sha256([2, 1])


def test_weights_of_another_seed_hash_otherwise(tiny: Path, copy: Path) -> None:
    make_model(300, seed=1).save_pretrained(copy)
    ours, theirs = (open_checkpoint(str(p), LoadOptions()).checkpoint for p in (tiny, copy))
    assert ours.weights_sha256 != theirs.weights_sha256
    assert ours.config_sha256 == theirs.config_sha256


SHA = "0" * 64
# What the record below was given, as sorted JSON, written by hand.
GIVEN = (
    f'{{"data":[["forget","{SHA}"]],"kind":"unlearn","knobs":{{"beta":0.1}},"max_length":64,'
    '"method":"npo","options":{"lr":1e-05,"max_steps":9,"weights_dtype":"fp32"},"processes":1,'
    f'"target":"{SHA}"}}'
)


def record(**changes: Any) -> dict[str, Any]:
    content = {
        "format_version": 1,
        "kind": "unlearn",
        "method": "npo",
        "knobs": {"beta": 0.1},
        "options": {"lr": 1e-05, "seed": 3, "weights_dtype": "fp32", "max_steps": 9},
        "processes": 1,
        "target": {
            "path": "target",
            "format": "safetensors",
            "weights_sha256": SHA,
            "tokenizer_sha256": SHA,
        },
        "data": [{"role": "forget", "source": "forget.jsonl", "rows": 4, "sha256": SHA}],
        "sequences": {"forget": 4},
        "max_length": 64,
        "losses": [{"stage": "npo", "step": 8, "loss": 0.5, "lr": 1e-05}],
        "packages": {"torch": "2"},
        "unlearnbench": "1",
        "source_sha256": SHA,
        "seconds": 1.5,
        "created": "2026-11-28T00:00:00Z",
    }
    return content | changes


def test_what_results_say_of_a_training(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(record()))
    assert read_origin(tmp_path / FILE) == {
        "method": "npo",
        "target_sha256": SHA,
        "lr": "1e-05",
        "seed": "3",
        "weights_dtype": "fp32",
        "steps": "8",
        "beta": "0.1",
        "recipe": hashlib.sha256(GIVEN.encode()).hexdigest()[:16],
    }


def test_weight_noise_is_said_where_there_was_some(tmp_path: Path) -> None:
    said = []
    for width in (0.0, 0.5):
        made = record(options=options(weight_noise=width, survive="rtn-int4"))
        (tmp_path / FILE).write_text(json.dumps(made))
        said.append(read_origin(tmp_path / FILE))
    assert [origin.get("weight_noise") for origin in said] == [None, "0.5"]
    assert said[0]["survive"] == "rtn-int4"


SELECTION = {
    "rule": "the first",
    "task": "news_knowmem_f",
    "threshold": 30.0,
    "evaluated": [{"step": 2, "scores": {"news_knowmem_f": 40.0}}],
    "chosen_step": 2,
    "reached": True,
}


def recipe(**changes: Any) -> str:
    return Training.model_validate(record(**changes)).recipe


def options(**changes: object) -> dict[str, object]:
    return {"lr": 1e-05, "seed": 3, "weights_dtype": "fp32", "max_steps": 9} | changes


def selection(**changes: object) -> dict[str, object]:
    return {"selection": SELECTION | changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"options": options(seed=4)},
        {"options": options(save_steps=2)},
        {"options": options(gradient_checkpointing=True)},
        {"target": record()["target"] | {"path": "elsewhere", "origin": {"seed": "1"}}},
        {"data": [record()["data"][0] | {"source": "elsewhere.jsonl"}]},
        {"losses": [{"stage": "npo", "step": 2, "loss": 0.7, "lr": 1e-05}]},
        {"packages": {"torch": "3"}, "unlearnbench": "2", "source_sha256": "1" * 64},
        {"seconds": 9.0, "created": "later", "git_hash": "1"},
    ],
)
def test_seeds_share_a_recipe_whatever_came_out(changes: dict[str, Any]) -> None:
    assert recipe(**changes) == recipe()


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "finetune"},
        {"method": "npo_klr"},
        {"knobs": {"beta": 0.2}},
        {"options": options(lr=2e-05)},
        {"options": options(max_steps=10)},
        {"options": options(text_field="summary")},
        {"options": options(keep_adapter=True)},
        {"processes": 2},
        {"max_length": 65},
        {"target": record()["target"] | {"weights_sha256": "1" * 64}},
        {"data": [record()["data"][0] | {"sha256": "1" * 64}]},
        {"data": [record()["data"][0] | {"role": "retain"}]},
        {"data": record()["data"] * 2},
        selection(),
    ],
)
def test_whatever_else_was_given_makes_another_recipe(changes: dict[str, Any]) -> None:
    assert recipe(**changes) != recipe()


def test_how_a_checkpoint_was_chosen_is_in_the_recipe_and_which_one_is_not() -> None:
    later = [*SELECTION["evaluated"], {"step": 4, "scores": {}}]  # type: ignore[misc]
    same = selection(evaluated=later, chosen_step=4, reached=False)
    assert recipe(**same) == recipe(**selection())
    others = (
        selection(threshold=29.0),
        selection(task="news_verbmem"),
        selection(rows=25),
        selection(rows="all"),
        selection(evaluated=later[1:]),  # which looks half as often
    )
    assert len({recipe(**other) for other in (selection(), *others)}) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": 25}, "news_knowmem_f, first 25 rows"),
        ({"rows": "all"}, "news_knowmem_f, all rows"),
        ({}, "news_knowmem_f, rows not recorded"),
        (
            {"rows": "all", "reached": False},
            "news_knowmem_f, all rows, never low enough: the last step",
        ),
    ],
)
def test_a_choice_by_a_score_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / FILE).write_text(json.dumps(record(**selection(**changes))))
    assert read_origin(tmp_path / FILE)["selected"] == said


def test_a_knob_cannot_take_the_place_of_what_is_computed(tmp_path: Path) -> None:
    knobs = {"recipe": "0" * 16, "selected": "by nothing"}
    (tmp_path / FILE).write_text(json.dumps(record(knobs=knobs, **selection(rows=25))))
    found = read_origin(tmp_path / FILE)
    assert found["recipe"] == recipe(knobs=knobs, **selection(rows=25))
    assert found["selected"] == "news_knowmem_f, first 25 rows"


def test_a_run_of_an_earlier_release_learns_its_recipe_without_being_measured_again(
    copy: Path, toy: Toy
) -> None:
    (earlier,) = evaluate(copy, "toy_knowmem_f", **toy.options)
    assert earlier.checkpoint.origin == {}
    (copy / FILE).write_text(json.dumps(record()))
    (folder,) = toy.out.glob("copy-*/none")
    (again,) = evaluate(copy, "toy_knowmem_f", **toy.options)
    assert again.checkpoint.origin == read_origin(copy / FILE)
    same = earlier.checkpoint.model_copy(update={"origin": again.checkpoint.origin})
    assert read_run(folder) == again == earlier.model_copy(update={"checkpoint": same})
    (copy / FILE).unlink()
    assert evaluate(copy, "toy_knowmem_f", **toy.options) == [again], "nothing is lost"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "\x1b[31m"}, "method"),
        ({"processes": 0}, "processes"),
        ({"more": 1}, "more"),
        ({"format_version": 2}, "format_version"),
        ({"losses": [{"stage": "npo", "step": 0, "loss": 0.5, "lr": 1.0}]}, "losses.0.step"),
        ({"losses": [{"stage": "npo", "step": 1, "loss": "NaN", "lr": 1.0}]}, "losses.0.loss"),
        ({"options": {"lr": -1.0, "seed": 0, "weights_dtype": "fp32"}}, "options.lr"),
        ({"options": {"lr": 1.0, "seed": 2**40, "weights_dtype": "fp32"}}, "options.seed"),
        ({"options": {"lr": 1.0, "seed": 0, "weights_dtype": "evil"}}, "options.weights_dtype"),
        ({"options": {**options(), "deep": [[1]]}}, "options.deep"),
        (selection(rows=0), "selection.rows"),
        (selection(rows="some"), "selection.rows"),
        (selection(evaluated=[]), "selection.evaluated"),
        ({"target": {"path": "x"}}, "target.format"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / FILE).write_text(json.dumps(record(**changes)))
    with pytest.raises(CheckpointError, match=rf"unlearning\.json: {said}"):
        read_origin(tmp_path / FILE)
