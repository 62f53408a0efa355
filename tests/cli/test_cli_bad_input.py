from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy, make_tokenizer, write_jsonl
from unlearnbench.cli import main
from unlearnbench.errors import CheckpointError, ModelOutputError
from unlearnbench.models.hf import HFModel

TASKS = ("toy_verbmem", "toy_knowmem_f", "toy_privleak")
Call = Callable[..., "Answer"]


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: object
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """The command line sets the package's logger up for itself; other tests want it as it was."""
    logger = logging.getLogger("unlearnbench")
    before = (logger.handlers, logger.propagate, logger.level)
    yield
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process."""

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        return Answer(caught.value.code, *capsys.readouterr())

    return run


def require_refusal(answer: Answer, *said: str) -> None:
    """Exit status 2 and one clean line that says each of ``said`` (regular expressions)."""
    assert answer.code == 2, answer
    assert answer.out == ""
    assert len(answer.lines) == 1, answer.err
    assert answer.err.endswith("\n")
    assert answer.lines[0].startswith("unlearnbench: error: ")
    assert answer.lines[0].isprintable()
    assert "internal error" not in answer.err
    assert "Traceback" not in answer.err
    for pattern in said:
        assert re.search(pattern, answer.lines[0]), (pattern, answer.lines[0])


def require_complete(folder: Path, tasks: Sequence[str]) -> None:
    """The run folder holds these tasks and no more, with the records that run.json names."""
    run = json.loads((folder / "run.json").read_text())
    assert sorted(run["tasks"]) == sorted(tasks)
    assert {p.name for p in (folder / "samples").iterdir()} == {f"{t}.jsonl" for t in tasks}
    for name in tasks:
        content = (folder / "samples" / f"{name}.jsonl").read_bytes()
        assert run["tasks"][name]["records_sha256"] == hashlib.sha256(content).hexdigest()
        assert len(content.splitlines()) == (6 if name == "toy_privleak" else 3)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@dataclass(frozen=True)
class Scene:
    """A good command, and what a case may spoil: the toy data and tasks, and a copied model."""

    toy: Toy
    model: Path

    def command(self, **options: str | None) -> list[str]:
        """The command's arguments, with some options replaced, added or (None) left out."""
        asked: dict[str, str | None] = {
            "model": str(self.model),
            "tasks": "toy_verbmem",
            "data-dir": str(self.toy.data),
            "include-path": str(self.toy.tasks),
            "output": str(self.toy.out),
        }
        asked |= {name.replace("_", "-"): value for name, value in options.items()}
        return [
            w for name, value in asked.items() if value is not None for w in (f"--{name}", value)
        ]

    @property
    def data(self) -> Path:
        return self.toy.data / "toy" / "set"


@pytest.fixture
def scene(toy: Toy, tiny: Path, tmp_path: Path) -> Scene:
    return Scene(toy, Path(shutil.copytree(tiny, tmp_path / "tiny")))


Build = Callable[[Scene], list[str]]


def option(**options: str | None) -> Build:
    return lambda scene: scene.command(**options)


# The model


def no_such_path(scene: Scene) -> list[str]:
    return scene.command(model=str(scene.model / "nope"))


def empty_folder(scene: Scene) -> list[str]:
    (scene.model / "empty").mkdir()
    return scene.command(model=str(scene.model / "empty"))


def no_config(scene: Scene) -> list[str]:
    (scene.model / "config.json").unlink()
    return scene.command()


def corrupt_config(scene: Scene) -> list[str]:
    (scene.model / "config.json").write_text("{")
    return scene.command()


def truncated(scene: Scene) -> list[str]:
    path = scene.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return scene.command()


def no_weights(scene: Scene) -> list[str]:
    (scene.model / "model.safetensors").unlink()
    return scene.command()


def no_tokenizer(scene: Scene) -> list[str]:
    for path in scene.model.glob("tokenizer*"):
        path.unlink()
    return scene.command()


def small_tokenizer(scene: Scene) -> list[str]:
    make_tokenizer(260).save_pretrained(scene.model)
    return scene.command()


