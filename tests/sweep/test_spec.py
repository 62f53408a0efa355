from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.sweep.files import sweep_file
from unlearnbench.errors import OptionError
from unlearnbench.sweep.spec import read_sweep


def test_a_file_is_read_with_full_names_and_full_precision_first(tmp_path: Path) -> None:
    changes = {
        "resources": {"memory": "1.5GiB", "gpus": 0.5, "cpus": 0.33333},
        "conditions": ["4bit", "none"],
    }
    sweep, _ = read_sweep(sweep_file(tmp_path, **changes))
    assert sweep.conditions == ("none", "bnb-fp4")
    assert (sweep.resources.memory, sweep.resources.gpus) == (1610612736, 0.5)
    assert sweep.resources.cpus == 0.3333  # Ray refuses more digits
    assert sweep.checkpoints[0].path == str(tmp_path / "models/*")


RECIPE = {"method": "ga", "base": "target", "forget": "f.jsonl"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"tusks": ["a"]}, r":13: unknown key 'tusks'"),
    ({"resources": {"cpu": 1}}, r":14: unknown key 'resources.cpu'"),
    ({"checkpoints": [{"path": "a", "nam": "b"}]}, r":4: unknown key 'checkpoints.0.nam'"),
    ({"tasks": None}, "key 'tasks' is missing"),
    ({"tasks": None, "taskz": ["a"]}, ":10: unknown key 'taskz', and 'tasks' is missing"),
    ({"checkpoints": []}, ":2: checkpoints"),
    ({"checkpoints": [{"name": "a"}]}, "give a path, or a method"),
    (
        {"checkpoints": [{"path": "a", "method": "ga"}]},
        ":3: checkpoints.0: give a path, or a method",
    ),
    ({"checkpoints": [{**RECIPE, "base": []}]}, "base: is missing"),
    ({"checkpoints": [{**RECIPE, "forget": []}]}, "forget: is missing"),
    ({"checkpoints": [{**RECIPE, "method": "finetune"}]}, "data: is missing"),
    ({"checkpoints": [{**RECIPE, "method": ["finetune", "ga"]}]}, "finetune stands alone"),
    ({"checkpoints": [{**RECIPE, "name": "../up"}]}, "name"),
    ({"resources": {"memory": "much"}}, ":14: resources.memory: use a size"),
    ({"resources": {"gpus": 1.5}}, "gpus: above 1 it is a whole number"),
    ({"resources": {"memory": int("9" * 400)}}, "use a size"),
    ({"resources": {"cpus": 0}}, "greater than or equal to 0.01"),
    ({"output": "a\0b"}, ":1: output"),
    ({"options": {"limit": -1}}, ":13: options: --limit"),
    ({"options": {"trust_remote_code": True}}, "options.trust_remote_code: cannot be set"),
    ({"options": {"output": "x"}}, "options.output: is the sweep's own"),
    ({"conditions": ["nf3"]}, "nf3"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=lambda part: str(part)[:40])
def test_what_is_wrong_is_said_with_its_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = sweep_file(tmp_path, **changes)
    with pytest.raises(OptionError, match=said) as error:
        read_sweep(path)
    assert str(error.value).startswith(f"{path}:")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        read_sweep(tmp_path / "none.yaml")
