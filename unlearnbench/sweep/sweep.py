"""A whole sweep: read the file, expand it, find workers, work it off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import OptionError
from unlearnbench.sweep.cluster import RayPool, connected, living_nodes
from unlearnbench.sweep.engine import Engine, Tally
from unlearnbench.sweep.graph import Plan, expand
from unlearnbench.sweep.home import require_answer
from unlearnbench.sweep.record import opened
from unlearnbench.sweep.resources import require_room
from unlearnbench.sweep.spec import read_sweep
from unlearnbench.util.validation import YamlFile


@dataclass(frozen=True)
class SweepRequest:
    """A sweep that was read and can be begun."""

    plan: Plan
    file: YamlFile
    address: str | None = None
    cores: int | None = None


def prepare(path: Path, address: str | None = None, cores: int | None = None) -> SweepRequest:
    """Read and expand a file.

    address: of a running Ray cluster. cores: of a local one; None: all that the machine has.

    Raises:
        OptionError, TaskError: as ``read_sweep`` and ``expand``; or a job asks for more than this
            machine has, where it is to run here; or a board of somebody else is in the way.
    """
    if address is not None and cores is not None:
        raise OptionError("--address names a cluster, and --local starts one; give one of them")
    sweep, file = read_sweep(path)
    asked = SweepRequest(expand(sweep, file), file, address, cores)
    home = asked.plan.home
    require_answer(home)
    if home.holds("board") and not home.holds("sweep"):
        raise OptionError(f"{file.where('output')}: {home.where} holds a board that no sweep made")
    if address is None:
        require_room(asked.plan.demands, [_this_machine(cores)], file)
    return asked


def _this_machine(cores: int | None) -> Mapping[str, float]:
    import psutil

    # GPUs are Ray's to count: it knows more kinds than torch does.
    here = {"CPU": float(cores or os.cpu_count() or 1), "GPU": float("inf")}
    return here | {"memory": float(psutil.virtual_memory().total)}


def run_sweep(asked: SweepRequest, show: Callable[[Tally, str], None]) -> Tally:
    """Do everything that is not done yet; what could not be done is in the result.

    Raises:
        OptionError: no workers, or none that could do a job.
        InUseError: another sweep is running in the folder.
        OutputError: the record cannot be written.
    """
    facts = {"file": str(asked.file.path), "started": round(time.time())}
    with opened(asked.plan, facts) as record, connected(asked.address, asked.cores) as ray:
        require_room(asked.plan.demands, living_nodes(ray), asked.file)
        pool = RayPool(ray, asked.plan, record.key)
        try:
            return Engine(asked.plan, pool, record, show).run()
        finally:
            pool.stop()
