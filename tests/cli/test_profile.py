"""Where time goes: shares that add up, every kind found, and results as without the option."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unlearnbench.cli import main as command_line
from unlearnbench.cli import profile
from unlearnbench.errors import OptionError
from unlearnbench.models.hf import HFModel
from unlearnbench.runs.folder import RunFolder


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as stop:
        command_line([*arguments])
    return stop.value.code


def event(name: str, own: float, parent: Any = None, thread: int = 1) -> Any:
    return SimpleNamespace(
        name=name, self_cpu_time_total=own * 1e6, cpu_parent=parent, thread=thread
    )


def test_shares_are_by_the_innermost_stage_and_add_up() -> None:
    loading = event("unlearnbench: loading", 2.0)
    proof = event("unlearnbench: proof", 1.0, loading)
    head = event("unlearnbench: head", 0.25)
    linear = event("aten::linear", 0.5)
    attention = event("aten::scaled_dot_product_attention", 0.25)
    events = [
        *(loading, proof, head, linear, attention),
        event("aten::sort", 0.5, proof),
        event("aten::mm", 4.0, linear),
        event("aten::mm", 2.0, head),
        event("mkldnn::_linear_pointwise", 1.0),
        event("aten::bmm", 1.0, attention),
        event("aten::add", 0.5),
        event("unlearnbench: metrics", 7.0, thread=2),  # beside the model: takes no time of its own
        event("unlearnbench: uncounted", 3.0),
    ]
    found = profile.shares(events, 20.0)
    assert sum(found.values()) == pytest.approx(17.0)
    assert found == {
        **{"products": 5.5, "the rest (imports, Python, files)": 4.0, "head": 2.25},
        **{"loading": 2.0, "proof": 1.5, "attention": 1.25, "other operations": 0.5},
        **{"tokenizing": 0.0, "metrics": 0.0},
    }
    table = profile.summary(found, 1.7, Path("out/trace.json"))
    assert "products takes the most, 32%; all of it is 10 times the floor." in table
    assert max(map(len, table.splitlines())) <= 100
    assert "no model was asked anything" in profile.summary(found, 0.0, Path("t"))


def test_a_run_is_shared_out_and_stays_the_same(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[dict[str, float]] = []
    shares, methods = profile.shares, {n: getattr(HFModel, n) for n in ("generate", "score")}

    def noted(events: Any, seconds: float) -> dict[str, float]:
        seen.append(shares(events, seconds))
        return seen[-1]

    monkeypatch.setattr(profile, "shares", noted)
    asked = ["--model", str(tiny), "--tasks", "demo_verbmem,demo_privleak", "--limit", "2"]
    for name, more in (("plain", ()), ("watched", ("--profile",))):
        out = ["--output", str(tmp_path / name), "--quant", "rtn-int4", "--device", "cpu"]
        assert run(*asked, *out, *more) == 0
    said = capsys.readouterr().out
    (found,) = seen
    assert {kind for kind in profile.KINDS if not found[kind] > 0} == set()
    assert all(value >= 0 for value in found.values())
    printed = [float(x) for x in re.findall(r"\| +([0-9.]+)% +\|", said)]
    assert sum(printed[:-2]) == pytest.approx(100, abs=0.06 * len(found))
    assert printed[-2] == 100
    assert "times the floor. Trace: " in said
    trace = json.loads((tmp_path / "watched" / "trace.json").read_bytes())
    names = {each.get("name") for each in trace["traceEvents"]}
    assert {f"unlearnbench: {kind}" for kind in profile.KINDS[2:]} <= names
    for path in (tmp_path / "plain").rglob("*.jsonl"):
        other = tmp_path / "watched" / path.relative_to(tmp_path / "plain")
        assert other.read_bytes() == path.read_bytes()
    plain, watched = (
        RunFolder(next((tmp_path / name).rglob("run.json")).parent).read()
        for name in ("plain", "watched")
    )
    assert plain is not None
    assert watched is not None
    assert plain.tasks == watched.tasks
    assert {n: getattr(HFModel, n) for n in methods} == methods


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_trace_that_cannot_be_written_is_one_line(
    tiny: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if what == "file":
        out.write_text("")
    else:
        (out / "trace.json").mkdir(parents=True)
    asked = ["--model", str(tiny), "--tasks", "demo_verbmem", "--device", "cpu", "--profile"]
    assert run(*asked, "--output", str(out)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "use another --output" in line


@pytest.mark.parametrize("earlier", [b"", b"[1]"])
def test_a_run_that_fails_leaves_no_empty_trace_and_keeps_an_earlier_one(
    tiny: Path, tmp_path: Path, earlier: bytes
) -> None:
    trace = tmp_path / "trace.json"
    if earlier:
        trace.write_bytes(earlier)
    asked = ["--model", str(tiny), "--tasks", "demo_verbmem", "--device", "cpu", "--profile"]
    assert run(*asked, "--quant", "none,none", "--limit", "0", "--output", str(tmp_path)) == 2
    assert (trace.read_bytes() if trace.exists() else b"") == earlier
    assert trace.exists() == bool(earlier)
    with pytest.raises(KeyError), profile.profiling(tmp_path, "cpu"):
        raise KeyError
    assert trace.exists() == bool(earlier)


def test_one_process_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "process_count", lambda: 2)
    with (
        pytest.raises(OptionError, match="one process"),
        profile.profiling(tmp_path, "cpu"),
    ):
        pass
