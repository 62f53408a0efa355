"""The pool of workers on Ray: a local one for this call, or a cluster that runs already.

Ray carries an order and a report, both JSON text. It is told to try nothing again by itself: the
engine counts tries.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unlearnbench.errors import OptionError, SweepError, one_line
from unlearnbench.sweep.engine import Outcome
from unlearnbench.sweep.graph import Plan, SweepJob
from unlearnbench.sweep.scratch import own_folder
from unlearnbench.sweep.store import INSTALL
from unlearnbench.sweep.work import make_order, perform, surroundings

CLIENT = "install it, here and on the cluster's head, with: pip install 'ray[client]'"
# No results travel but reports of some hundred bytes.
_STORE = 80 * 2**20
_STARTS = 3
_NODE = "ray.io/node-id"
_ADDRESS = re.compile(r"auto|(ray://)?[\w.-]+:[0-9]+")
_ONE = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RayPool:
    """Implements ``Pool``."""

    def __init__(self, ray: Any, plan: Plan, key: Callable[[SweepJob], str] | None = None) -> None:
        """``ray`` is connected already. key: by which a store knows what was done."""
        self._ray, self._around, self._key = ray, surroundings(plan), key
        self._running: dict[Any, tuple[str, float]] = {}
        self._task = ray.remote(max_retries=0)(_perform_on_node)

    def nodes(self) -> Sequence[Mapping[str, float]]:
        """See ``Pool``."""
        return living_nodes(self._ray)

    def submit(self, job: SweepJob, attempt: int, avoid: str) -> None:
        """See ``Pool``."""
        wants: dict[str, Any] = {"num_cpus": job.demand.cpus, "memory": job.demand.memory}
        if job.demand.gpus:
            wants["num_gpus"] = job.demand.gpus
        if avoid:  # elsewhere, if there is anywhere else
            wants["label_selector"] = {_NODE: f"!{avoid}"}
            wants["fallback_strategy"] = [{"label_selector": {_NODE: avoid}}]
        order = make_order(job, self._around, attempt, self._key(job) if self._key else "")
        reference = self._task.options(**wants, name=job.id).remote(order)
        self._running[reference] = (job.id, time.monotonic())

    def wait(self, seconds: float) -> Sequence[tuple[str, Outcome]]:
        """See ``Pool``."""
        if not self._running:
            time.sleep(seconds)
            return []
        waiting = list(self._running)
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=seconds)
        if ready:  # and whatever else has ended meanwhile
            ready, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [(self._running[each][0], self._outcome(each)) for each in ready]

    def _outcome(self, reference: Any) -> Outcome:
        errors = self._ray.exceptions
        _, begun = self._running.pop(reference)
        spent = time.monotonic() - begun
        try:
            report = json.loads(self._ray.get(reference))
        except errors.RayTaskError as error:  # never begun: our own code cannot be imported there
            return Outcome(one_line(f"the worker cannot do it: {_last_line(error)}", 400))
        except errors.OutOfMemoryError:
            return Outcome("the node ran out of memory, and its worker was ended", True)
        except errors.RayError as error:
            return Outcome(f"its worker died after {spent:.0f} s ({type(error).__name__})", True)
        made = tuple(report.pop("made"))
        return Outcome(made=made, **report)

    def stop(self) -> None:
        """End what runs."""
        for reference in self._running:
            with suppress(Exception):  # it has ended, or its node has
                self._ray.cancel(reference, force=True)


def _perform_on_node(text: str) -> str:
    """What runs on a worker."""
    import ray

    report = json.loads(perform(text))
    return json.dumps({**report, "node": ray.get_runtime_context().get_node_id()})


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def living_nodes(ray: Any) -> list[Mapping[str, float]]:
    """What each living node has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def connected(address: str | None, cores: int | None) -> Iterator[Any]:
    """Ray: the cluster at ``address``, or a local one of so many ``cores``, which ends with the
    block, and with this process however it ends.

    Raises:
        OptionError: Ray is not installed, or there is no cluster.
        SweepError: the cluster went away in the block.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    if address is None:
        _keep_to_ourselves()
    try:
        import ray
    except ImportError:
        raise OptionError(f"a sweep needs Ray; {INSTALL}") from None
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    folder = _short_folder() if address is None else None
    try:
        if folder is not None:
            _start_local(ray, folder, cores, quiet)
        else:
            _join(ray, str(address), quiet)
        _silence()
        yield ray
    except ConnectionError:  # of Ray's client, whatever it was asked, after half a minute of trying
        said = "the cluster does not answer any more; the same command goes on"
        raise SweepError(said) from None
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _keep_to_ourselves() -> None:
    """Have a local Ray, which runs what it is sent, listen on the loopback alone and to nobody
    without this call's token. Ray reads it when it is imported.
    """
    # Whatever its name says: without it, 127.0.0.1 is taken for the address in the network.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _join(ray: Any, address: str, quiet: dict[str, Any]) -> None:
    if not _ADDRESS.fullmatch(address):
        known = "auto, HOST:PORT or ray://HOST:PORT"
        raise OptionError(f"--address {one_line(address, 100)}: use {known}")
    if address.startswith("ray:") and find_spec("grpc") is None:
        raise OptionError(f"--address {address}: Ray's client needs grpc; {CLIENT}")
    try:
        ray.init(address=address, **quiet)
    except Exception as error:
        said = one_line(error, 200)
        raise OptionError(f"--address {address}: no cluster answers: {said}") from None


def _silence() -> None:
    """Have Ray print nothing of workers that died: the engine says it, with the job's name."""
    from ray._private import worker

    vars(worker)["_worker_logs_enabled"] = False


def _short_folder() -> Path:
    """A short one for Ray's sockets, whose paths may have 107 letters."""
    home = Path(tempfile.gettempdir())
    home = home if len(str(home)) < 25 else Path("/tmp")  # noqa: S108 - a folder of our own in it
    return own_folder(home)


def _start_local(ray: Any, folder: Path, cores: int | None, quiet: dict[str, Any]) -> None:
    """Ray on this machine alone. Its workers import what this process imports."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    for name in _ONE:  # a job sets its own number
        os.environ.setdefault(name, "1")
    said = ""
    for _ in range(_STARTS):
        try:
            ray.init(
                num_cpus=cores or os.cpu_count() or 1,
                include_dashboard=False,
                object_store_memory=_STORE,
                _temp_dir=str(folder / "r"),  # Ray opens it to everybody; folder is ours alone
                _node_ip_address="127.0.0.1",
                **quiet,
            )
            return
        except Exception as error:  # noqa: PERF203 - it gives its own processes 30 seconds to start
            ray.shutdown()
            said = one_line(error, 200)
    raise OptionError(f"Ray does not start here, is the machine busy? {said}")
