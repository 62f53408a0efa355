"""The demo: a target, a retrained model and several unlearned ones, trained, evaluated in full
precision and quantized, compared and put on a board, in some minutes on two cores.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from unlearnbench.demo.recipe import ENDS, METHODS, TASKS, DemoOptions, ends_options, recipe_of
from unlearnbench.demo.stages import DemoStage, stage_key
from unlearnbench.demo.work import EVALUATE, initialize, run_stage
from unlearnbench.errors import OptionError, PrecisionError, TrainingError
from unlearnbench.runs.folder import require_writable

_WORKERS = 2
Say = Callable[[str], None]


def run_demo(options: DemoOptions, say: Say) -> Path:
    """Do everything that is not done yet below ``options.out``.

    Returns:
        ``recovery.json``, the rows of the recovery table; ``index.html`` is beside it.

    Raises:
        UnlearnbenchError: a stage could not be done; another call goes on from there.
    """
    from filelock import FileLock, Timeout

    _require_available(options.precisions)
    require_writable(options.out)
    try:
        with FileLock(options.out / ".lock", timeout=0):
            stages = plan_stages(options)
            for stage in stages.values():
                stage.require_own()
            _run(stages, options, say)
    except Timeout:
        raise OptionError(f"another demo is running in {options.out}; use another --out") from None
    return options.table


def _require_available(precisions: tuple[str, ...]) -> None:
    """Say that a package is missing now, not when models are trained."""
    from unlearnbench import conditions  # not conditions.load, which brings torch with it

    for spec in conditions.resolve(precisions):
        reason = conditions.why_unavailable(spec, "cpu")
        if reason:
            raise PrecisionError(f"{spec.name} cannot run here: {reason}")


def plan_stages(options: DemoOptions) -> dict[str, DemoStage]:
    """Every stage by name, after those that it needs."""
    stages: dict[str, DemoStage] = {}

    def add(name: str, facts: dict[str, object], made: str, *needs: str) -> None:
        key = stage_key({"stage": name, **facts}, *(stages[need].key for need in needs))
        stages[name] = DemoStage(options.out, name, key, tuple(made.split()), needs)

    def add_evaluation(name: str, *needs: str) -> None:
        facts: dict[str, object] = {"precisions": options.precisions, "tasks": TASKS}
        add(EVALUATE + name, facts, f"runs/{name}", name, *needs)

    reference = f"{EVALUATE}retrained"
    add("start", {"seed": options.seed}, "models/start")
    for name in ENDS:
        used = ends_options(name, options.seed, options.dense).model_dump(mode="json")
        add(name, {"options": used}, f"models/{name}", "start")
    add_evaluation("retrained")
    add_evaluation("target", reference)
    for name in options.methods:
        facts = {"recipe": asdict(recipe_of(name, options.dense)), "seed": options.seed}
        add(name, facts, f"models/{name}", "target", f"{EVALUATE}target")
        add_evaluation(name, reference)
    evaluated = [name for name in stages if name.startswith(EVALUATE)]
    add("compare", {}, "recovery.json", *evaluated)
    made = "board.yaml entries README.md board.csv index.html"
    add("board", {"seed": options.seed, "dense": options.dense}, made, *evaluated)
    return stages


def _run(stages: dict[str, DemoStage], options: DemoOptions, say: Say) -> None:
    """Start every stage that is not done as soon as those that it needs are."""
    waiting = {name: stage for name, stage in stages.items() if not stage.is_done()}
    done = set(stages) - set(waiting)
    say(f"{len(done)} of {len(stages)} stages are done already")
    if not waiting:
        return
    running: dict[Future[None], DemoStage] = {}
    with _pool() as pool:
        while waiting or running:
            for name in [n for n, stage in waiting.items() if done.issuperset(stage.needs)]:
                stage = waiting.pop(name)
                running[pool.submit(run_stage, stage, options)] = stage
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage = running.pop(future)
                future.result()
                say(_account(stage, options))
                done.add(stage.name)


@contextmanager
def _pool() -> Iterator[ProcessPoolExecutor]:
    """Worker processes, which end when this ends, however it does.

    Raises:
        TrainingError: one of them was killed.
    """
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    workers = min(_WORKERS, os.cpu_count() or 1)
    position = (context.Value("i", 0),)
    with ProcessPoolExecutor(workers, context, initialize, position) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise TrainingError(
                "a process of the demo was killed, perhaps for want of memory; run it again to "
                "go on"
            ) from None
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _account(stage: DemoStage, options: DemoOptions) -> str:
    """A finished stage in a line: its time, and where a method stopped."""
    line = f"{stage.name}: {stage.seconds:.0f} s"
    if stage.name not in METHODS:
        return line
    from unlearnbench.checkpoints.origin import FILE

    record = json.loads((options.model(stage.name) / FILE).read_bytes())["selection"]
    last = record["evaluated"][-1]
    goal = "" if record["reached"] else f", ABOVE its goal of {record['threshold']:.1f}"
    score = f"KnowMem_f {last['scores'][TASKS[0]]:.1f}{goal}"
    return f"{line}, stopped after {last['step']} steps at {score}"
