"""``--tokenizer``: which runs go on, and with which tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoints.test_load import swap_words
from tests.conftest import Toy
from unlearnbench.cli import main
from unlearnbench.evaluation.answers import Journal

NAMES = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def places(tiny: Path, tmp_path: Path) -> dict[str, Path]:
    """A ``model`` without a tokenizer; ``one`` has its, ``same`` too in other bytes, ``other`` one
    of other words.
    """
    found = {name: tmp_path / name for name in ("one", "same", "other")}
    for place in found.values():
        place.mkdir()
        for name in NAMES:
            shutil.copy(tiny / name, place)
    found["model"] = Path(shutil.copytree(tiny, tmp_path / "model"))
    for name in NAMES:
        (found["model"] / name).unlink()
    changed = {name: json.loads((found[name] / NAMES[0]).read_text()) for name in ("same", "other")}
    changed["same"]["model"]["fuse_unk"] = True  # every byte has a token, so nothing is unknown
    swap_words(changed["other"])
    for name, content in changed.items():
        (found[name] / NAMES[0]).write_text(json.dumps(content))
    return found


def call(places: dict[str, Path], toy: Toy, tokenizer: str, tasks: str = "toy_privleak") -> int:
    given = f"pretrained={places['model']},tokenizer={places[tokenizer]},dtype=float32"
    with pytest.raises(SystemExit) as caught:
        main(["--model-args", given, "--tasks", tasks, *toy.arguments])
    return int(str(caught.value.code))


@pytest.mark.field(
    "Prompts and tokenizers",
    "a run resumed with a tokenizer from another place that does the same",
    "goes on",
)
def test_a_run_goes_on_with_a_tokenizer_that_does_the_same(
    places: dict[str, Path],
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)
        assert call(places, toy, "one") == 0
    (run,) = toy.out.glob("model-*/none/run.json")
    first = json.loads(run.read_text())
    run.unlink()  # half a run: answers, and no result
    assert call(places, toy, "other") == 2
    assert "half a task of another configuration: tokenizer is" in capsys.readouterr().err
    assert call(places, toy, "same") == 0
    assert "goes on after 6 of 6 answers" in capsys.readouterr().err
    assert call(places, toy, "other") == 2
    assert "another configuration: tokenizer is" in capsys.readouterr().err
    assert call(places, toy, "one", "toy_privleak,toy_verbmem") == 0
    assert "toy_privleak: already in" in capsys.readouterr().err
    last = json.loads(run.read_text())
    assert set(last["tasks"]) == {"toy_privleak", "toy_verbmem"}
    assert last["tasks"]["toy_privleak"]["auc"] == first["tasks"]["toy_privleak"]["auc"]
    assert last["checkpoint"]["tokenizer"] == {"path": str(places["one"])}


def test_every_command_takes_it(
    places: dict[str, Path], tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``inspect`` opens a tokenizer where it has to load a checkpoint whole, as of pickles."""
    import torch
    from safetensors.torch import load_file

    model = places["model"]
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    given = ["--model", str(model), "--allow-pickle"]
    for command in (
        ["quants", *given, "--quant", "rtn-int4"],
        ["inspect", *given, "--target", str(tiny), "--quant", "rtn-int4"],
    ):
        for more, status in ([], 2), (["--tokenizer", str(places["one"])], 0):
            with pytest.raises(SystemExit) as caught:
                main([*command, *more])
            assert caught.value.code == status, command
            assert ("has no tokenizer" in capsys.readouterr().err) == (status == 2)
