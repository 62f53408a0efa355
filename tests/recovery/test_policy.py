from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from tests.cli.test_main import call
from tests.recovery.test_compare import edit, folder, references
from tests.toy_runs import Bench, Skill, few_draws, read_json, weak_at_4_bits
from unlearnbench.recovery.policy import Finding, exit_status
from unlearnbench.recovery.reports import github_annotations, junit, summary

N = 100
POLICY = """\
tasks: [made_*]
precisions: [none, int8, int4]
max_recovered: 0.3
max_excess: 15
max_privleak: 60
min_utility: 0.5
"""


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> Iterator[None]:
    with few_draws():
        yield


def _skill(forget: float, retain: float, gap: float) -> Skill:
    return Skill.of(forget, retain, gap, n=N)


_KNOWS, _NEVER, _HIDES = _skill(0.9, 0.9, 4), _skill(0.15, 0.9, 0), _skill(0.1, 0.85, -0.2)
SKILLS = {
    "target": {"none": _KNOWS, "int8": _KNOWS, "int4": _skill(0.85, 0.85, 3.5)},
    "retrained": {"none": _NEVER, "int8": _NEVER, "int4": _skill(0.14, 0.87, 0.02)},
    "ga_gdr": {"none": _HIDES, "int8": _HIDES, "int4": _skill(0.7, 0.85, 3)},
    "close": {"none": _skill(0.27, 0.9, 0), "int8": _skill(0.27, 0.9, 0), "int4": _NEVER},
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("check"), n=N)
    for name, skills in SKILLS.items():
        made.model(name, **skills)
    return made


def check(bench: Bench, name: str, policy: str, *more: str) -> int:
    file = bench.out.parent / "policy.yaml"
    file.write_text(policy, encoding="utf-8")
    ends = ["--policy", str(file), *references(bench), *more]
    return call("check", str(folder(bench, name)), *ends)


def test_the_retrained_model_passes(bench: Bench) -> None:
    assert check(bench, "retrained", POLICY) == 0


def test_the_target_fails(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(bench, "target", POLICY) == 1
    out = capsys.readouterr().out
    assert "had not forgotten" in out
    assert "unlearnbench repair" not in out
    assert out.splitlines()[-1] == "FAIL"


def test_where_the_target_itself_forgets_nothing_is_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = "tasks: [made_knowmem_f]\nprecisions: [none, int8, int4]\nmax_recovered: 0.3\n"
    assert check(weak_at_4_bits(tmp_path), "npo", policy) == 2
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "rtn-int4" in line]
    assert (
        "the target itself knows too little at this precision: 25.0, in full precision 87.5" in line
    )


