"""The recipes of the boards, without training anything."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from unlearnbench.cli.boards import leaderboard
from unlearnbench.cli.main import COMMANDS, cli
from unlearnbench.conditions import find_condition
from unlearnbench.tasks.registry import load_registry

BOARDS = Path(__file__).parents[2] / "leaderboards"
SPLITS = {
    "verbmem/forget": {"prompt": "Once a dog", "gt": "saw a cat."},
    "privleak/forget": {"text": "A text to forget."},
    "privleak/retain": {"text": "A text to keep."},
    "sust/forget_2": {"text": "Another."},
    "knowmem/forget_qa": {"question": "Who?", "answer": "A dog."},
    "knowmem/forget_qa_icl": {"question": "What?", "answer": "A cat."},
    "knowmem/retain_qa": {"question": "Where?", "answer": "There."},
    "knowmem/retain_qa_icl": {"question": "When?", "answer": "Once."},
}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


def refusal() -> type[Exception]:
    found: type[Exception] = sys.modules["maker"].Recipes
    return found


@pytest.fixture
def recipe() -> ModuleType:
    return load(BOARDS / "smollm2-news/make.py")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, row in SPLITS.items():
        path = tmp_path / f"data/muse-bench/MUSE-News/{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    for side in ("forget01", "retain_perturbed"):
        path = tmp_path / f"data/locuslab/TOFU/{side}/train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text('{"question": "Who?", "answer": "A cat."}\n', encoding="utf-8")
    return tmp_path / "data"


class Calls:
    """Stands for the commands: what was asked, and models and runs as they leave them."""

    def __init__(self, work: Path) -> None:
        self.work, self.said = work, list[list[str]]()

    def run(self, line: list[str], **_: Any) -> Any:
        class Done:
            returncode = 0

        words = line[3:]
        self.said.append(words)
        if words[0] in ("finetune", "unlearn"):
            out = self.work / words[words.index("--out") + 1]
            out.mkdir(parents=True, exist_ok=True)
            (out / "model.safetensors").write_bytes(str(words).encode())
            selection = {"chosen_step": 8, "reached": False, "threshold": 21.04}
            record = {"selection": selection, "seconds": 1000.0}
            (out / "unlearning.json").write_text(json.dumps(record))
        elif words[0] == "--model":
            name = Path(words[1]).name
            quant = words[words.index("--quant") + 1]
            for precision in quant.split(","):
                run = self.work / f"runs/{name}/{name}-0a/{precision}/run.json"
                run.parent.mkdir(parents=True, exist_ok=True)
                run.write_text("{}")
        return Done()


@pytest.fixture
def calls(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls(tmp_path / "work")
    base = made.work / "base/B.gguf"
    base.parent.mkdir(parents=True)
    base.write_bytes(b"weights")
    # A true spec: coverage asks for one too, whenever `sys.path` has changed.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(subprocess, "run", made.run)
    return made


@pytest.mark.parametrize(
    ("board", "a_method", "beside"),
    [("smollm2-news", 3, 6), ("smollm2-bf16", 4, 4), ("tofu-tiny", 3, 4)],
)
def test_every_command_is_one(
    board: str,
    a_method: int,
    beside: int,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = load(BOARDS / board / "make.py")
    recipe.make(recipe.Maker(recipe.HOME, tmp_path / "work", data, True), "base/B.gguf", [])
    lines = [shlex.split(x)[2:] for x in capsys.readouterr().out.splitlines()]
    # Train, evaluate, enter; GPTQ twice, or the run that chooses, and the control; verify, build.
    assert len(lines) == 2 * 3 + a_method * len(recipe.METHODS) + beside + 2
    for words in lines:
        read(words)
    assert not (tmp_path / "work").exists()


def read(words: list[str]) -> None:
    """As the command line reads them; click says: no such option, not a choice, missing."""
    command: click.Command = cli
    rest = words
    if words[0] in COMMANDS:
        found = cli.get_command(click.Context(cli), words[0])
        assert found is not None
        command, rest = found, words[1:]
    if command is leaderboard:
        command, rest = leaderboard.commands[words[1]], words[2:]
    command.make_context(words[0], list(rest))


def test_the_definition_of_tofu_s_published_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command is one, and the board asks for tasks and conditions that there are."""
    recipe = load(BOARDS / "tofu-1b/make.py")
    monkeypatch.setattr(sys, "argv", ["make.py", str(tmp_path / "work"), "--dry-run"])
    recipe.main()
    lines = [shlex.split(x)[2:] for x in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 * 10 + 2
    for words in lines:
        read(words)
    assert [words[1] for words in lines[:10]] == list(recipe.MODELS.values())
    assert all(("--reference" in words) is bool(n) for n, words in enumerate(lines[:10]))
    known = load_registry().tasks
    assert {name: known[name].version for name in recipe.RULES.tasks} == recipe.RULES.tasks
    for condition in recipe.RULES.precisions:
        assert find_condition(condition).name == condition
    assert not (tmp_path / "work").exists()
    monkeypatch.setattr(sys, "argv", ["make.py", str(BOARDS / "x"), "--dry-run"])
    with pytest.raises(SystemExit, match="is in the repository"):
        recipe.main()


def test_all_is_made_once(
    recipe: ModuleType, data: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    maker = recipe.Maker(recipe.HOME, calls.work, data, False)
    recipe.make(maker, "base/B.gguf", [])
    trained = [words for words in calls.said if words[0] in ("finetune", "unlearn")]
    assert len(trained) == 2 + len(recipe.METHODS) + 2  # the control has an ensemble first
    notes = [words[words.index("--note") + 1] for words in calls.said if "add" in words]
    assert all("never at or below the retrained model's 21.0" in note for note in notes[2:-1])
    roles = [words[-1] for words in calls.said if "--role" in words]
    assert roles == ["retrained", "target", "control"]
    calls.said.clear()
    recipe.make(maker, "base/B.gguf", [])
    assert not [words for words in calls.said if words[0] in ("finetune", "unlearn")]
    seconds = [json.loads(x) for x in (calls.work / "times.jsonl").read_text().splitlines()]
    assert len(seconds) > len(trained)
    with (calls.work / "times.jsonl").open("a") as log:
        evaluated = next(words for words in calls.said if words[0] == "--model")
        for words in (["--model", "another"], evaluated):
            log.write(json.dumps({"words": words, "seconds": 100.0}) + "\n")
        log.write('{"words": ["--mo')
    own = sum(x["seconds"] for x in seconds if x["words"][0] == "--model")
    trainings = 1000 * len(trained)
    models = [*recipe.STEPS, *recipe.METHODS, "ensemble", "sisa"]
    assert maker.seconds(models) == pytest.approx(trainings + own + 100)
    said = capsys.readouterr().out
    assert f"took {(trainings + own) / 3600:.1f} hours" in said
    for path in (calls.work / "texts").iterdir():
        assert path.suffix == ".jsonl"
        assert path.read_text()


def test_a_model_made_otherwise_is_not_taken(
    recipe: ModuleType, data: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = recipe.Maker(recipe.HOME, calls.work, data, False)
    recipe.make(maker, "base/B.gguf", ["retrained", "target", "npo_klr"])
    with monkeypatch.context() as patched:
        patched.setitem(recipe.METHODS, "npo_klr", recipe.Recipe("npo_klr", "--lr 1"))
        with pytest.raises(refusal(), match="npo_klr was made otherwise"):
            recipe.make(maker, "base/B.gguf", ["npo_klr"])
    weights = calls.work / "models/target/model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(b"another target")
    with pytest.raises(refusal(), match="npo_klr was made otherwise"):
        recipe.make(maker, "base/B.gguf", ["npo_klr"])
    weights.write_bytes(kept)
    recipe.make(maker, "base/B.gguf", ["npo_klr"])
    base = calls.work / "base/B.gguf"
    kept = base.read_bytes()
    base.write_bytes(b"other weights")
    with pytest.raises(refusal(), match="target was made otherwise"):
        recipe.make(maker, "base/B.gguf", ["target"])
    base.write_bytes(kept)
    recipe.make(maker, "base/B.gguf", ["target"])
    rows = data / "muse-bench/MUSE-News/privleak/retain.jsonl"
    rows.write_text(json.dumps({"text": "Another text to keep."}) + "\n", encoding="utf-8")
    for name in ("retrained", "npo_klr"):
        with pytest.raises(refusal(), match=f"{name} was made otherwise"):
            recipe.make(maker, "base/B.gguf", [name])


def test_runs_of_other_weights_are_not_taken(recipe: ModuleType, data: Path, calls: Calls) -> None:
    maker = recipe.Maker(recipe.HOME, calls.work, data, False)
    recipe.make(maker, "base/B.gguf", ["retrained"])
    other = calls.work / "runs/retrained/retrained-1b/none/run.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    with pytest.raises(refusal(), match="2 runs of retrained at none"):
        recipe.make(maker, "base/B.gguf", ["retrained"])


def test_an_interrupted_training_goes_on(recipe: ModuleType, data: Path, calls: Calls) -> None:
    maker = recipe.Maker(recipe.HOME, calls.work, data, False)
    out = calls.work / "models/m"
    words = ("finetune", "--lr", "1")

    def interrupt(claimed: bool) -> None:
        (out / ".training").mkdir(parents=True)
        if claimed:
            (out / ".training/request.json").write_text("{}")
        (calls.work / "models/m.command").write_text("finetune --lr 1\n")

    interrupt(claimed=False)
    maker.train("m", *words)
    assert calls.said[-1] == [*words, "--out", "models/m"]
    assert not (out / ".training").exists()
    (out / "unlearning.json").unlink()
    interrupt(claimed=True)
    maker.train("m", *words)
    assert calls.said[-1] == [*words, "--out", "models/m", "--resume"]


def test_without_gptqmodel_the_entry_lacks_its_run_and_with_it_no_failure_is_passed_over(
    recipe: ModuleType, data: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = recipe.Maker(recipe.HOME, calls.work, data, False)
    names = ["retrained", "target"]
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        recipe.make(maker, "base/B.gguf", names)
    assert len(runs_added(calls, "target")) == 7

    def fail(line: list[str], **given: Any) -> Any:
        if recipe.GPTQ in line:
            raise subprocess.CalledProcessError(137, line)
        return calls.run(line, **given)

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", fail)
        calls.said.clear()
        with pytest.raises(subprocess.CalledProcessError):
            recipe.make(maker, "base/B.gguf", ["target"])
        assert not [words for words in calls.said if "add" in words]
    recipe.make(maker, "base/B.gguf", names)
    assert len(runs_added(calls, "target")) == 8


def runs_added(calls: Calls, name: str) -> list[str]:
    added = next(words for words in reversed(calls.said) if "add" in words and name in words)
    return [word for word in added if word.startswith(f"runs/{name}/")]


def test_bad_input_is_one_line(
    recipe: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder, work, line in (
        (tmp_path, tmp_path, "set UNLEARNBENCH_DATA to a folder"),
        (data, BOARDS / "smollm2-news/work", "is in the repository"),
    ):
        monkeypatch.setenv("UNLEARNBENCH_DATA", str(folder))
        monkeypatch.setattr(sys, "argv", ["make.py", str(work)])
        with pytest.raises(SystemExit, match=line):
            recipe.main(recipe.HOME, recipe.__doc__, recipe.METHODS, recipe.make)
