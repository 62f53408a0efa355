"""What brings it back: the rows beside the control and the cost, as table, plot and command."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.conftest import MakeCheckpoint, Toy
from tests.toy_runs import Bench, Skill, few_draws
from unlearnbench.conditions import resolve
from unlearnbench.errors import OptionError
from unlearnbench.recovery.attacks import (
    SUITES,
    Attack,
    attack_table,
    attacks,
    cost_of,
    plot_attacks,
)
from unlearnbench.recovery.compare import compare, open_comparison


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Attack]:
    """int8 brings back nothing, int4 half, relearning much, of which the control gains most."""
    with few_draws():
        made = Bench(tmp_path_factory.mktemp("attacks"))
        knows, hides = Skill.of(0.9, 0.8, 4.0), Skill.of(0.1, 0.7, -1.0)
        half, much = Skill.of(0.5, 0.7, 2.0), Skill.of(0.8, 0.7, 3.0)
        target = made.model("target", none=knows, int8=knows, int4=knows, relearn=knows)
        learnt = Skill.of(0.7, 0.8, 2.0)
        retrained = made.model("retrained", none=Skill.of(0.1, 0.8, 0.1), relearn=learnt)
        ours = made.model("npo", none=hides, int8=hides, int4=half, relearn=much)
        comparison = open_comparison([ours], target, retrained)
        return attacks(comparison, compare(comparison))


def test_the_largest_gain_comes_first_beside_its_control(found: list[Attack]) -> None:
    own = [each for each in found if each.row.task == "made_knowmem_f"]
    assert [each.row.precision for each in own] == ["relearn-20", "rtn-int4", "rtn-int8"]
    changes = [each.row.change for each in own]
    assert changes == sorted(changes, reverse=True)
    assert {each.row.want for each in found} == {"low", "zero"}
    taught, rounded = own[:2]
    assert taught.control is not None
    assert taught.control[1] - taught.control[0] == pytest.approx(taught.row.taught)
    assert taught.row.verdict == "the attack teaches"
    assert rounded.control is None, "the retrained model was not quantized"
    assert rounded.row.verdict == "recovers"


def test_what_relearning_cost_is_told() -> None:
    figures = {"forward_passes": 80.0, "backward_passes": 80.0, "seconds": 2.6}
    proof, options = SimpleNamespace(figures=figures), SimpleNamespace(further={"steps": 20})
    learned = SimpleNamespace(kind="relearned", first=None, options=options, proof=proof)
    rounded = SimpleNamespace(kind="relearned-quantized", first=learned)
    older = SimpleNamespace(**{**vars(learned), "proof": None})
    asked = SimpleNamespace(kind="asked", first=None, options=SimpleNamespace(further={}))
    said = []
    for condition in (learned, rounded, older, asked):
        task = SimpleNamespace(searches=None, leak=None)
        run: Any = SimpleNamespace(
            task=lambda _, task=task: task, result=SimpleNamespace(condition=condition)
        )
        said.append(cost_of(run, "t"))
    spent = "20 steps, 160 passes, 3 s"
    assert said == [spent, spent, "20 steps", "one answer each"]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_has_every_row_and_fits(found: list[Attack], width: int) -> None:
    shown = attack_table(found, width)
    assert max(map(len, shown.splitlines())) <= width
    for each in found:
        assert f"{each.row.quantized:.1f}" in shown
    assert shown.count("relearn-20") == 2
    assert "made_knowmem_f: before 12.5; the target 87.5, the retrained 12.5" in shown


def test_the_plot_is_drawn(found: list[Attack], tmp_path: Path) -> None:
    plot_attacks(tmp_path / "a.svg", found)
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").count("made_knowmem_f") >= 3
    with pytest.raises(OptionError, match=r"use a file ending in \.png, \.svg or \.pdf"):
        plot_attacks(tmp_path / "a.what", found)
    with pytest.raises(OptionError, match="cannot be written"):
        plot_attacks(tmp_path / "none" / "a.png", found)


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_names_conditions_that_there_are(suite: str) -> None:
    specs = resolve(SUITES[suite].split(","))
    assert [spec.name for spec in specs] == SUITES[suite].split(","), "in full, so that rows match"


@pytest.mark.slow
@pytest.mark.ci
def test_the_command_runs_all_three_and_goes_on(
    toy: Toy,
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = [str(make_checkpoint(name, seed=i)) for i, name in enumerate("utr")]
    command = ["attack", "--model", models[0], "--target", models[1], "--retrained", models[2]]
    command += ["--tasks", "toy_knowmem_f", "--conditions", "rtn-int4,hints-1,sample-2"]
    command += ["--data-dir", str(toy.data), "--include-path", str(toy.tasks)]
    command += ["--output", str(tmp_path / "out"), "--plot", str(tmp_path / "plot.png")]
    assert call(*command) == 0
    first = capsys.readouterr().out
    for name in ("rtn-int4", "hints-1", "sample-2"):
        assert name in first
        assert len(list((tmp_path / "out").glob(f"*/{name}/run.json"))) == 3
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    other = ["--tasks", "toy_verbmem", "--conditions", "rtn-int4"]
    assert call(*command[:7], *other, *command[11:]) == 0, "more tasks in some of the folders"
    capsys.readouterr()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/*/samples/*")}
    assert call(*command) == 0
    assert capsys.readouterr().out == first
    assert {p: p.stat().st_mtime_ns for p in before} == before, "nothing was computed again"
    assert call(*command[:7], "--tasks", "toy_knowmem_f", "--conditions", "none") == 2
    assert "name one beside none" in capsys.readouterr().err