def test_what_comes_back_fails_at_int4_only(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(bench, "ga_gdr", POLICY) == 1
    said = capsys.readouterr().out.splitlines()
    failed = [line for line in said if " fail " in line]
    assert failed
    assert all("rtn-int4" in line for line in failed)
    (advice,) = [line for line in said if "unlearnbench repair" in line]
    assert "--for rtn-int4 --out" in advice
    rules = {word for line in failed for word in line.split() if word.startswith("max_")}
    assert rules == {"max_recovered", "max_excess", "max_privleak"}
    assert check(bench, "ga_gdr", POLICY.replace("none, int8, int4", "none, int8")) == 0


def test_an_interval_over_the_limit_decides_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = "tasks: [made_knowmem_f]\nprecisions: [none]\nmax_excess: 12\n"
    assert check(bench, "close", policy) == 2
    assert "more samples would narrow it" in capsys.readouterr().out
    assert check(bench, "close", policy.replace("12", "30")) == 0
    assert check(bench, "close", policy.replace("12", "1")) == 1


def test_confidence_moves_the_bounds(bench: Bench) -> None:
    policy = "tasks: [made_knowmem_f]\nprecisions: [none]\nmax_excess: 19\nconfidence: "
    found = [check(bench, "close", policy + level) for level in ("0.5", "0.999")]
    assert found == [0, 2]


def test_too_few_samples_decide_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(bench, "retrained", POLICY + "min_samples: 101\n") == 2
    assert "100 samples, the policy asks for 101" in capsys.readouterr().out


def test_junit_summary_and_annotations(
    bench: Bench,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    xml, md = tmp_path / "j.xml", tmp_path / "s.md"
    md.write_text("before\n", encoding="utf-8")
    assert check(bench, "ga_gdr", POLICY, "--junit", str(xml), "--summary", str(md)) == 1
    suite = ElementTree.parse(xml).getroot()
    failures = suite.findall("testcase/failure")
    assert len(failures) == int(suite.attrib["failures"]) == 4
    assert len(suite.findall("testcase")) == int(suite.attrib["tests"])
    assert md.read_text(encoding="utf-8").startswith("before\n### unlearnbench check")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("::error title=ga_gdr") for line in lines) == 4


def hostile() -> Finding:
    bad = "a|b<script>`x`\n::error::%0A\x1b[0m\u202e[l](javascript:1)"
    return Finding(bad, bad, "int4", "max_excess 5", "fail", bad)


def test_hostile_names_are_inert() -> None:
    found = [hostile()]
    suite = ElementTree.fromstring(junit(found))
    assert suite.find("testcase/failure") is not None
    (row,) = summary(found).splitlines()[4:]
    assert row.count("|") == 4
    assert not set(row[2:-2].replace(" | ", "")) & set("<>`[]*|")
    (line,) = github_annotations(found)
    assert line.count("::") - line.split("::", 2)[2].count("::") == 2
    assert "\n" not in line
    assert "\x1b" not in line
    assert "%250A" in line


def test_exit_status_prefers_a_failure() -> None:
    def finding(outcome: Any) -> Finding:
        return Finding("e", "t", "q", "r", outcome, "")

    assert exit_status([finding("pass")]) == 0
    assert exit_status([finding("pass"), finding("not decided")]) == 2
    assert exit_status([finding("not decided"), finding("fail")]) == 1


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("tasks: [x]\nprecisions: [none]\nmax_excess: 5\n", "has no task x"),
        ("tasks: [made_*]\nprecisions: [nf4]\nmax_excess: 5\n", "has no run at bnb-nf4"),
        ("tasks: [made_*]\nprecisions: [none]\n", "no rule"),
        ("tasks: []\nprecisions: [none]\nmax_excess: 5\n", "policy.yaml:1: tasks"),
        ("tasks: [a]\nprecisions: [none]\nmax_exces: 5\n", "policy.yaml:3: unknown key"),
        ("tasks: [a]\nprecisions: [none]\nmax_excess: .nan\n", "policy.yaml:3: max_excess"),
        ("tasks: [a]\nprecisions: [none]\nmax_excess: -1\n", "policy.yaml:3: max_excess"),
        ("tasks: [a]\nprecisions: [none]\nmax_excess: 1\nconfidence: 1\n", "policy.yaml:4"),
        ("precisions: [none]\nmax_excess: 1\n", "'tasks' is missing"),
        ("tasks: [made_privleak]\nprecisions: [none]\nmax_excess: 5\n", "max_excess fits nothing"),
        (
            "tasks: [made_*]\nprecisions: [none]\nmax_excess: 5\nmax_recovered: 0.2\n",
            "max_recovered fits nothing of ga_gdr",
        ),
        (
            "tasks: ['*_f']\nprecisions: [none]\nmax_excess: 5\nmax_privleak: 9\n",
            "max_privleak fits nothing of ga_gdr, made_knowmem_f at none, so it was not checked",
        ),
        ("- a\n", "expected `key: value`"),
    ],
)
def test_bad_policies_are_one_line_and_exit_2(
    bench: Bench, capsys: pytest.CaptureFixture[str], policy: str, words: str
) -> None:
    assert check(bench, "ga_gdr", policy) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def of_format_1(content: dict[str, Any]) -> dict[str, Any]:
    old = {("precisions" if k == "conditions" else k): v for k, v in content.items()}
    old["evidence"] = [
        {("precision" if k == "condition" else k): v for k, v in part.items()}
        for part in content["evidence"]
    ]
    return old | {"format_version": 1}


