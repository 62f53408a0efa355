from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.conftest import write_jsonl
from tests.tasks.kinds.test_answers import LOGPROBS, ROWS
from tests.tasks.kinds.test_answers import write as write_answers
from tests.toy_runs import Bench, Skill, few_draws, read_json, weak_at_4_bits
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.recovery.compare import compare, open_comparison
from unlearnbench.runs.folder import read_run
from unlearnbench.tasks.kinds.answers import MISDIRECTED

KEYS = {
    *("entry", "task", "precision", "full", "quantized", "target", "retrained", "change"),
    *("change_ci", "recovered", "recovered_ci", "retained", "utility", "verdict"),
}


_KNOWN = ("probability_normalised", "extraction_strength", "exact_memorization")
CALIBRATION = {"name": "forget", "samples": 8, "max_tokens": 64, "seed": 0, "sha256": "0" * 64}


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> Iterator[None]:
    with few_draws():
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A target, a retrained model, one that recovers at int4, one that does not."""
    made = Bench(tmp_path_factory.mktemp("bench"))
    knows = Skill.of(0.9, 0.8, 4.0)
    made.model("target", none=knows, int8=knows, int4=Skill.of(0.8, 0.7, 3.5))
    made.model("retrained", none=Skill.of(0.15, 0.8, 0.1))
    hides = Skill.of(0.1, 0.6, -1.0)
    made.model("ga_gdr", none=hides, int8=Skill.of(0.12, 0.6, -0.9), int4=Skill.of(0.7, 0.6, 3.0))
    made.model("sure", none=hides, int8=hides, int4=Skill.of(0.12, 0.55, -0.8))
    made.model("broken", none=Skill.of(0, 0.1), int4=Skill.of(0, 0.1))
    return made


def folder(bench: Bench, name: str) -> Path:
    (found,) = bench.out.glob(f"{name}-*")
    return found


def arguments(bench: Bench, *names: str) -> list[str]:
    found = list(bench.out.glob("*"))
    known = [name for name in names if any(f.name.startswith(f"{name}-") for f in found)]
    runs = [str(folder(bench, name)) for name in known]
    return ["compare", *runs, *references(bench), *(n for n in names if n not in known)]


def references(bench: Bench) -> list[str]:
    target, retrained = folder(bench, "target"), folder(bench, "retrained")
    return ["--target", str(target), "--retrained", str(retrained)]


def rows_of(
    bench: Bench, tmp_path: Path, *names: str
) -> dict[tuple[str, str, str], dict[str, Any]]:
    file = tmp_path / "recovery.json"
    assert call(*arguments(bench, *names), "--json", str(file)) == 0
    rows = read_json(file)
    assert isinstance(rows, list)
    return {(r["entry"], r["task"], r["precision"]): r for r in rows}


def test_the_table_and_its_json(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(bench, tmp_path, "ga_gdr", "sure")
    assert len(rows) == 2 * 3 * 2
    for key, row in rows.items():
        assert set(row) >= KEYS - {"recovered", "recovered_ci"}, key
        if row["want"] != "high":
            assert set(row) >= KEYS, key
    back = rows["ga_gdr", "made_knowmem_f", "rtn-int4"]
    assert back["verdict"] == "recovers"
    assert back["significant"] is True
    assert back["recovered"] == pytest.approx(
        (back["quantized"] - back["full"]) / (back["target"] - back["full"])
    )
    assert rows["ga_gdr", "made_knowmem_f", "rtn-int8"]["verdict"] == "forgets"
    assert rows["sure", "made_knowmem_f", "rtn-int4"]["verdict"] in ("forgets", "not decided")
    assert rows["ga_gdr", "made_privleak", "rtn-int4"]["verdict"] == "recovers"
    assert rows["ga_gdr", "made_knowmem_r", "rtn-int4"]["verdict"] == "holds"
    out = capsys.readouterr().out
    assert "of 2 recover at rtn-int4" in out or "1 of 2 recovers at rtn-int4" in out
    assert max(map(len, out.splitlines())) <= 100
    assert call(*arguments(bench, "ga_gdr"), "--wide") == 0
    out = capsys.readouterr().out
    assert "recovers" in out
    assert "Holm" in out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Three trainings of one recipe, and one of another."""
    made = Bench(tmp_path_factory.mktemp("trained"))
    knows = Skill.of(0.9, 0.8, 4.0)
    made.model("target", none=knows, int4=Skill.of(0.8, 0.7, 3.5))
    made.model("retrained", none=Skill.of(0.15, 0.8, 0.1))
    for seed, back in enumerate((0.5, 0.6, 0.7)):
        hides, shows = Skill.of(0.1, 0.6, -1.0), Skill.of(back, 0.6, 3.0)
        made.model(f"npo-seed{seed}", none=hides, int4=shows)
        made.train(f"npo-seed{seed}", "a" * 16, seed)
    made.model("other", none=Skill.of(0.1, 0.6, -1.0), int4=Skill.of(0.2, 0.6, 3.0))
    made.train("other", "b" * 16, 0)
    return made


