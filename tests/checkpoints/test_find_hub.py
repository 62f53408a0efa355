from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.conftest import Toy
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.find import files_sha256
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import UnlearnbenchError

FIRST, SECOND = "1" * 40, "2f" * 20


def add_snapshot(cache: Path, model_id: str, commit: str, source: Path) -> Path:
    """Lay a folder out as the hub's client does: contents in blobs, links to them in a snapshot."""
    home = cache / ("models--" + model_id.replace("/", "--"))
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir(exist_ok=True)
    for path in source.iterdir():
        blob = home / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def add_ref(cache: Path, model_id: str, name: str, commit: str) -> None:
    refs = cache / ("models--" + model_id.replace("/", "--")) / "refs"
    refs.mkdir(exist_ok=True)
    (refs / name).write_text(commit)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The tiny checkpoint with other weights."""
    from tests.conftest import make_model

    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("other") / "other"))
    make_model(300, seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, tiny: Path, other: Path) -> Path:
    """A hub cache with org/name at two commits, and some that are incomplete."""
    path = tmp_path_factory.mktemp("hub")
    add_snapshot(path, "org/name", FIRST, tiny)
    add_snapshot(path, "org/name", SECOND, other)
    add_ref(path, "org/name", "main", FIRST)
    add_ref(path, "org/name", "v2", SECOND)
    add_snapshot(path, "plain", FIRST, tiny)
    add_ref(path, "plain", "main", FIRST)
    partial = add_snapshot(path, "org/partial", FIRST, tiny)
    (partial / "model.safetensors").unlink()
    add_ref(path, "org/partial", "main", FIRST)
    # As fetched without --allow-pickle: the index of the pickles is JSON, and comes.
    pickled = add_snapshot(path, "org/pickled", FIRST, tiny)
    (pickled / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "pytorch_model-00001-of-00002.bin"}}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    add_ref(path, "org/pickled", "main", FIRST)
    torn = add_snapshot(path, "org/torn", FIRST, tiny)
    (torn / "model.safetensors").unlink()
    (torn / "model.safetensors").symlink_to("../../blobs/gone")
    add_ref(path, "org/torn", "main", FIRST)
    bare = add_snapshot(path, "org/bare", FIRST, tiny)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    add_ref(path, "org/bare", "main", FIRST)
    alone = add_snapshot(path, "org/tok", SECOND, tiny)
    for name in ("model.safetensors", "generation_config.json"):
        (alone / name).unlink()
    add_ref(path, "org/tok", "main", SECOND)
    return path


def said(*arguments: str) -> dict[str, Any]:
    """What a command line leaves behind."""
    out, err, before = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = call(*arguments)
    seconds = time.monotonic() - before
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": seconds}


def asked(model: str, **options: Any) -> Any:
    """What ``open_checkpoint`` says of a model."""
    try:
        source = open_checkpoint(model, LoadOptions(**options))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, on an adapter
            source.model()
    except UnlearnbenchError as error:
        return f"{type(error).__name__}: {error}"
    return source.checkpoint.model_dump(mode="json", exclude_none=True)


@pytest.fixture(scope="module")
def answers(cache: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is said of many models while ``cache`` is the hub's, by label."""
    toy = Toy(tmp_path_factory.mktemp("cwd"))
    command = ["--tasks", "toy_verbmem", *toy.arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        run = said("--model", "org/name", *command)
        (folder,) = toy.out.glob("*/*")
        checkpoint = json.loads((folder / "run.json").read_text())["checkpoint"]
        return {
            "main": asked("org/name"),
            "no organization": asked("plain"),
            "tag": asked("org/name", revision="v2"),
            "commit": asked("org/name", revision=SECOND),
            "unknown revision": asked("org/name", revision="v9"),
            "unknown commit": asked("org/name", revision="3" * 40),
            "unknown id": asked("org/nonesuch"),
            "partial": asked("org/partial"),
            "pickled": asked("org/pickled"),
            "torn": asked("org/torn"),
            "base": asked(str(adapter), base="org/name"),
            "named base": asked(str(adapter), allow_adapter_base=True),
            "tokenizer": asked("org/bare", tokenizer="org/tok"),
            "no tokenizer": asked("org/bare", tokenizer="org/bare"),
            "refused": said("--model", "org/nonesuch", *command),
            "command line": run | {"folder": str(folder), "checkpoint": checkpoint},
        }


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose config names the hub's org/name as its base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model: Any = AutoModelForCausalLM.from_pretrained(tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
        adapted.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    named = json.loads(path.read_text()) | {"base_model_name_or_path": "org/name"}
    path.write_text(json.dumps(named))
    return folder


@pytest.mark.parametrize(
    ("label", "model", "commit", "same_as"),
    [
        ("main", "org/name", FIRST, "tiny"),
        ("no organization", "plain", FIRST, "tiny"),
        ("tag", "org/name", SECOND, "other"),
        ("commit", "org/name", SECOND, "other"),
    ],
)
def test_the_recorded_revision_is_the_commit(
    answers: dict[str, Any],
    request: pytest.FixtureRequest,
    label: str,
    model: str,
    commit: str,
    same_as: str,
) -> None:
    """A branch or tag moves; the commit says which weights these are."""
    folder: Path = request.getfixturevalue(same_as)
    found = answers[label]
    assert (found["path"], found["revision"], found["format"]) == (model, commit, "safetensors")
    assert found["weights_sha256"] == files_sha256([folder / "model.safetensors"])


@pytest.mark.field(
    "Data, files, commands",
    "hub repository with `.bin` weights only",
    "refused, names `--allow-pickle`",
)
@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("unknown id", "no folder org/nonesuch here"),
        ("unknown revision", "org/name@v9"),
        ("unknown commit", f"org/name@{'3' * 40}"),
        ("partial", "has no weights: neither model.safetensors nor"),
        ("partial", "where the repository has only such, pass --allow-pickle"),
        ("pickled", "where the repository has only such, pass --allow-pickle"),
        ("torn", "has no weights: neither model.safetensors nor"),
    ],
)
def test_what_the_cache_does_not_hold(answers: dict[str, Any], label: str, words: str) -> None:
    assert answers[label].startswith("CheckpointError: ")
    assert words in answers[label]
    assert answers[label].isprintable()


