"""``unlearnbench quants``: the list, its JSON, and the proof of one checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unlearnbench import conditions
from unlearnbench.cli.main import run


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert run(["quants", "--json", *arguments]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_every_precision_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys)
    families = [row for row in rows if row["name"] not in conditions.precisions()]
    rows = rows[: len(rows) - len(families)]
    assert [row["name"] for row in rows] == list(conditions.precisions())
    names = {"CHANGE+PRECISION", "merge-A", "noise-L", "prune-magnitude-S", "prune-wanda-S"}
    names |= {
        "deployed:SCHEME",
        "relearn-N",
        "prefix-N",
        "hints-K",
        "sample-N",
        "suffix-N",
        "embedding-N",
    }
    assert {row["name"] for row in families} == names
    for row in rows:
        assert row["install"].startswith("pip install ")
        assert row["scheme"]
        assert row["available"] == (row["reason"] is None)
        if row["bits"] is not None:
            assert row["bits"] <= row["bits_per_weight"] < row["bits"] + 1.3
    named = {alias: row["name"] for row in rows for alias in row["aliases"]}
    assert named == conditions.ALIASES


def test_the_names_of_the_issue_are_there() -> None:
    rtn = {
        f"rtn-int{bits}{group}{asym}"
        for bits in (8, 6, 5, 4, 3, 2)
        for group in ("", "-g32", "-g64", "-g128")
        for asym in ("", "-asym")
    }
    others = {
        *("none", "fp32", "bf16", "fp16"),
        *("bnb-int8", "bnb-nf4", "bnb-fp4", "bnb-nf4-dq", "bnb-fp4-dq"),
        *("gptq-int4-g64", "gptq-int4-g128", "gptq-int8-g64", "gptq-int8-g128"),
        *("gptq-int3-g64", "gptq-int3-g128", "hqq-int8-g64", "hqq-int3-g64", "hqq-int2-g64"),
        *("fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-b128", "fp8-e4m3-dynamic", "int8-w8a8"),
        *("mxfp8", "mxfp4", "nvfp4", "kv-int8", "kv-int4"),
        *("awq-int4-g64", "awq-int4-g128", "hqq-int4-g64"),
        *("auto-round-int4-g32", "auto-round-int4-g64", "auto-round-int4-g128"),
        *("quanto-int8", "quanto-int4", "torchao-int8"),
        *("gguf-q8_0", "gguf-q5_1", "gguf-q4_1", "gguf-q4_0"),
    }
    files = [
        *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"),
        *("iq4_nl", "iq4_xs"),
    ]
    others |= {f"gguf-{file}{weighed}" for file in files for weighed in ("", "-imat")}
    assert set(conditions.precisions()) == rtn | others


def test_precisions_stand_in_groups(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    groups = {row["name"]: row["group"] for row in listed(capsys)}
    expected = {
        **{"none": "as stored", "rtn-int4": "textbook", "bnb-nf4": "textbook"},
        **{"hqq-int3-g64": "textbook", "awq-int4-g64": "calibrated", "gptq-int3-g64": "calibrated"},
        **{"gguf-q4_0": "llama.cpp", "gguf-q4_k_m": "llama.cpp", "gguf-q4_k_m-imat": "llama.cpp"},
        **{"nvfp4": "float", "fp8-e4m3": "float", "bnb-int8": "activation"},
        **{"int8-w8a8": "activation", "fp8-e4m3-dynamic": "activation", "noise-L": "no precision"},
        **{"kv-int4": "cache", "auto-round-int4-g128": "calibrated"},
    }
    assert {name: groups[name] for name in expected} == expected
    assert run(["quants"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line.strip()[:-1] for line in lines if line.strip().endswith(":") and line[0] != " "]
    assert heads == [
        *("as stored", "textbook", "calibrated", "llama.cpp", "float", "activation"),
        *("cache", "deployed", "no precision"),
    ]
    first = lines.index(next(line for line in lines if line.startswith("float:")))
    assert lines[first + 1].startswith("fp8-e4m3")


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [
        ("gptqmodel", "gptq-int4-g128", "gptq"),
        ("gptqmodel", "awq-int4-g64", "gptq"),
        ("optimum", "gptq-int4-g64", "gptq"),
        ("hqq", "hqq-int4-g64", "hqq"),
        ("optimum", "quanto-int4", "quanto"),
        ("torchao", "torchao-int8", "torchao"),
        ("auto_round", "auto-round-int4-g128", "auto-round"),
    ],
)
def test_what_is_missing_is_listed_with_its_reason(
    module: str,
    name: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda n, *a: None if f"{n}.".startswith(f"{module}.") else found(n, *a),
    )
    (row,) = listed(capsys, "--quant", name)
    assert row["available"] is False
    assert f"pip install 'unlearnbench[{extra}]'" in row["reason"]
    assert row["install"] == f"pip install 'unlearnbench[{extra}]'"


def test_the_list_is_whole_when_piped_and_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['unlearnbench', 'quants']\n"
        "from unlearnbench.cli.main import cli\n"
        "cli.main(['quants'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    narrow = {**os.environ, "COLUMNS": "40"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=narrow)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) == 80
    shown = {word.rstrip(",") for word in done.stdout.split()}
    for name, spec in conditions.precisions().items():
        assert name in shown
        assert {word.rstrip(",") for word in spec.scheme.split()} <= shown


def test_proof_of_a_pruned_checkpoint(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quants", "--model", str(tiny), "--quant", "prune-magnitude-30"]) == 0
    shown = capsys.readouterr().out
    assert "prune-magnitude-30: the 30% of each matrix" in shown
    assert "  weights        73,728 of 112,448 pruned" in shown
    assert "  zero_share     0.3\n" in shown


def test_proof_of_a_checkpoint(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quants", "--model", str(tiny), "--quant", "rtn-int4,bnb-nf4"]) == 0
    shown = capsys.readouterr().out
    assert "rtn-int4: uniform round-to-nearest" in shown
    assert "bnb-nf4: NF4" in shown
    assert "lm_head.weight 19,200" in shown
    assert "model.layers.*.mlp.up_proj 2" in shown
    assert "at most 15 distinct values" in shown


def test_proof_as_json(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quants", "--model", str(tiny), "--quant", "nf4,int8", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["bnb-nf4", "rtn-int8"]
    assert rows[0]["options"]["kernel"] == "dequantized"
    assert rows[0]["proof"]["compared_modules"] == 14


def test_native_kernel_where_there_is_none(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quants", "--model", str(tiny), "--quant", "int4", "--quant-kernel", "native"]
    assert run(arguments) == 2
    assert "rtn-int4 runs only dequantized" in capsys.readouterr().err


def test_calibration_from_tasks_needs_tasks(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gptqmodel")
    arguments = ["quants", "--model", str(tiny), "--quant", "gptq-int4-g64"]
    assert run([*arguments, "--calibration", "forget"]) == 2
    assert "needs tasks" in capsys.readouterr().err