def test_trainings_of_one_recipe_are_one_row(
    trained: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"npo-seed{seed}" for seed in range(3)]
    rows = rows_of(trained, tmp_path, *names, "other")
    out = capsys.readouterr().out
    assert {entry for entry, _, _ in rows} == {"npo", "other"}
    assert "npo (3 seeds)" in out
    assert re.search(r"^other  ", out, re.MULTILINE)
    alone = rows_of(trained, tmp_path, *names, "--per-seed")
    assert {entry for entry, _, _ in alone} == set(names)
    for task in ("made_knowmem_f", "made_knowmem_r", "made_privleak"):
        joined = rows["npo", task, "rtn-int4"]
        each = [alone[name, task, "rtn-int4"] for name in names]
        assert (joined["seeds"], joined["n"]) == (3, each[0]["n"])
        for figure in ("full", "quantized", "change", "excess"):
            mean = sum(row[figure] for row in each) / 3
            assert joined[figure] == pytest.approx(mean, abs=1e-9), figure
    joined = rows["npo", "made_knowmem_f", "rtn-int4"]
    narrow = alone[names[1], "made_knowmem_f", "rtn-int4"]
    widths = [row["change_ci"][1] - row["change_ci"][0] for row in (joined, narrow)]
    assert widths[0] > 1.2 * widths[1], "10 points between seeds, and Student's quantile of three"


def test_a_figure_that_does_not_say_what_was_forgotten_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TOFU's truth ratio is high for a model that forgot: a collapsed 0 would look forgotten."""
    found = write_answers(tmp_path, ROWS)
    for name in ("target", "retrained", "hides"):
        for precision in ("none", "rtn-int4"):
            model = ScriptedModel(logprobs=LOGPROBS, name=name, precision=precision)
            update = {"weights_sha256": hashlib.sha256(name.encode()).hexdigest()}
            model.checkpoint = model.checkpoint.model_copy(update=update)
            evaluate(model, "toy_answers", **found)
    runs = {f.name.rsplit("-", 1)[0]: str(f) for f in found["output"].iterdir()}
    line = ["compare", runs["hides"], "--target", runs["target"], "--retrained", runs["retrained"]]
    for figure in ("probability", *_KNOWN):
        assert call(*line, "--figure", figure) == 0
    capsys.readouterr()
    truth = ("truth_ratio", "truth_ratio_arithmetic", "truth_better", "truth_share")
    for figure in (*truth, "extraction_floor"):
        assert call(*line, "--figure", figure) == 2
        said = capsys.readouterr().err
        assert f"toy_answers: {figure} does not say by itself what is known (want: low)" in said
    assert MISDIRECTED["high"] == {"truth_ratio", "truth_ratio_arithmetic", "extraction_floor"}


