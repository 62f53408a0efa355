"""A condition is one file, found by listing the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Toy
from unlearnbench import conditions, evaluate
from unlearnbench.errors import PrecisionError
from unlearnbench.runs.folder import read_run

TOY_CONDITION = '''
"""Every linear layer but the output head times a number."""
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.proof import load_changed
from unlearnbench.errors import NotInForceError

CONDITIONS = (ConditionSpec("half", "scaled", "weights times a half", options={"factor": 0.5}),)


def load(spec, source, plan):
    factor = spec.options["factor"]

    def judge(name, now, own):
        if not now.equal((own * factor).to(now.dtype)):
            raise NotInForceError(f"{spec.name}: {name}")
        return {"factor": factor}

    return load_changed(spec, source, plan, lambda name, weight: weight * factor, judge)
'''


def test_a_condition_is_one_file(
    tiny: Path, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "halved.py").write_text(TOY_CONDITION)
    monkeypatch.setattr(conditions, "__path__", [*conditions.__path__, str(folder)])
    none, half = evaluate(str(tiny), "toy_knowmem_f", ["none", "half"], **toy.options)
    assert (half.condition.name, half.condition.kind) == ("half", "scaled")
    assert half.condition.options.further == {"factor": 0.5}
    proof = half.condition.proof
    assert proof is not None
    assert (proof.figures, proof.changed_share) == ({"factor": 0.5}, 1)
    assert proof.relative_error == pytest.approx(0.5)
    (run,) = toy.out.glob("*/half/run.json")
    assert read_run(run.parent) == half
    assert evaluate(str(tiny), "toy_knowmem_f", "half", **toy.options) == [half]
    assert none.condition.proof is not None
    assert none.condition.proof.figures is None


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("prune-magnitude-30.0", "prune-magnitude-30"),
        ("prune-magnitude-0.00001", "prune-magnitude-0.00001"),
        ("noise-05", "noise-5"),
        ("noise-0.50-seed0", "noise-0.5"),
        ("noise-5-seed07", "noise-5-seed7"),
        ("4bit", "bnb-fp4"),
        ("prefix", "prefix-1"),
        ("hints-3", "hints-3"),
    ],
)
def test_a_condition_has_one_name(typed: str, name: str) -> None:
    spec = conditions.find_condition(typed)
    assert spec.name == name
    assert conditions.find_condition(name) == spec
    assert hasattr(conditions.file_of(spec), "ask" if spec.asks else "load")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("prune-magnitude-0", "above 0 and below 100"),
        ("prune-magnitude-100", "above 0 and below 100"),
        ("prune-magnitude-", "known: prune-magnitude-S"),
        ("prune-magnitude--5", "unknown condition"),
        ("prune-30", "unknown condition"),
        ("noise-0", "above 0"),
        ("noise-1001", "1000 at most"),
        ("noise-nan", "unknown condition"),
        ("noise-5-seed", "unknown condition"),
        ("noise-٣", "unknown condition"),
        ("prefix-0", "unknown condition"),
        ("prefix-4", "there are 3 openings"),
        ("hints-0", "1 to 100 hints"),
        ("hints-101", "1 to 100 hints"),
        ("hints-03", "unknown condition"),
    ],
)
def test_a_number_out_of_bounds_is_refused(name: str, said: str) -> None:
    with pytest.raises(PrecisionError, match=said) as raised:
        conditions.find_condition(name)
    assert "\n" not in str(raised.value)
