from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweep.files import checkpoint, plan_of, sweep_file
from unlearnbench.errors import OptionError
from unlearnbench.sweep.graph import expand
from unlearnbench.sweep.resources import Demand, fits, require_room
from unlearnbench.sweep.spec import read_sweep


def test_what_a_job_takes_follows_from_the_weights(tmp_path: Path) -> None:
    big = checkpoint(tmp_path / "big", 3 * 2**20)
    changes = {"checkpoints": [str(big)], "references": None}
    (job,) = plan_of(sweep_file(tmp_path, **changes)).jobs
    assert job.demand == Demand(1, 0, 3 * 3 * 2**20 + 2**30)
    small = {"gpu_memory": "4GiB"}
    (job,) = plan_of(sweep_file(tmp_path, **changes, resources=small)).jobs
    assert job.demand.gpus == 0.375  # 1 GiB and 9 MiB of 4 GiB, in eighths
    large = {"gpu_memory": "256MiB"}
    (job,) = plan_of(sweep_file(tmp_path, **changes, resources=large)).jobs
    assert job.demand.gpus == 5
    assert job.order["options"] == {"device": "auto"}


def test_a_job_that_no_node_can_do_is_refused(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, resources={"gpus": 2, "cpus": 3})
    sweep, file = read_sweep(path)
    plan = expand(sweep, file)
    nodes = [{"CPU": 4.0, "memory": 2.0**40}, {"CPU": 2.0, "GPU": 4.0, "memory": 2.0**40}]
    with pytest.raises(OptionError, match=r"sweep.yaml:\d+: a job takes 3 cores, 2 GPUs"):
        require_room(plan.demands, nodes, file)
    require_room(plan.demands, [*nodes, {"CPU": 3.0, "GPU": 2.0, "memory": 2.0**40}], file)
    assert not fits(Demand(1, 0, 2**30), {"CPU": 1.0, "memory": 2.0**29})
