"""The demo: a target, a retrained model and several unlearned ones, trained, evaluated in full
precision and quantized, compared and put on a board, in some minutes on two cores.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from unlearnbench import conditions
from unlearnbench.demo import work
from unlearnbench.demo.recipe import ENDS, ENSEMBLE, EXACT, DemoOptions
from unlearnbench.errors import OptionError, PrecisionError, TrainingError
from unlearnbench.runs.fingerprint import Fingerprint, describe_environment
from unlearnbench.runs.folder import require_writable
from unlearnbench.tasks.registry import builtin_task_dir
from unlearnbench.util.files import write_whole

Say: TypeAlias = Callable[[str], None]
Step: TypeAlias = Callable[[str, DemoOptions], str | None]

_WORKERS = 2
_RECORD = "demo.json"
MADE = {
    "models": ("models",),
    "runs": ("runs", "further"),
    "board": ("recovery.json", "board.yaml", "entries", "README.md", "board.csv", "index.html"),
}
"""What a demo makes, in parts of which each follows from those before."""


def run_demo(options: DemoOptions, say: Say) -> Path:
    """Do everything that is not done yet below ``options.out``.

    Returns:
        ``recovery.json``, the rows of the recovery table; ``index.html`` is beside it.

    Raises:
        UnlearnbenchError: something could not be done; another call goes on from there.
    """
    for spec in conditions.resolve([*options.precisions, *options.more]):
        reason = spec.missing()
        if reason:  # now, not when models are trained
            raise PrecisionError(f"{spec.name} cannot run here: {reason}")
        if spec.needs_target:
            raise PrecisionError(
                f"{spec.name} needs the target beside the model, which the demo does not give; run "
                "it on the demo's models with unlearnbench attack"
            )
    require_writable(options.out)
    try:
        with FileLock(options.out / ".lock", timeout=0):
            keys = part_keys(options)
            if clear(options.out, keys):
                say("everything is done already")
            else:
                _work(options, say)
                _write(options.out, _finished(options.out, keys))
    except Timeout:
        raise OptionError(f"another demo is running in {options.out}; use another --out") from None
    return options.table


def part_keys(options: DemoOptions) -> dict[str, str]:
    """For each part the hash of all that decides it: options, this package's files, the packages
    that compute.
    """
    facts: dict[str, object] = {
        "source": files_sha256(Path(__file__).resolve().parent.parent, builtin_task_dir()),
        "packages": describe_environment("cpu", "", None).packages,
    }
    keys = {}
    for part, own in (
        ("models", {"seed": options.seed, "dense": options.dense}),
        ("runs", {"precisions": options.precisions, "more": options.more}),
        ("board", {"methods": options.methods}),
    ):
        facts |= own
        keys[part] = Fingerprint.of(facts).sha256
    return keys


def files_sha256(package: Path, tasks: Path) -> str:
    """Of every file of the package, its data and page among them, and of the demo's task files."""
    shipped = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return _digest(package, shipped) + _digest(tasks, tasks.glob("demo_*.yaml"))


def _digest(root: Path, files: Iterable[Path]) -> str:
    """The hash over files: their names below ``root``, their sizes and their content."""
    found = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        found.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()


def clear(out: Path, keys: dict[str, str]) -> bool:
    """Whether everything is done. If not, the parts that were made under another key, or were
    changed since they were finished, are removed with those that follow from them; what the same
    demo left unfinished stays.

    Raises:
        OptionError: something is in the way that no demo made.
    """
    tops = {part: [out / name for name in names] for part, names in MADE.items()}
    foreign = next((top for part in tops.values() for top in part if top.exists()), None)
    own = (_RECORD, "stages/start.json")  # the latter in an earlier release
    if foreign is not None and not any((out / name).exists() for name in own):
        raise OptionError(f"{foreign} is in the way and not the demo's; use another --out")
    try:
        known = dict(json.loads((out / _RECORD).read_bytes()))
    except (OSError, ValueError, TypeError):
        known = {}
    finished = _finished(out, keys)
    if known == finished:
        return True
    stale = False
    for part, key in keys.items():
        stale = stale or known.get(part) not in ({"key": key}, finished[part])
        for top in tops[part] if stale else ():
            if top.is_dir():
                shutil.rmtree(top)
            else:
                top.unlink(missing_ok=True)
    _write(out, {part: {"key": key} for part, key in keys.items()})
    return False


def _finished(out: Path, keys: dict[str, str]) -> dict[str, dict[str, str]]:
    """The record of a demo that made what is there now."""
    found = {}
    for part, key in keys.items():
        tops = [out / name for name in MADE[part]]
        files = [path for top in tops for path in (top, *top.rglob("*")) if path.is_file()]
        found[part] = {"key": key, "sha256": _digest(out, files)}
    return found


def _write(out: Path, parts: dict[str, dict[str, str]]) -> None:
    """Write which parts were made under which key, and their hash once all are finished."""
    write_whole(out / _RECORD, json.dumps(parts, indent=1).encode())


def _work(options: DemoOptions, say: Say) -> None:
    """Do all steps in worker processes, which end when this ends, however it does.

    Raises:
        TrainingError: one of them was killed.
    """
    exact = [ENSEMBLE] if EXACT in options.methods else []
    phases: list[list[tuple[Step, str]]] = [  # what stands on one line is done side by side
        [(work.start, "start")],
        [(work.make_end, name) for name in (*ENDS, *exact)],
        [(work.evaluate_model, "target")],
        [
            (work.make_exact if name == EXACT else work.make_unlearned, name)
            for name in options.methods
        ],
        [(work.make_table, "compare"), (work.make_board, "board")],
    ]
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    workers = min(_WORKERS, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, context, initialize, (context.Value("i", 0),)) as pool:
        try:
            for phase in phases:
                futures = [pool.submit(timed, step, name, options) for step, name in phase]
                for future in as_completed(futures):
                    say(future.result())
        except BrokenProcessPool:
            raise TrainingError(
                "a process of the demo was killed, perhaps for want of memory; run it again to "
                "go on"
            ) from None
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def timed(step: Step, name: str, options: DemoOptions) -> str:
    """Do a step; a line with its time and what it says."""
    started = time.monotonic()
    said = step(name, options)
    return f"{name}: {time.monotonic() - started:.0f} s{said or ''}"


def initialize(bars: Any) -> None:
    """Set a worker process up. One thread each: sums in another order give other weights, and the
    table is not to depend on the number of cores.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's, which ends us
    with bars.get_lock():
        os.environ["TQDM_POSITION"] = str(bars.value)  # bars of two processes on two lines
        bars.value += 1
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    # oneDNN, which runs bf16 where the processor has it, keeps code for the last 1,024 shapes: 150
    # MB of an evaluation, which is no faster for it.
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "16"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # too small for a GPU, and the same table with one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from unlearnbench.util.process import quiet_transformers

    quiet_transformers()
    # Notes on six models at once would drown the demo's own lines; run folders hold what matters.
    logging.getLogger("unlearnbench").setLevel(logging.ERROR)
    import torch
    import transformers.trainer  # noqa: F401

    torch.set_num_threads(1)
    # Every evaluation collects garbage, and half a second of that goes through the libraries.
    gc.collect()
    gc.freeze()


def _end_with_parent() -> None:
    """A killed demo must leave no process behind that writes where the next one does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