def test_another_figure(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recall = rows_of(bench, tmp_path, "ga_gdr", "--figure", "rougeL_recall")
    assert {task for _, task, _ in recall} == {"made_knowmem_f", "made_knowmem_r"}
    run = read_run(folder(bench, "ga_gdr") / "rtn-int4")
    row = recall["ga_gdr", "made_knowmem_f", "rtn-int4"]
    assert row["quantized"] == pytest.approx(run.tasks["made_knowmem_f"].scores["rougeL_recall"])
    leak = rows_of(bench, tmp_path, "ga_gdr", "--figure", "Min-20%")
    assert {task for _, task, _ in leak} == {"made_privleak"}
    capsys.readouterr()
    assert call(*arguments(bench, "ga_gdr"), "--figure", "bleu") == 2
    assert "--figure bleu: no task of these runs has it" in capsys.readouterr().err


def test_values_are_those_of_the_runs(bench: Bench, tmp_path: Path) -> None:
    rows = rows_of(bench, tmp_path, "ga_gdr")
    for precision in ("rtn-int8", "rtn-int4"):
        for task in ("made_knowmem_f", "made_knowmem_r"):
            row = rows["ga_gdr", task, precision]
            for field, name, at in [
                ("full", "ga_gdr", "none"),
                ("quantized", "ga_gdr", precision),
                ("target", "target", precision),
                ("target_full", "target", "none"),
                ("retrained", "retrained", "none"),
            ]:
                run = read_run(folder(bench, name) / at)
                assert row[field] == pytest.approx(run.tasks[task].value), field
    retain = {n: read_run(folder(bench, n) / "none").tasks["made_knowmem_r"] for n in ("target",)}
    quantized = read_run(folder(bench, "ga_gdr") / "rtn-int4").tasks["made_knowmem_r"].value
    assert quantized is not None
    assert retain["target"].value is not None
    utility = quantized / retain["target"].value
    assert rows["ga_gdr", "made_privleak", "rtn-int4"]["utility"] == pytest.approx(utility)


def test_a_collapsed_model_is_called_so(bench: Bench, tmp_path: Path) -> None:
    rows = rows_of(bench, tmp_path, "broken")
    assert {row["verdict"] for row in rows.values()} == {"collapsed"}


def test_no_share_where_the_target_itself_forgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = weak_at_4_bits(tmp_path)
    rows = rows_of(weak, tmp_path, "ga_gdr", "npo")
    for name in ("ga_gdr", "npo"):
        row = rows[name, "made_knowmem_f", "rtn-int4"]
        assert row["target"] - row["full"] > 5, "there is room for a share"
        assert row["target"] < row["target_full"] / 2
        assert row["verdict"] == "target forgets"
        assert not {"recovered", "recovered_ci", "retained", "retained_ci"} & set(row)
        assert rows[name, "made_knowmem_f", "rtn-int8"]["verdict"] == "forgets"
        assert rows[name, "made_knowmem_r", "rtn-int4"]["verdict"] == "holds"
    assert "n/a: the target itself forgets there" in capsys.readouterr().out


def test_the_target_had_not_forgotten(bench: Bench, tmp_path: Path) -> None:
    rows = rows_of(bench, tmp_path, "target")
    assert rows["target", "made_knowmem_f", "rtn-int8"]["verdict"] == "had not forgotten"


def test_the_same_runs_give_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert call(*arguments(bench, "ga_gdr"), "--json", str(tmp_path / name)) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_single_run_folders_and_one_folder_of_all_are_the_same(
    bench: Bench, tmp_path: Path
) -> None:
    one = folder(bench, "ga_gdr")
    ends = folder(bench, "target"), folder(bench, "retrained") / "none"
    by_run = compare(open_comparison([one / "none", one / "rtn-int4", one / "rtn-int8"], *ends))
    assert by_run == compare(open_comparison([one], *ends))


@pytest.fixture
def copy(bench: Bench, tmp_path: Path) -> Path:
    """A copy of a model's runs that a test may spoil."""
    return shutil.copytree(folder(bench, "ga_gdr"), tmp_path / "copy")


def refused(bench: Bench, capsys: pytest.CaptureFixture[str], *runs: Path) -> str:
    ends = references(bench)
    capsys.readouterr()  # what making the runs logged, where an earlier test set the log up
    assert call("compare", *map(str, runs), *ends) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def edit(run: Path, *keys: str, value: object) -> None:
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    place = content
    for key in keys[:-1]:
        place = place[int(key) if key.isdigit() else key]
    place[keys[-1]] = value
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (["protocol"], "zhang2025", "protocol is muse there and zhang2025 here"),
        (
            ["tasks", "made_knowmem_f", "version"],
            2.0,
            "made_knowmem_f: task version is 1.0 there and 2.0",
        ),
        (["tasks", "made_knowmem_f", "data", "0", "sha256"], "0" * 64, "data of split"),
        (["tasks", "made_knowmem_f", "task_sha256"], "0" * 64, "definition is "),
        (
            ["tasks", "made_privleak", "attack"],
            "Min-20%",
            "attack is Min-40% there and Min-20% here",
        ),
        (["condition", "options", "scheme"], "uniform, other", "and uniform, other here"),
        (["condition", "options", "group_size"], 64, "rtn-int4: option group_size is"),
        (
            ["condition", "options", "calibration"],
            CALIBRATION,
            "rtn-int4: calibration name is absent there and forget here",
        ),
    ],
)
def test_what_differs_is_refused_and_named(
    bench: Bench,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
    keys: list[str],
    value: object,
    words: str,
) -> None:
    edit(copy / "rtn-int4", *keys, value=value)
    assert words in refused(bench, capsys, copy)


def test_a_checkpoint_that_is_quantized_already_is_no_full_precision(
    bench: Bench, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copy / "none", "condition", "options", "bits", value=4)
    error = refused(bench, capsys, copy)
    assert "no run in full precision: its checkpoint is quantized already" in error


