from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import unlearnbench
from tests.cli.test_main import call
from unlearnbench.cli.demo import scores_table
from unlearnbench.demo import stages
from unlearnbench.demo.meter import Meter
from unlearnbench.demo.pipeline import plan_stages, run_demo
from unlearnbench.demo.recipe import METHODS, PRECISIONS, DemoOptions
from unlearnbench.demo.stages import DemoStage, files_sha256, stage_key
from unlearnbench.demo.work import is_trained, run_stage
from unlearnbench.errors import OptionError
from unlearnbench.recovery.statistics import RecoveryRow
from unlearnbench.tasks.registry import builtin_task_dir


def make(stage: DemoStage, text: str = "made") -> None:
    started = time.monotonic()
    stage.begin()
    for name in stage.made:
        path = stage.home / name / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    stage.finish(started)


def test_a_stage_is_known_again_by_its_key_and_by_what_it_made(tmp_path: Path) -> None:
    stage = DemoStage(tmp_path, "target", "key", ("models/target", "models/other"))
    assert not stage.is_done()
    make(stage)
    assert stage.is_done()
    assert DemoStage(tmp_path, "target", "key", stage.made).is_done()
    assert not DemoStage(tmp_path, "target", "another", stage.made).is_done()
    (tmp_path / "models/target/file").write_text("tampered", encoding="utf-8")
    assert not stage.is_done()
    make(stage)
    (tmp_path / "models/other/file").unlink()
    assert not stage.is_done()


def test_only_the_same_stage_goes_on_with_what_is_half_done(tmp_path: Path) -> None:
    stage = DemoStage(tmp_path, "target", "key", ("models/target",))
    stage.begin()
    half = tmp_path / "models/target/half"
    half.parent.mkdir(parents=True)
    half.write_text("half", encoding="utf-8")
    stage.begin()
    assert half.exists()
    DemoStage(tmp_path, "target", "another", stage.made).begin()
    assert not half.exists()