def test_a_certificate_is_written_on_a_pass_and_verified(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "certificate.json"
    assert check(bench, "retrained", POLICY, "--certify", str(file)) == 0
    content = read_json(file)
    assert isinstance(content, dict)
    assert content["conditions"] == ["none", "rtn-int8", "rtn-int4"]
    assert content["epsilon"] == 15
    assert len(content["evidence"]) == (3 + 3 + 1) * 3
    run = folder(bench, "retrained")
    again = ["check", str(run), *references(bench), "--verify-certificate", str(file)]
    assert call(*again) == 0
    old = tmp_path / "format_1.json"
    old.write_text(json.dumps(of_format_1(content)), encoding="utf-8")
    assert call(*again[:-1], str(old)) == 0
    for key, value, words in [
        ("weights_sha256", "0" * 64, "weights_sha256 differs"),
        ("epsilon", 5.0, "epsilon differs"),
    ]:
        forged = tmp_path / "forged.json"
        forged.write_text(json.dumps(content | {key: value}), encoding="utf-8")
        assert call(*again[:-1], str(forged)) == 2, words
    content["evidence"][0]["records_sha256"] = "0" * 64
    forged.write_text(json.dumps(content), encoding="utf-8")
    assert call(*again[:-1], str(forged)) == 2


def test_a_certificate_knows_a_tokenizer_by_what_it_does(bench: Bench, tmp_path: Path) -> None:
    """Of runs made again with the tokenizer saved anew; an older certificate knows its content."""
    for name in ("target", "retrained"):
        for run in Path(shutil.copytree(folder(bench, name), tmp_path / name)).iterdir():
            edit(run, "checkpoint", "tokenizer_probe_sha256", value="a" * 64)
    retrained = str(tmp_path / "retrained")
    ends = ["--target", str(tmp_path / "target"), "--retrained", retrained]
    file, policy = tmp_path / "certificate.json", tmp_path / "policy.yaml"
    policy.write_text(POLICY, encoding="utf-8")
    asked = ["check", retrained, *ends]
    assert call(*asked, "--policy", str(policy), "--certify", str(file)) == 0
    content = read_json(file)
    assert isinstance(content, dict)
    assert content["tokenizer_probe_sha256"] == "a" * 64
    cases: dict[str, tuple[dict[str, object], int]] = {
        "saved anew": ({"tokenizer_sha256": "0" * 64}, 0),
        "another": ({"tokenizer_probe_sha256": "0" * 64}, 2),
        "older": ({"tokenizer_probe_sha256": None}, 0),
        "older, another": ({"tokenizer_probe_sha256": None, "tokenizer_sha256": "0" * 64}, 2),
    }
    for name, (changes, status) in cases.items():
        stated = {k: v for k, v in (content | changes).items() if v is not None}
        file.write_text(json.dumps(stated), encoding="utf-8")
        assert call(*asked, "--verify-certificate", str(file)) == status, name


def test_other_runs_do_not_verify(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "certificate.json"
    assert check(bench, "retrained", POLICY, "--certify", str(file)) == 0
    copy = shutil.copytree(folder(bench, "retrained"), tmp_path / "copy")
    for run in copy.iterdir():
        edit(run, "checkpoint", "weights_sha256", value="1" * 64)
    again = [*references(bench), "--verify-certificate", str(file)]
    assert call("check", str(copy), *again) in (1, 2)
    assert call("check", str(folder(bench, "ga_gdr")), *again) == 1
    capsys.readouterr()


def test_no_certificate_without_a_pass_or_a_whole_policy(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "certificate.json"
    assert check(bench, "target", POLICY, "--certify", str(file)) == 1
    assert not file.exists()
    partial = POLICY.replace("max_privleak: 60\n", "")
    assert check(bench, "retrained", partial, "--certify", str(file)) == 2
    assert "durable needs max_privleak" in capsys.readouterr().err
    for tasks, words in [
        ("[made_knowmem_r]", "max_excess fits nothing"),
        ("[made_knowmem_r, made_privleak]", "max_excess fits nothing"),
    ]:
        narrow = POLICY.replace("tasks: [made_*]", f"tasks: {tasks}")
        assert narrow != POLICY
        assert check(bench, "retrained", narrow, "--certify", str(file)) == 2
        assert words in capsys.readouterr().err
    assert not file.exists()


def test_no_certificate_where_a_forget_task_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Bench(tmp_path, n=100)
    text = (made.tasks / "made_knowmem_f.yaml").read_text(encoding="utf-8")
    other = text.replace("made_knowmem_f", "made_more_f")
    (made.tasks / "made_more_f.yaml").write_text(other, encoding="utf-8")
    knows, hides = Skill.of(0.9, 0.8, 4.0, n=100), Skill.of(0.1, 0.8, 0.1, n=100)
    for name, skill in (("target", knows), ("retrained", hides)):
        made.model(name, none=skill, int8=skill, int4=skill)
    narrow = POLICY.replace("[made_*]", "['made_knowmem_*', made_privleak]")
    assert narrow != POLICY
    file = tmp_path / "c.json"
    assert check(made, "retrained", narrow) == 0
    assert check(made, "retrained", narrow, "--certify", str(file)) == 2
    assert "the policy's tasks leave out made_more_f" in capsys.readouterr().err
    assert not file.exists()
    assert check(made, "retrained", POLICY, "--certify", str(file)) == 0


@pytest.mark.parametrize(
    ("precisions", "runs", "words"),
    [
        ("[none]", ("none",), "durable needs a quantized precision"),
        ("[none]", ("none", "rtn-int4"), "leave out rtn-int4, which was evaluated"),
        ("[none, int8]", ("none", "rtn-int8", "rtn-int4"), "leave out rtn-int4"),
    ],
)
def test_no_certificate_beside_a_condition_that_is_left_out(
    bench: Bench,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    precisions: str,
    runs: tuple[str, ...],
    words: str,
) -> None:
    """ga_gdr is near the retrained model but at int4, where it fails the same policy."""
    policy, file = tmp_path / "policy.yaml", tmp_path / "c.json"
    text = POLICY.replace("[none, int8, int4]", precisions)
    policy.write_text(text.replace("max_recovered: 0.3\n", ""), encoding="utf-8")
    given = [str(folder(bench, "ga_gdr") / run) for run in runs]
    ends = ["--policy", str(policy), *references(bench)]
    assert call("check", *given, *ends) == 0
    assert call("check", *given, *ends, "--certify", str(file)) == 2
    assert words in capsys.readouterr().err
    assert not file.exists()


def test_a_pruned_model_is_no_quantized_one(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = shutil.copytree(folder(bench, "ga_gdr"), tmp_path / "ga_gdr")
    shutil.rmtree(found / "rtn-int4")
    edit(found / "rtn-int8", "condition", "kind", value="pruned")
    policy, file = tmp_path / "policy.yaml", tmp_path / "c.json"
    text = POLICY.replace("[none, int8, int4]", "[none, int8]")
    policy.write_text(text.replace("max_recovered: 0.3\n", ""), encoding="utf-8")
    ends = ["--policy", str(policy), *references(bench), "--certify", str(file)]
    assert call("check", str(found), *ends) == 2
    assert "durable needs a quantized precision" in capsys.readouterr().err


def test_what_was_not_forgotten_is_decided_by_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 points below the target of 24 questions: fewer than 5, and the interval says up to 20."""
    few = Bench(tmp_path, n=24)
    knows, less = Skill.of(0.9, 0.9, 4, n=24), Skill.of(0.87, 0.9, 4, n=24, seed=1)
    few.model("target", none=knows, int4=knows)
    few.model("retrained", none=Skill.of(0.1, 0.9, 0, n=24))
    few.model("near", none=less, int4=less)
    policy = "tasks: [made_knowmem_f]\nprecisions: [none, int4]\nmax_recovered: 0.3\n"
    assert check(few, "near", policy) == 2
    out = capsys.readouterr().out
    assert "had not forgotten" in out
    assert "reaches over the limit" in out
    assert check(few, "target", policy) == 1, "of the target itself there is no doubt"
    assert check(few, "target", policy + "min_samples: 25\n") == 2
    assert "24 samples, the policy asks for 25" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format_version": 2}'])
def test_a_broken_certificate_is_refused(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = tmp_path / "c.json"
    file.write_text(text, encoding="utf-8")
    ends = [*references(bench), "--verify-certificate", str(file)]
    assert call("check", str(folder(bench, "retrained")), *ends) == 2
    said = "is no certificate" if text else "is no valid JSON"
    assert f"{file} {said}: " in capsys.readouterr().err


ROOT = Path(__file__).resolve().parents[2]


def action_script(inputs: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The action's steps after the installation, as one script, and their environment."""
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    values = {name: spec.get("default") for name, spec in action["inputs"].items()} | inputs
    assert None not in values.values()
    env, lines = {}, ["set -eo pipefail"]
    for step in action["runs"]["steps"][1:]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]
        for name, text in step["env"].items():
            assert text.startswith("${{ inputs.")
            env[name] = values[text.removeprefix("${{ inputs.").removesuffix(" }}")]
        lines.append(step["run"])
    return "\n".join(lines), env


def run_action(bench: Bench, tmp_path: Path, inputs: dict[str, str]) -> tuple[int, str]:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY, encoding="utf-8")
    target, retrained = folder(bench, "target"), folder(bench, "retrained")
    ends = {"policy": policy, "target": target, "retrained": retrained, "junit": tmp_path / "j.xml"}
    return run_steps(tmp_path, {k: str(v) for k, v in ends.items()} | inputs)


def run_steps(tmp_path: Path, inputs: dict[str, str]) -> tuple[int, str]:
    """The action on a machine of its own; returns its status and what it printed."""
    script, env = action_script(inputs)
    program = tmp_path / "bin" / "unlearnbench"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m unlearnbench "$@"\n')
    program.chmod(0o755)
    env |= {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        "GITHUB_ACTIONS": "true",
    }
    done = subprocess.run(
        ["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


@pytest.mark.slow
@pytest.mark.ci
def test_the_actions_steps_gate_runs(bench: Bench, tmp_path: Path) -> None:
    """What passes is in the next test."""
    status, out = run_action(bench, tmp_path, {"runs": str(folder(bench, "target"))})
    assert status == 1
    assert "::error title=" in out
    assert (tmp_path / "summary.md").is_file()


@pytest.mark.slow
@pytest.mark.ci
def test_the_actions_steps_evaluate_a_checkpoint_first(
    bench: Bench, tmp_path: Path, tiny: Path
) -> None:
    """A checkpoint with random weights, against a retrained model with the same tokenizer."""
    common = f"--data-dir {bench.data} --include-path {bench.tasks} --limit 3"
    retrained = tmp_path / "retrained"
    base = ["--model", str(tiny), "--tasks", "made_knowmem_f", "--output", str(retrained)]
    assert call(*base, *common.split()) == 0
    (tmp_path / "p.yaml").write_text(
        "tasks: [made_knowmem_f]\nprecisions: [none]\nmax_excess: 5\n", encoding="utf-8"
    )
    inputs = {
        "model": str(tiny),
        "quant": "none",
        "tasks": "made_knowmem_f",
        "options": common,
        "policy": "p.yaml",
        "target": str(retrained),
        "retrained": str(retrained),
    }
    status, out = run_action(bench, tmp_path, inputs)
    assert (status, out.splitlines()[-1]) == (0, "pass")


def test_the_example_workflow_gives_inputs_that_exist() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    example = yaml.safe_load((ROOT / "docs/example-workflow.yml").read_text(encoding="utf-8"))
    given = example["jobs"]["check"]["steps"][-1]["with"]
    assert set(given) <= set(action["inputs"])
    needed = {name for name, spec in action["inputs"].items() if spec.get("required")}
    assert needed <= set(given)
