"""The demo's stages, in processes of their own: models are trained and evaluated with the functions
that ``finetune``, ``unlearn`` and ``unlearnbench --model`` call.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.demo.options import ENDS, DemoOptions
from unlearnbench.demo.stages import Stage

if TYPE_CHECKING:
    from unlearnbench.results import RunResult
    from unlearnbench.training.options import SelectorOptions

EVALUATE = "evaluate-"


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
    from unlearnbench.util.quiet import quiet_transformers

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
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def run_stage(stage: Stage, options: DemoOptions) -> None:
    """Do a stage: ``NAME`` trains a model, ``evaluate-NAME`` evaluates it; ``compare``, ``board``.

    Raises:
        UnlearnbenchError: it could not be done.
    """
    started = time.monotonic()
    stage.begin()
    if _is_trained(options.model(stage.name)):
        pass  # the process was killed between that and the stage's end
    elif stage.name.startswith(EVALUATE):
        _evaluate(stage.name.removeprefix(EVALUATE), options)
    elif stage.name in _SHORT:
        _make(stage.name, options)
    elif stage.name in ENDS:
        _finetune(stage.name, options)
    else:
        _unlearn(stage.name, options)
    stage.finish(started)


_SHORT = ("start", "compare", "board")


def _make(name: str, options: DemoOptions) -> None:
    """Those stages that neither train nor evaluate, which have bars of their own."""
    from tqdm import tqdm

    from unlearnbench.demo.publish import make_board, make_table
    from unlearnbench.demo.start import make_start

    parts = len(ENDS) + len(options.methods) + 1 if name == "board" else 1
    with tqdm(total=parts, desc=name, unit="part", disable=not options.progress) as bar:
        if name == "board":
            make_board(options, bar.update)
        elif name == "compare":
            make_table(options)
            bar.update()
        else:
            make_start(options.model("start"), options.seed)
            bar.update()


def _is_trained(out: Path) -> bool:
    """Whether a training is complete; one that was never claimed is removed."""
    import shutil

    from unlearnbench.training.output import OutputFolder
    from unlearnbench.training.record import FILE

    folder = OutputFolder(out)
    if (out / FILE).exists():
        folder.clean()
        return True
    if folder.work.is_dir() and not folder.is_claimed:
        shutil.rmtree(out)
    return False


def _finetune(name: str, options: DemoOptions) -> None:
    from unlearnbench.demo.recipe import ends_options
    from unlearnbench.demo.start import FORGET, RETAIN
    from unlearnbench.training.job import Job, finetune

    texts = (*FORGET, *RETAIN) if name == "target" else RETAIN
    training = ends_options(name, options.seed, options.dense)
    start, out = str(options.model("start")), options.model(name)
    finetune(Job(start, out, texts, options=training, **_going(out, options)))


def _unlearn(name: str, options: DemoOptions) -> None:
    from unlearnbench.demo.recipe import recipe_of
    from unlearnbench.demo.start import FORGET, RETAIN
    from unlearnbench.training.job import Job, unlearn

    recipe, out = recipe_of(name, options.dense), options.model(name)
    job = Job(
        str(options.model("target")),
        out,
        FORGET,
        RETAIN if recipe.learns_from_retain else (),
        options=recipe.options(options.seed),
        select=recipe.selector(_knowmem(options.full_run("target"))),
        score=_score,
        **_going(out, options),
    )
    unlearn(job, recipe.method, dict(recipe.knobs))


def _score(folder: Path, select: SelectorOptions, runs: Path) -> RunResult:
    from unlearnbench.evaluation.evaluate import evaluate

    (result,) = evaluate(folder, select.tasks, output=runs, limit=select.limit, dtype=select.dtype)
    return result


def _knowmem(run: Path) -> float:
    from unlearnbench.runs.folder import read_run

    value = read_run(run).tasks["demo_knowmem_f"].value
    assert value is not None  # noqa: S101 - KnowMem always has one
    return value


def _going(out: Path, options: DemoOptions) -> dict[str, Any]:
    """Go on with what an interrupted demo left."""
    return {"resume": (out / ".training").is_dir(), "progress": options.progress}


def _evaluate(name: str, options: DemoOptions) -> None:
    from unlearnbench.demo.recipe import DTYPE, TASKS
    from unlearnbench.evaluation.evaluate import evaluate

    evaluate(
        options.model(name),
        TASKS,
        options.precisions,
        output=options.runs(name),
        dtype=DTYPE,
        reference=None if name == "retrained" else options.full_run("retrained"),
        progress=options.progress,
    )