def test_another_tokenizer_is_refused(
    bench: Bench, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in copy.iterdir():
        edit(run, "checkpoint", "tokenizer_sha256", value="0" * 64)
    assert "tokenizer is " in refused(bench, capsys, copy)


def test_another_sample_set_is_refused(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = Bench(tmp_path / "few", n=10)
    for precision in ("none", "int4"):
        few.model("few", **{precision: Skill.of(0.1, 0.6, n=10)})
    assert "data of split" in refused(bench, capsys, few.out)


def test_another_order_of_samples_is_refused(
    bench: Bench, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hashlib import sha256

    file = copy / "rtn-int4" / "samples" / "made_knowmem_f.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    digest = sha256(file.read_bytes()).hexdigest()
    edit(copy / "rtn-int4", "tasks", "made_knowmem_f", "records_sha256", value=digest)
    assert (
        "made_knowmem_f: number 1 of the samples is forget_qa/0 there and forget_qa/1"
        in refused(bench, capsys, copy)
    )


def test_changed_records_are_refused(
    bench: Bench, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(copy / "none" / "samples" / "made_knowmem_f.jsonl", [])
    assert "its hash differs" in refused(bench, capsys, copy)


def test_missing_runs_are_named(
    bench: Bench, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "none")
    assert "ga_gdr has no run at none" in refused(bench, capsys, copy)
    assert "nothing to compare" in refused(bench, capsys, folder(bench, "sure") / "none")
    assert "no run.json there or below" in refused(bench, capsys, tmp_path / "nowhere")
    both = [folder(bench, "sure"), folder(bench, "sure") / ".." / folder(bench, "sure").name]
    assert "both runs of one checkpoint" in refused(bench, capsys, *both)
    target = shutil.copytree(folder(bench, "target"), tmp_path / "target")
    shutil.rmtree(target / "rtn-int4")
    ends = ["--target", str(target), "--retrained", str(folder(bench, "retrained"))]
    assert call("compare", str(folder(bench, "sure")), *ends) == 2
    assert "target has no run at rtn-int4" in capsys.readouterr().err


def test_a_role_takes_one_checkpoint(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    ends = ["--target", str(bench.out), "--retrained", str(folder(bench, "retrained"))]
    assert call("compare", str(folder(bench, "sure")), *ends) == 2
    assert "holds several checkpoints" in capsys.readouterr().err


def test_a_target_that_knows_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Bench(tmp_path, n=10)
    nothing = Skill.of(0, 0, n=10)
    made.model("target", none=nothing, int4=nothing)
    made.model("retrained", none=nothing)
    made.model("sure", none=nothing, int4=nothing)
    assert call(*arguments(made, "sure")) == 2
    assert "utility is not defined" in capsys.readouterr().err


def test_hostile_names_stay_on_their_line(
    bench: Bench, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in copy.iterdir():
        edit(run, "checkpoint", "path", value="a\x1b[31m|b\u202e")
    ends = references(bench)
    capsys.readouterr()  # what making the runs logged, where an earlier test set the log up
    assert call("compare", str(copy), *ends) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\na\\x1b[31m|b\\u202e" in out


def test_help_stays_light() -> None:
    code = """
import sys
from unlearnbench.cli import main
try:
    main(["compare", "--help"])
except SystemExit:
    pass
print([m for m in ("torch", "transformers", "scipy", "matplotlib") if m in sys.modules])
"""
    start = time.monotonic()
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert out.splitlines()[-1] == "[]"
    assert time.monotonic() - start < 5  # 0.5 s on an idle machine


def warned(bench: Bench, caplog: pytest.LogCaptureFixture, *runs: Path) -> list[str]:
    target, retrained = folder(bench, "target"), folder(bench, "retrained")
    caplog.clear()
    with caplog.at_level("WARNING", "unlearnbench"):
        open_comparison(runs, target, retrained)
    return [record.getMessage() for record in caplog.records]


def test_runs_of_one_entry_share_their_compute_dtype(
    bench: Bench, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copy / "rtn-int4", "settings", "dtype", value="bf16")
    error = refused(bench, capsys, copy)
    assert f"{copy / 'none'} was made with dtype fp32 and {copy / 'rtn-int4'} with bf16" in error
    assert "--dtype" in error


def test_references_measured_otherwise_get_a_line_each(
    bench: Bench, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert warned(bench, caplog, copy) == []
    for run in copy.iterdir():
        edit(run, "settings", "dtype", value="bf16")
        edit(run, "settings", "device", value="cuda")
    for_target, for_retrained = warned(bench, caplog, copy)
    assert "otherwise than the target's" in for_target
    assert "otherwise than the retrained's" in for_retrained
    for line in (for_target, for_retrained):
        assert "compute dtype at none is fp32 there and bf16 here" in line
        assert "device is cpu there and cuda here" in line
        assert "\n" not in line


def test_tasks_measured_with_other_packages_get_a_line(
    bench: Bench, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy / "rtn-int8"
    there = read_run(run).environment.packages["numpy"]
    edit(run, "tasks", "made_privleak", "environment", "packages", "numpy", value="99")
    mixed, *others = warned(bench, caplog, copy)
    tasks = "made_knowmem_f and made_knowmem_r"
    assert mixed == f"{run}: numpy {there} for {tasks}, 99 for made_privleak"
    assert len(others) == 2, "beside its other runs, and beside the target's at rtn-int8"
    assert all(f"numpy is {there} there and 99 here" in line for line in others)