@pytest.mark.parametrize("label", ["base", "named base"])
def test_the_commit_of_an_adapters_base_is_recorded(answers: dict[str, Any], label: str) -> None:
    found = answers[label]
    assert "revision" not in found
    assert (found["base"]["path"], found["base"]["revision"]) == ("org/name", FIRST)
    assert found["base"]["weights_sha256"] == answers["main"]["weights_sha256"]


@pytest.mark.field(
    "Prompts and tokenizers",
    "a checkpoint without a tokenizer",
    "with `--tokenizer`, a folder or hub id; refused without",
)
def test_a_tokenizer_has_a_commit_of_its_own(answers: dict[str, Any]) -> None:
    found, own = answers["tokenizer"], answers["main"]
    assert found["tokenizer"] == {"path": "org/tok", "revision": SECOND}
    assert (found["revision"], "tokenizer" in own) == (FIRST, False)
    same = ("weights_sha256", "tokenizer_sha256", "tokenizer_probe_sha256")
    assert [found[key] for key in same] == [own[key] for key in same]
    assert "org/bare has no tokenizer" in answers["no tokenizer"]


def test_the_command_line_loads_from_the_cache(answers: dict[str, Any], tiny: Path) -> None:
    weights = files_sha256([tiny / "model.safetensors"])
    run = answers["command line"]
    assert run["code"] == 0
    assert Path(run["folder"]).parts[-2:] == (f"name-{weights[:8]}", "none")
    assert run["folder"] in run["out"]
    assert (run["checkpoint"]["path"], run["checkpoint"]["revision"]) == ("org/name", FIRST)
    assert run["checkpoint"]["weights_sha256"] == weights


def test_the_command_line_refuses_an_unknown_id_at_once(answers: dict[str, Any]) -> None:
    run = answers["refused"]
    assert (run["code"], run["out"]) == (2, "")
    assert len(run["err"].splitlines()) == 1, run["err"]
    assert run["err"].startswith("unlearnbench: error: no folder org/nonesuch here")
    assert run["seconds"] < 60, "no waiting for a hub that is switched off"


def test_the_layout_above_is_the_clients_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a change of the client's layout shows here and not as a puzzle above."""
    from huggingface_hub import snapshot_download

    load: Callable[..., str] = snapshot_download
    found = load("org/name", revision="v2", cache_dir=cache, local_files_only=True)
    assert Path(found).name == SECOND