def test_files_that_are_not_the_demos_stay(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    assert call("demo", "--out", str(tmp_path)) == 2
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"
    (tmp_path / "README.md").unlink()
    results = tmp_path / "runs/target"
    results.mkdir(parents=True)
    with pytest.raises(OptionError, match="runs/target is in the way and not the demo's"):
        run_demo(DemoOptions(tmp_path), print)
    assert results.is_dir()


def test_a_training_that_was_killed_at_its_end_or_its_start(tmp_path: Path) -> None:
    done = tmp_path / "done"
    (done / ".training").mkdir(parents=True)
    (done / "unlearning.json").write_text("{}", encoding="utf-8")
    assert is_trained(done)
    assert not (done / ".training").exists()
    unclaimed = tmp_path / "unclaimed"
    (unclaimed / ".training").mkdir(parents=True)
    assert not is_trained(unclaimed)
    assert not unclaimed.exists()
    half = tmp_path / "half"
    (half / ".training").mkdir(parents=True)
    (half / ".training/request.json").write_text("{}", encoding="utf-8")
    assert not is_trained(half)
    assert half.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "rmu"], "--methods rmu: the demo has ga, ga_gdr"),
        (["--methods", ""], "--methods none: the demo has"),
        (["--quant", "rtn-int4"], "needs none and a quantized precision"),
        (["--quant", "none,int5000"], "unknown condition 'int5000'"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert call("demo", "--out", str(tmp_path / "out"), *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert call("demo", "--out", str(tmp_path / "file")) == 2
    assert "use another --out" in capsys.readouterr().err


def test_a_damaged_record_is_as_none(tmp_path: Path) -> None:
    stage = DemoStage(tmp_path, "target", "key", ("models/target",))
    make(stage)
    (tmp_path / "stages/target.json").write_text("[1", encoding="ascii")
    assert not stage.is_done()


def test_the_key_holds_the_facts_and_the_stages_before() -> None:
    key = stage_key({"seed": 0}, "before")
    assert key == stage_key({"seed": 0}, "before")
    assert key != stage_key({"seed": 1}, "before")
    assert key != stage_key({"seed": 0}, "other")


def test_every_file_of_the_package_and_the_demos_tasks_are_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(unlearnbench.__file__).resolve().parent
    package = shutil.copytree(own, tmp_path / "p", ignore=shutil.ignore_patterns("__pycache__"))
    tasks = shutil.copytree(builtin_task_dir(), tmp_path / "t")
    plain = files_sha256(package, tasks)
    assert plain == files_sha256(own, builtin_task_dir())
    data = "demo/data/unlearnbench/demo/knowmem/forget_qa.jsonl"
    pages = ("boards/page.html.j2", "boards/page.js", "boards/page.css", "boards/page.py")
    for path in [*(package / name for name in (data, *pages)), tasks / "demo_knowmem_f.yaml"]:
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert files_sha256(package, tasks) != plain, path
        path.write_bytes(content)
    (package / "__pycache__").mkdir()
    (package / "__pycache__/x.pyc").write_bytes(b"x")
    (tasks / "news_knowmem_f.yaml").write_text("another", encoding="utf-8")
    assert files_sha256(package, tasks) == plain
    key = stage_key({})
    monkeypatch.setattr(stages, "_own_files", lambda: "other files")
    assert stage_key({}) != key


def test_a_seed_or_the_l1_step_changes_every_stage_that_follows_from_it(tmp_path: Path) -> None:
    plain = plan_stages(DemoOptions(tmp_path))
    dense = plan_stages(DemoOptions(tmp_path, dense=True))
    other = plan_stages(DemoOptions(tmp_path, seed=1))
    assert {name for name in plain if plain[name].key == dense[name].key} == {"start"}
    assert not [name for name in plain if plain[name].key == other[name].key]
    fewer = plan_stages(DemoOptions(tmp_path, methods=("ga_gdr",)))
    changed = {name for name in fewer if fewer[name].key != plain[name].key}
    assert changed == {"compare", "board"}
    assert all(set(stage.needs) <= set(plain) for stage in plain.values())


@pytest.mark.parametrize("name", ["start", "compare", "board"])
def test_short_stages_have_a_bar(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    def make_board(options: DemoOptions, tick: Callable[[], object]) -> None:
        for _ in range(len(options.methods) + 3):
            tick()
        (options.out / "made").mkdir()

    def make_table(options: DemoOptions) -> None:
        (options.out / "made").mkdir()

    monkeypatch.setattr("unlearnbench.demo.work.make_board", make_board)
    monkeypatch.setattr("unlearnbench.demo.work.make_table", make_table)
    made = "models/start" if name == "start" else "made"
    stage = DemoStage(tmp_path, name, "key", (made,))
    run_stage(stage, DemoOptions(tmp_path, progress=True))
    assert stage.is_done()
    error = capsys.readouterr().err
    assert f"{name}: 100%" in error
    run_stage(DemoStage(tmp_path, name, "another", (made,)), DemoOptions(tmp_path))
    assert f"{name}:" not in capsys.readouterr().err, "none where nobody looks"


def test_the_meter_holds_the_processes_below_too() -> None:
    code = "x = bytearray(300_000_000); print(1, flush=True); input()"
    with Meter() as alone:
        pass
    with (
        Meter() as meter,
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.5)
        child.communicate(b"\n")
    assert meter.peak >= alone.peak + 250e6
    assert meter.seconds > 0
    assert str(meter) == f"took {meter.seconds:.0f} s and at most {meter.peak / 1e9:.1f} GB"


def test_the_table_of_scores_has_every_model_precision_and_both_tasks() -> None:
    figures = {"want": "low", "n": 48, "retrained": 4.5, "excess": 0.0, "change": 0.0}
    rows = [
        RecoveryRow.model_validate(
            {
                **figures,
                "entry": entry,
                "task": task,
                "precision": precision,
                "verdict": "holds",
                "full": base + kept,
                "quantized": base + kept + step,
                "target": 90.0 + kept + step,
                "target_full": 95.0 + kept,
            }
        )
        for entry, base in (("ga", 10.0), ("npo", 20.0))
        for task, kept in (("demo_knowmem_f", 0.0), ("demo_knowmem_r", 2.0))
        for precision, step in (("rtn-int4", 1.0), ("rtn-int8", 0.5))  # as files are sorted
    ]
    shown = scores_table(rows, ("none", "rtn-int8", "rtn-int4")).splitlines()
    assert [[c.strip() for c in line.strip("|").split("|")] for line in (shown[0], *shown[2:])] == [
        ["model", *(f"{k}, none / rtn-int8 / rtn-int4" for k in ("KnowMem_f", "KnowMem_r"))],
        ["target", "95.0 / 90.5 / 91.0", "97.0 / 92.5 / 93.0"],
        ["ga", "10.0 / 10.5 / 11.0", "12.0 / 12.5 / 13.0"],
        ["npo", "20.0 / 20.5 / 21.0", "22.0 / 22.5 / 23.0"],
    ]


def test_every_method_of_the_issue_is_there() -> None:
    assert set(METHODS) == {"ga", "ga_gdr", "ga_klr", "npo_gdr", "npo_klr", "ga_gdr_sure"}
    assert PRECISIONS == ("none", "rtn-int8", "rtn-int4", "bnb-nf4")