def a_file(scene: Scene) -> list[str]:
    return scene.command(model=str(scene.model / "config.json"))


def own_code(scene: Scene) -> list[str]:
    edit_json(scene.model / "config.json", auto_map={"AutoConfig": "evil.Config"})
    return scene.command()


def quantized_already(scene: Scene) -> list[str]:
    edit_json(scene.model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    return [*scene.command(), "--quant", "4bit"]


def quantized_somehow(scene: Scene) -> list[str]:
    edit_json(scene.model / "config.json", quantization_config={"quant_method": "nonesuch"})
    return scene.command()


def adapter_alone(scene: Scene) -> list[str]:
    (scene.model / "config.json").rename(scene.model / "adapter_config.json")
    (scene.model / "model.safetensors").rename(scene.model / "adapter_model.safetensors")
    return scene.command()


MODELS: dict[str, tuple[Build, Sequence[str]]] = {
    "no such path": (no_such_path, ["no such path: .*nope", "give a checkpoint folder"]),
    "home of nobody": (option(model="~nosuchuser/model"), ["no such path: ~nosuchuser/model"]),
    "long name": (option(model="x" * 5000), ["no such path: xxx"]),
    "unknown id": (
        option(model="org/nope"),
        ["no folder org/nope here", "hub"],
    ),
    "empty folder": (empty_folder, ["empty is empty", "--model takes a checkpoint folder"]),
    "no config": (no_config, [r"tiny has no config\.json", "written by save_pretrained"]),
    "corrupt config": (corrupt_config, [r"tiny/config\.json is no valid JSON"]),
    "truncated": (truncated, [r"model\.safetensors is truncated", "copy or download it again"]),
    "no weights": (no_weights, [r"tiny has no weights: neither model\.safetensors nor"]),
    "no tokenizer": (no_tokenizer, ["tiny has no tokenizer; save the model's", "--tokenizer PATH"]),
    "small tokenizer": (
        small_tokenizer,
        ["tiny: the tokenizer does not match", "use the tokenizer that the model was trained with"],
    ),
    "file": (a_file, [r"config\.json is a file", "--model takes a checkpoint folder"]),
    "own code": (own_code, ["brings its own Python code", "--trust-remote-code"]),
    "quantized": (quantized_already, ["quantized already", "give the unquantized checkpoint"]),
    "quantized somehow": (quantized_somehow, ["quantized already, by 'nonesuch'", "known: gptq"]),
    "adapter": (adapter_alone, ["is an adapter", "--base PATH", "--allow-adapter-base"]),
}

# Tasks and data


def missing_split(scene: Scene) -> list[str]:
    (scene.data / "verbmem" / "forget.jsonl").unlink()
    return scene.command()


def malformed_split(scene: Scene) -> list[str]:
    path = scene.data / "verbmem" / "forget.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"prompt": ', lines[2]]) + "\n")
    return scene.command()


def row_without_field(scene: Scene) -> list[str]:
    write_jsonl(scene.data / "verbmem" / "forget.jsonl", [{"prompt": "a"}] * 3)
    return scene.command()


def row_that_is_no_object(scene: Scene) -> list[str]:
    (scene.data / "verbmem" / "forget.jsonl").write_text("[]\n" * 3)
    return scene.command()


def binary_split(scene: Scene) -> list[str]:
    (scene.data / "verbmem" / "forget.jsonl").write_bytes(b"\x80\x81\n")
    return scene.command()


def zero_rows(scene: Scene) -> list[str]:
    (scene.data / "verbmem" / "forget.jsonl").write_text("")
    return scene.command()


def too_few_rows(scene: Scene) -> list[str]:
    write_jsonl(scene.data / "verbmem" / "forget.jsonl", [{"prompt": "a", "gt": "b c"}])
    return scene.command()


def split_as_a_folder(scene: Scene) -> list[str]:
    path = scene.data / "verbmem" / "forget.jsonl"
    path.unlink()
    path.mkdir()
    return scene.command()


def malformed_task(scene: Scene) -> list[str]:
    (scene.toy.tasks / "toy_verbmem.yaml").write_text("task: toy_verbmem\nnonsense: 1\n")
    return scene.command()


def no_task_files(scene: Scene) -> list[str]:
    return scene.command(include_path=str(scene.data))


DATA: dict[str, tuple[Build, Sequence[str]]] = {
    "unknown task": (option(tasks="toy_verbmen"), ["'toy_verbmen'", "did you mean toy_verbmem"]),
    "unknown among known": (option(tasks="toy_verbmem,zzz"), ["'zzz'", "`unlearnbench tasks`"]),
    "no task": (option(tasks=" , "), ["no task was asked for", "`unlearnbench tasks`"]),
    "glob of nothing": (option(tasks="zz*"), [r"'zz\*'", "`unlearnbench tasks`"]),
    "malformed task": (malformed_task, [r"toy_verbmem\.yaml:\d+: "]),
    "no task files": (no_task_files, [r"no \*\.yaml in task folder", "one YAML file"]),
    "no task folder": (option(include_path="/nope"), ["no task folder /nope", "--include-path"]),
    "no data folder": (option(data_dir="/nope"), ["no data folder /nope", "--data-dir"]),
    "missing split": (
        missing_split,
        ["'forget' is missing", r"verbmem/forget\.jsonl", "--data-dir"],
    ),
    "malformed split": (malformed_split, [r"forget\.jsonl:2: no valid JSON"]),
    "no object": (row_that_is_no_object, [r"forget\.jsonl: row 1 is no JSON object"]),
    "binary split": (binary_split, [r"forget\.jsonl: cannot be read"]),
    "no field": (row_without_field, ["toy_verbmem: forget/0", "'gt' is undefined"]),
    "zero rows": (zero_rows, ["toy_verbmem: split 'forget'", "has no rows"]),
    "too few rows": (too_few_rows, ["1 rows instead of 3", "--allow-data-drift"]),
    "split as a folder": (split_as_a_folder, ["'forget' is missing"]),
}

# Options


def below_a_file(scene: Scene) -> list[str]:
    return scene.command(output=str(scene.model / "config.json" / "out"))


def on_a_file(scene: Scene) -> list[str]:
    return scene.command(output=str(scene.model / "config.json"))


def reference_without_run(scene: Scene) -> list[str]:
    return scene.command(tasks="toy_privleak", reference=str(scene.toy.data))


def stated_for_another_model(scene: Scene) -> list[str]:
    path = scene.toy.tasks / "toy_privleak.yaml"
    stated = (
        "references:\n"
        "  - auc: 0.4772\n"
        "    base_model: Llama-2-7B\n"
        "    config: {model_type: llama, hidden_size: 4096}\n"
        "    source: a paper\n"
    )
    path.write_text(path.read_text() + stated)
    return scene.command(tasks="toy_privleak", reference="stated")


OPTIONS: dict[str, tuple[Build, Sequence[str]]] = {
    "no model": (option(model=None), ["--model is missing", "--help"]),
    "blank model": (option(model=""), ["--model is missing", "--help"]),
    "no tasks": (option(tasks=None), ["--tasks is missing", "--help"]),
    "unknown precision": (option(quant="bnb-fp5"), ["'bnb-fp5'", "bnb-fp4"]),
    "unknown among precisions": (option(quant="none,3bit"), ["'3bit'", "known: .*4bit"]),
    "no precision": (option(quant=","), ["no condition was asked for", "--quant none"]),
    "limit 0": (option(limit="0"), ["--limit 0 leaves no sample", "use 1 or more"]),
    "limit -1": (option(limit="-1"), ["--limit -1 leaves no sample", "use 1 or more"]),
    "limit x": (option(limit="x"), ["--limit", "'x' is not a number or a share"]),
    "batch 0": (option(batch_size="0"), ["--batch-size 0", "a whole number above 0"]),
    "batch -1": (option(batch_size="-1"), ["--batch-size -1", "a whole number above 0"]),
    "batch x": (option(batch_size="x"), ["--batch-size x", "'auto' or a whole number above 0"]),
    "batch 1.5": (
        option(batch_size="1.5"),
        [r"--batch-size 1\.5", "'auto' or a whole number above 0"],
    ),
    "seed x": (option(seed="x"), ["--seed", "'x' is not a valid integer"]),
    "dtype": (option(dtype="int3"), ["--dtype", "'int3'", "'auto', 'fp32', 'bf16', 'fp16'"]),
    "protocol": (option(protocol="muze"), ["--protocol", "'muze'", "'muse', 'zhang2025'"]),
    "adapter": (option(adapter="drop"), ["--adapter", "'drop'", "'merge', 'keep'"]),
    "device": (option(device="tpu"), ["'tpu'", "--device cpu or cuda"]),
    "unknown option": (option(modle="x"), ["--modle", "--model"]),
    "base": (option(base="x"), ["--base is for adapter folders"]),
    "below a file": (below_a_file, ["output folder .*out is not writable", "another --output"]),
    "on a file": (on_a_file, ["output folder .*json is not writable", "another --output"]),
    "no reference": (option(reference="/nope"), ["--reference /nope: no run.json", "'stated'"]),
    "reference": (reference_without_run, ["--reference .*data: no run.json", "'stated'"]),
    "none stated": (
        option(tasks="toy_privleak", reference="stated"),
        ["toy_privleak states no reference", "--reference RUN_DIR"],
    ),
    "stated for another": (
        stated_for_another_model,
        ["for Llama-2-7B", "hidden_size 64 instead of 4096", "--reference RUN_DIR"],
    ),
}

CASES = MODELS | DATA | OPTIONS


@pytest.fixture
def no_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input is found before the expensive part."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("unlearnbench.conditions.load.Prepared.load", fail)


@pytest.mark.usefixtures("no_model_loads")
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_that_names_it_and_what_to_do(
    scene: Scene, call: Call, case: str
) -> None:
    build, said = CASES[case]
    require_refusal(call(*build(scene)), *said)
    assert not list(scene.toy.out.glob("*/*/run.json")), "nothing is recorded of a refused run"


@pytest.mark.parametrize("case", ["no such path", "truncated", "limit 0", "no field", "dtype"])
def test_verbose_shows_the_traceback_too(scene: Scene, call: Call, case: str) -> None:
    build, said = CASES[case]
    answer = call("--verbose", *build(scene))
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback (most recent call last)" in answer.err
    last = answer.lines[-1]
    assert last.startswith("unlearnbench: error: ")
    assert all(re.search(pattern, last) for pattern in said)


SPAWNED = ["no model", "zero rows"]  # before anything heavy is imported, and after


@pytest.mark.parametrize("case", SPAWNED)
def test_bad_input_of_the_real_command(scene: Scene, tmp_path: Path, case: str) -> None:
    build, said = CASES[case]
    done = subprocess.run(
        [sys.executable, "-m", "unlearnbench", *build(scene)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    require_refusal(Answer(done.returncode, done.stdout, done.stderr), *said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["--model is missing"]),
        (["nope"], ["nope"]),
        (["tasks", "toy_nope"], ["unknown task or group 'toy_nope'", "`unlearnbench tasks`"]),
        (["tasks", "--include-path", "/nope"], ["no task folder /nope", "--include-path"]),
        (["tasks", "--nope"], ["--nope"]),
        (["--model"], ["--model", "requires an argument"]),
    ],
)
def test_bad_input_without_a_run(call: Call, arguments: list[str], said: list[str]) -> None:
    require_refusal(call(*arguments), *said)


# A run folder that is in the way


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Scene:
    """A scene whose command has run on all tasks at ``none``. Not to be changed."""
    from unlearnbench.evaluation.evaluate import evaluate

    root = tmp_path_factory.mktemp("finished")
    scene = Scene(Toy(root), Path(shutil.copytree(tiny, root / "tiny")))
    evaluate(str(scene.model), "toy", **scene.toy.options)
    return scene


@pytest.fixture
def again(finished: Scene, tmp_path: Path) -> Scene:
    """A copy of it, that may be changed."""
    toy = Toy(tmp_path / "again")
    shutil.copytree(finished.toy.out, toy.out)
    return Scene(toy, Path(shutil.copytree(finished.model, tmp_path / "again" / "tiny")))


def run_folder(scene: Scene, precision: str = "none") -> Path:
    (folder,) = scene.toy.out.glob(f"tiny-*/{precision}")
    return folder


def other_data(scene: Scene) -> list[str]:
    rows = [{"prompt": "another", "gt": "text altogether"}] * 3
    write_jsonl(scene.data / "verbmem" / "forget.jsonl", rows)
    return scene.command()


def other_tokenizer(scene: Scene) -> list[str]:
    make_tokenizer(299).save_pretrained(scene.model)
    return scene.command()


def other_config(scene: Scene) -> list[str]:
    edit_json(scene.model / "config.json", rms_norm_eps=0.1)
    return scene.command()


def edit_task(old: str, new: str) -> Build:
    def build(scene: Scene) -> list[str]:
        path = scene.toy.tasks / "toy_verbmem.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return scene.command()

    return build


def damage(content: bytes | None, name: str = "run.json") -> Build:
    def build(scene: Scene) -> list[str]:
        path = run_folder(scene) / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        return scene.command()

    return build


def edit_run(**changes: object) -> Build:
    def build(scene: Scene) -> list[str]:
        edit_json(run_folder(scene) / "run.json", **changes)
        return scene.command()

    return build


def nan_value(scene: Scene) -> list[str]:
    path = run_folder(scene) / "run.json"
    run = json.loads(path.read_text())
    run["tasks"]["toy_verbmem"]["value"] = float("nan")
    path.write_text(json.dumps(run))
    return scene.command()


def edit_samples(scene: Scene) -> list[str]:
    path = run_folder(scene) / "samples" / "toy_verbmem.jsonl"
    path.write_text(path.read_text().replace('"score": ', '"score": 0'))
    return scene.command()


def run_as_a_folder(scene: Scene) -> list[str]:
    path = run_folder(scene) / "run.json"
    path.unlink()
    path.mkdir()
    return scene.command()


def file_in_the_way(scene: Scene) -> list[str]:
    folder = run_folder(scene)
    shutil.rmtree(folder)
    folder.write_text("")
    return scene.command()


ANOTHER = "holds a run of another configuration"
OUTPUT = "use another --output"
REDO = r"remove .*to evaluate again|use another --output"

IN_THE_WAY: dict[str, tuple[Build, Sequence[str]]] = {
    "limit": (option(limit="2"), [ANOTHER, "limit is absent there and 2 here", OUTPUT]),
    "protocol": (option(protocol="zhang2025"), [ANOTHER, "muse there and zhang2025 here", OUTPUT]),
    "seed": (option(seed="1"), [ANOTHER, "seed is 0 there and 1 here", OUTPUT]),
    "dtype": (option(dtype="bf16"), [ANOTHER, "dtype is fp32 there and bf16 here", OUTPUT]),
    "tokenizer": (other_tokenizer, [ANOTHER, "tokenizer is .* there and .* here", OUTPUT]),
    "config": (other_config, [ANOTHER, "config is .* there and .* here", OUTPUT]),
    "data": (other_data, ["holds another toy_verbmem: data of split 'forget' is", OUTPUT]),
    "version": (
        edit_task("version: 1.0", "version: 1.1"),
        ["holds another toy_verbmem: task version is 1.0 there and 1.1 here", OUTPUT],
    ),
    "definition": (
        edit_task("max_target_toks: 16", "max_target_toks: 12"),
        ["holds another toy_verbmem: task definition is", OUTPUT],
    ),
    "empty run": (damage(b""), [r"run\.json is no valid JSON", REDO]),
    "cut run": (damage(b'{"format_version": 1,'), [r"run\.json is no valid JSON", REDO]),
    "binary run": (damage(b"\x80\x81"), [r"run\.json is no valid JSON", REDO]),
    "list as run": (damage(b"[]"), [r"run\.json has format_version None", REDO]),
    "run of the future": (edit_run(format_version=3), [r"run\.json has format_version 3"]),
    "unknown key": (edit_run(nonsense=1), [r"run\.json: nonsense: ", REDO]),
    "no tasks": (edit_run(tasks=None), [r"run\.json: tasks: ", REDO]),
    "nan": (nan_value, [r"run\.json: tasks\.toy_verbmem\.value: .*finite", REDO]),
    "run as a folder": (run_as_a_folder, [r"run\.json cannot be read", REDO]),
    "changed samples": (edit_samples, [r"toy_verbmem\.jsonl is not the file", REDO]),
    "no samples": (
        damage(None, "samples/toy_verbmem.jsonl"),
        [r"toy_verbmem\.jsonl cannot be read", REDO],
    ),
    "empty samples": (
        damage(b"", "samples/toy_verbmem.jsonl"),
        [r"toy_verbmem\.jsonl is not the file", REDO],
    ),
    "file in the way": (file_in_the_way, ["tiny-.*/none", OUTPUT]),
}


@pytest.mark.usefixtures("no_model_loads")
@pytest.mark.parametrize("case", IN_THE_WAY)
def test_a_run_folder_in_the_way(again: Scene, call: Call, case: str) -> None:
    build, said = IN_THE_WAY[case]
    arguments = build(again)
    before = contents(again.toy.out)
    require_refusal(call(*arguments), *said)
    assert contents(again.toy.out) == before, "a refused run changes nothing"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("no_model_loads")
def test_a_conflict_of_a_later_precision_is_found_first(again: Scene, call: Call) -> None:
    later = run_folder(again).with_name("rtn-int4")
    shutil.copytree(run_folder(again), later)
    edit_json(later / "run.json", settings={**settings(later), "seed": 7})
    answer = call(*again.command(quant="fp32,rtn-int4"))
    require_refusal(answer, "rtn-int4 holds a run of another", "seed is 7 there and 0 here")


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())["settings"]
    return found


