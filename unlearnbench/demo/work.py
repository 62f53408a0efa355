"""The demo's stages, in processes of their own: models are trained, evaluated, compared and put on
a board with the functions that the other commands call.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.demo.recipe import DTYPE, ENDS, TASKS, DemoOptions, ends_options, recipe_of
from unlearnbench.demo.stages import DemoStage
from unlearnbench.recovery import UTILITY_FLOOR

if TYPE_CHECKING:
    from unlearnbench.results import RunResult
    from unlearnbench.training.options import SelectOptions

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
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def run_stage(stage: DemoStage, options: DemoOptions) -> None:
    """Do a stage: ``NAME`` trains a model, ``evaluate-NAME`` evaluates it; ``compare``, ``board``.

    Raises:
        UnlearnbenchError: it could not be done.
    """
    started = time.monotonic()
    stage.begin()
    if stage.name in ("start", "compare", "board"):
        _make(stage.name, options)
    elif stage.name.startswith(EVALUATE):
        _evaluate(stage.name.removeprefix(EVALUATE), options)
    elif not is_trained(options.model(stage.name)):
        _train(stage.name, options)
    stage.finish(started)


def is_trained(out: Path) -> bool:
    """Whether a training is complete; one that was never claimed is removed."""
    from unlearnbench.checkpoints.origin import FILE
    from unlearnbench.training.output import OutputFolder

    folder = OutputFolder(out)
    if (out / FILE).exists():  # the process was killed between that and the stage's end
        folder.clean()
        return True
    if folder.work.is_dir() and not folder.is_claimed:
        shutil.rmtree(out)
    return False


def _train(name: str, options: DemoOptions) -> None:
    """Finetune the target or the retrained model, or unlearn; goes on with what was interrupted."""
    from unlearnbench.demo.start import FORGET, RETAIN
    from unlearnbench.training.job import Job, finetune, unlearn

    out = options.model(name)
    going: dict[str, Any] = {"resume": (out / ".training").is_dir(), "progress": options.progress}
    if name in ENDS:
        texts = (*FORGET, *RETAIN) if name == "target" else RETAIN
        training = ends_options(name, options.seed, options.dense)
        finetune(Job(str(options.model("start")), out, texts, options=training, **going))
        return
    recipe = recipe_of(name, options.dense)
    job = Job(
        str(options.model("target")),
        out,
        FORGET,
        RETAIN if recipe.learns_from_retain else (),
        options=recipe.options(options.seed),
        select=recipe.selector(_knowmem(options.full_run("target"))),
        score=_score,
        **going,
    )
    unlearn(job, recipe.method, dict(recipe.knobs))


def _score(folder: Path, select: SelectOptions, runs: Path) -> RunResult:
    from unlearnbench.evaluation.evaluate import evaluate

    (result,) = evaluate(folder, select.names, output=runs, dtype=select.eval_dtype)
    return result


def _knowmem(run: Path) -> float:
    from unlearnbench.runs.folder import read_run

    value = read_run(run).tasks[TASKS[0]].value
    assert value is not None  # noqa: S101 - KnowMem always has one
    return value


def _evaluate(name: str, options: DemoOptions) -> None:
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


def _make(name: str, options: DemoOptions) -> None:
    """Do a stage that neither trains nor evaluates, which have bars of their own."""
    from tqdm import tqdm

    from unlearnbench.demo.start import make_start

    parts = len(ENDS) + len(options.methods) + 1 if name == "board" else 1
    with tqdm(total=parts, desc=name, unit="part", disable=not options.progress) as bar:
        if name == "board":
            make_board(options, bar.update)
            return
        if name == "compare":
            make_table(options)
        else:
            make_start(options.model("start"), options.seed)
        bar.update()


def make_table(options: DemoOptions) -> None:
    """Write ``recovery.json``, as ``compare --json`` does."""
    from unlearnbench.recovery.compare import compare, open_comparison

    entries = [options.runs(name) for name in options.methods]
    opened = open_comparison(entries, options.runs("target"), options.runs("retrained"))
    content = [row.model_dump(mode="json", exclude_none=True) for row in compare(opened)]
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    options.table.write_text(text, encoding="utf-8")


def make_board(options: DemoOptions, tick: Callable[[], object] = lambda: None) -> None:
    """Write ``board.yaml``, the entries, and what is generated from them. ``tick`` is called after
    each entry, and at the end.
    """
    from unlearnbench.boards import add_entry, read_board
    from unlearnbench.boards.entry import Submission
    from unlearnbench.boards.tables import build_board
    from unlearnbench.tasks.registry import load_registry

    weights = "dense weights (the control)" if options.dense else "sparse weights"
    rules = {
        "title": "The demo's board",
        "description": f"A tiny Llama with {weights}, trained with seed {options.seed} on an "
        "invented corpus: it shows the effect, and says nothing of other models.",
        "base_model": "a Llama of 2 layers with random weights",
        "tasks": {s.task: s.metadata.version for s in load_registry(()).resolve(TASKS)},
        "precisions": list(options.precisions),
        "utility_floor": UTILITY_FLOOR,
        "ranking": ["demo_knowmem_f", "demo_verbmem"],
        "publish_texts": True,
    }
    # JSON is YAML too.
    text = json.dumps(rules, indent=2, ensure_ascii=False) + "\n"
    (options.out / "board.yaml").write_text(text, encoding="utf-8")
    board = read_board(options.out)
    for name in (*ENDS, *options.methods):
        role = name if name in ENDS else "unlearned"
        add_entry(board, [options.runs(name)], Submission(name, role))  # type: ignore[arg-type]
        tick()
    build_board(board)
    tick()