@pytest.mark.usefixtures("no_model_loads")
@pytest.mark.parametrize("content", [b"", b"{}", b'{"format_version": 1}'])
def test_a_damaged_reference(again: Scene, call: Call, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "retrained").mkdir()
    (tmp_path / "retrained" / "run.json").write_bytes(content)
    arguments = again.command(tasks="toy_privleak", reference=str(tmp_path / "retrained"))
    require_refusal(call(*arguments), r"retrained/run\.json")


@pytest.mark.usefixtures("no_model_loads")
def test_the_folder_above_a_reference_names_the_runs_below(again: Scene, call: Call) -> None:
    above = run_folder(again).parent
    answer = call(*again.command(tasks="toy_privleak", reference=str(above)))
    require_refusal(answer, "no run.json there", "it holds none, take one of those")


# Failures half-way, and runs that are complete


class Loads:
    """Counts and forwards the loading of models; ``broken`` names precisions that fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from unlearnbench.conditions import load as loading

        self.names: list[str] = []
        self.broken: dict[str, Exception] = {}
        original = loading.Prepared.load

        def counted(prepared: loading.Prepared, batch_size: int | None = None) -> HFModel:
            self.names.append(prepared.spec.name)
            if prepared.spec.name in self.broken:
                raise self.broken[prepared.spec.name]
            return original(prepared, batch_size)

        monkeypatch.setattr("unlearnbench.conditions.load.Prepared.load", counted)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    return Loads(monkeypatch)


# What is raised half-way, what the command then says of it, and whether the rest goes on.
FAILURES = [
    (ModelOutputError("it broke"), "it broke", True),
    (RuntimeError("it\nbroke"), "internal error: RuntimeError: it broke", True),
    (MemoryError(), "out of memory", True),
    (CheckpointError("it broke"), "it broke", False),
    (OSError(28, "No space left on device"), "a file of a library's cannot be written", False),
    (KeyboardInterrupt(), "interrupted; every answer so far is kept in ", False),
]
KINDS = ["ours", "bug", "memory", "checkpoint", "disk", "interrupt"]


def require_told(answer: Answer, error: BaseException, said: str, where: str | None) -> None:
    """The failure in one last line, and where the rest went on (``where``) in the table too."""
    assert answer.code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert "Traceback" not in answer.err
    if where is None:
        assert answer.out == ""
        assert said in answer.lines[-1]
        return
    start = f"unlearnbench: error: failed: {where}: {said}"
    assert answer.lines[-1].startswith(start)
    assert answer.lines[-1].endswith(". The rest is finished; the same command tries these again")
    table = answer.out.splitlines()
    assert table[-1].startswith(f"failed: {where}: {said}")
    assert sum("FAILED" in line for line in table) == 1


@pytest.mark.parametrize(("error", "said", "goes_on"), FAILURES, ids=KINDS)
def test_a_precision_that_cannot_be_loaded_stops_only_itself(
    scene: Scene, call: Call, loads: Loads, error: Exception, said: str, goes_on: bool
) -> None:
    loads.broken["rtn-int8"] = error
    command = scene.command(tasks="toy", quant="none,rtn-int8,rtn-int4")
    answer = call(*command)
    require_told(answer, error, said, "rtn-int8" if goes_on else None)
    assert loads.names == ["none", "rtn-int8", "rtn-int4"][: 3 if goes_on else 2]
    finished = ["none", "rtn-int4"][: 2 if goes_on else 1]
    for name in finished:
        require_complete(run_folder(scene, name), TASKS)
    assert not list(scene.toy.out.glob("*/rtn-int8/run.json"))
    before = [contents(run_folder(scene, name)) for name in finished]
    loads.broken.clear()
    assert call(*command).code == 0
    assert loads.names.count("none") == 1
    require_complete(run_folder(scene, "rtn-int8"), TASKS)
    assert [contents(run_folder(scene, name)) for name in finished] == before


@pytest.mark.parametrize(("error", "said", "goes_on"), FAILURES, ids=KINDS)
def test_a_task_that_fails_stops_only_itself(
    scene: Scene,
    call: Call,
    loads: Loads,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
    goes_on: bool,
) -> None:
    original, asked = HFModel.generate, []

    def generate(
        self: HFModel, requests: Sequence[Any], skip: Collection[str] = ()
    ) -> Iterator[Any]:
        asked.append(requests[0].id.split(":")[0])
        if asked[-1] == "toy_knowmem_f" and len(asked) == 2:
            raise error
        return original(self, requests, skip)

    monkeypatch.setattr(HFModel, "generate", generate)
    command = scene.command(tasks=",".join(TASKS))
    answer = call(*command)
    require_told(answer, error, said, "toy_knowmem_f at none" if goes_on else None)
    finished = ("toy_verbmem", "toy_privleak")[: 2 if goes_on else 1]
    require_complete(run_folder(scene), finished)
    before = contents(run_folder(scene) / "samples")
    assert call(*command).code == 0
    assert asked == ["toy_verbmem", "toy_knowmem_f", "toy_knowmem_f"]
    require_complete(run_folder(scene), TASKS)
    assert before.items() <= contents(run_folder(scene) / "samples").items()


def test_a_failure_leaves_no_half_written_file(
    scene: Scene, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        answer = call(*scene.command())
    assert (answer.code, answer.out) == (2, "")
    assert re.search(r"toy_verbmem\.jsonl cannot be written \(No space left", answer.lines[-1])
    # The answers that were there before, whole lines each, and the lock, which is empty.
    left = {path.name: path.read_bytes() for path in scene.toy.out.rglob("*") if path.is_file()}
    assert left.pop(".lock") == b""
    assert left.keys() <= {"toy_verbmem.jsonl"}
    assert all(line.endswith(b"}\n") for c in left.values() for line in c.splitlines(True))
    assert call(*scene.command()).code == 0
    require_complete(run_folder(scene), TASKS[:1])


def test_a_run_that_is_complete_loads_no_model_and_prints_the_same_table(
    scene: Scene, call: Call, loads: Loads
) -> None:
    command = scene.command(tasks="toy", quant="none,rtn-int4")
    first = call(*command)
    assert (first.code, loads.names) == (0, ["none", "rtn-int4"])
    before = contents(scene.toy.out)
    loads.names.clear()
    second = call(*command)
    assert (second.code, loads.names) == (0, [])
    assert second.out == first.out
    assert all(f"| {precision} " in first.out for precision in ("none", "rtn-int4"))
    assert contents(scene.toy.out) == before
    assert sum("not computed again" in line for line in second.lines) == 2 * len(TASKS)


# Names from strangers

HOSTILE = ["\x1b[31mred", "two\nlines", "bell\x07", "\x9b31m", "\u202egpj", "carriage\rreturn"]


def require_clean(text: str) -> None:
    assert all(c == "\n" or c.isprintable() for c in text), repr(text)


OPTIONS_WITH_NAMES = [
    "model",
    "tasks",
    "quant",
    "data_dir",
    "include_path",
    "reference",
    "base",
    "device",
    "output",
    "dtype",
    "no_such_option",
]


def put_name(scene: Scene, where: str, name: str) -> list[str]:
    """The command with a strange name as the value of one option, such that it fails."""
    if where == "output":
        return scene.command(output=str(scene.model / "config.json" / name))
    return scene.command(**{where: f"no/{name}"})


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
@pytest.mark.parametrize("where", OPTIONS_WITH_NAMES)
def test_control_characters_of_an_option_do_not_reach_the_terminal(
    scene: Scene, call: Call, where: str, name: str
) -> None:
    require_refusal(call(*put_name(scene, where, name)))


@pytest.mark.parametrize("where", OPTIONS_WITH_NAMES)
def test_control_characters_do_not_reach_the_terminal_in_a_traceback(
    scene: Scene, call: Call, where: str
) -> None:
    answer = call("--verbose", *put_name(scene, where, "\x1b[31mred\x9b31m"))
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback" in answer.err
    require_clean(answer.err)


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "\x9b31m"], ids=ascii)
def test_control_characters_of_files_do_not_reach_the_terminal(
    scene: Scene, call: Call, tmp_path: Path, name: str
) -> None:
    """Everything that a run reads and writes lies below a folder of that name."""
    root = tmp_path / name
    moved = Scene(Toy(root), Path(shutil.copytree(scene.model, root / name)))
    good = call(*moved.command())
    assert good.code == 0, good
    require_clean(good.out)
    assert all(line.startswith("|") for line in good.out.splitlines()), good.out
    assert name not in good.err
    require_clean(re.sub(r"\r *", "", good.err))  # progress bars go back to the line's start
    (run,) = moved.toy.out.glob("*/none/run.json")
    run.write_bytes(b"{")
    require_refusal(call(*moved.command()), r"run\.json is no valid JSON")
    require_refusal(call(*truncated(moved)), "truncated or damaged")
    require_refusal(call(*malformed_split(moved)), r"forget\.jsonl:2: no valid JSON")
    require_refusal(call(*malformed_task(moved)), r"toy_verbmem\.yaml:\d: ")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_control_characters_do_not_reach_the_terminal_through_tasks(
    scene: Scene, call: Call, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(scene.toy.tasks, tmp_path / name))
    rows = [{"prompt": f"a {name} b", "gt": "c d"}] * 3
    write_jsonl(scene.data / "verbmem" / "forget.jsonl", rows)
    data = ["--data-dir", str(scene.toy.data)]
    answer = call("tasks", "toy_verbmem", "--include-path", str(folder), *data)
    assert answer.code == 0, answer
    require_clean(answer.out)
    (folder / f"{name}.yaml").write_text("task: 1\n")
    require_refusal(call("tasks", "--include-path", str(folder)))
