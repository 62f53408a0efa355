"""The steps of the demo, each in a worker process, with the functions that the other commands call.
A step that was interrupted goes on.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from unlearnbench.checkpoints.origin import FILE
from unlearnbench.demo.recipe import (
    CORPUS,
    DTYPE,
    ENDS,
    ENSEMBLE,
    EXACT,
    TASKS,
    DemoOptions,
    ends_options,
    recipe_of,
)
from unlearnbench.demo.start import FORGET, RETAIN, make_start
from unlearnbench.methods import find_method
from unlearnbench.recovery import UTILITY_FLOOR
from unlearnbench.recovery.controls import needs_control
from unlearnbench.runs.folder import read_run
from unlearnbench.training.options import SelectOptions
from unlearnbench.util.files import write_text
from unlearnbench.util.process import ProgressLine

_EXACT = "the exact control: trained again without the rows, from before it saw them"
_CHOSEN = f"its checkpoint was chosen on the questions of {TASKS[0]} reported here"


def start(name: str, options: DemoOptions) -> None:
    """Make the model that all others begin with, to the same bits each time."""
    make_start(options.model(name), options.seed)


def make_end(name: str, options: DemoOptions) -> None:
    """Finetune the target, the ensemble, or the retrained model, which is evaluated too."""
    from unlearnbench.training.job import Job, finetune
    from unlearnbench.training.output import is_trained

    out = options.model(name)
    if not is_trained(out):
        # What is to be forgotten lies in the ensemble's last slice.
        every = {"target": (*FORGET, *RETAIN), ENSEMBLE: (*RETAIN, *FORGET)}
        texts = every.get(name, RETAIN)
        training = ends_options(name, options.seed, options.dense)
        finetune(
            Job(str(options.model("start")), out, texts, options=training, **_going(out, options))
        )
    if name == "retrained":
        evaluate_model(name, options)


def make_exact(name: str, options: DemoOptions) -> str:
    """Train again what the ensemble learned of the rows to forget, and evaluate."""
    from unlearnbench.training.job import Job, unlearn
    from unlearnbench.training.output import is_trained

    out = options.model(name)
    if not is_trained(out):
        whole, base = options.model(ENSEMBLE), str(options.model("start"))
        unlearn(Job(str(whole), out, FORGET, RETAIN, base=base, **_going(out, options)), EXACT)
    evaluate_model(name, options)
    score = read_run(options.full_run(name)).tasks[TASKS[0]].value
    return f", trained again without the rows: KnowMem_f {score:.1f}"


def make_unlearned(name: str, options: DemoOptions) -> str:
    """Unlearn by a method until its goal is reached, and evaluate; says where it stopped."""
    from unlearnbench.evaluation.score import score_checkpoint
    from unlearnbench.training.job import Job, unlearn
    from unlearnbench.training.output import is_trained

    out, recipe = options.model(name), recipe_of(name, options.dense)
    if not is_trained(out):
        target = read_run(options.full_run("target")).tasks[TASKS[0]].value
        assert target is not None  # noqa: S101 - KnowMem always has one
        select = SelectOptions(
            eval_tasks=TASKS[0],
            retrained=str(recipe.goal * target),
            eval_steps=recipe.every,
            eval_dtype=DTYPE,
        )
        job = Job(
            str(options.model("target")),
            out,
            FORGET,
            RETAIN if "retain" in find_method(name).data else (),
            options=recipe.options(options.seed),
            select=select,
            score=partial(score_checkpoint, CORPUS),
            **_going(out, options),
        )
        unlearn(job, name, recipe.knobs)
    evaluate_model(name, options)
    record = json.loads((out / FILE).read_bytes())["selection"]
    last = record["evaluated"][-1]
    goal = "" if record["reached"] else f", ABOVE its goal of {record['threshold']:.1f}"
    score = f"KnowMem_f {last['scores'][TASKS[0]]:.1f}{goal}"
    return f", stopped after {last['step']} steps at {score}"


def _going(out: Path, options: DemoOptions) -> dict[str, Any]:
    return {"corpus": CORPUS, "resume": (out / ".training").is_dir(), "progress": options.progress}


def evaluate_model(name: str, options: DemoOptions) -> str:
    """Evaluate a model under every condition; all but the retrained one against that, which meets
    of the further ones those that need a control.
    """
    from unlearnbench.evaluation.evaluate import evaluate

    own = name != "retrained"
    more = [condition for condition in options.more if own or needs_control(condition)]
    for conditions, folder in (
        (options.precisions, options.runs(name)),
        (more, options.further(name)),
    ):
        if conditions:
            evaluate(
                options.model(name),
                TASKS,
                conditions,
                output=folder,
                dtype=DTYPE,
                reference=options.full_run("retrained") if own else None,
                answer_blank=CORPUS.answer_blank,
                progress=options.progress,
            )
    return ", evaluated"


def make_table(name: str, options: DemoOptions) -> None:
    """Write ``recovery.json``, as ``compare --json`` does."""
    from unlearnbench.recovery.compare import compare, open_comparison
    from unlearnbench.recovery.reports import rows_json

    with _shown(name, 1, options) as shown:
        entries = [options.runs(method) for method in options.methods]
        opened = open_comparison(entries, options.runs("target"), options.runs("retrained"))
        write_text(options.table, rows_json(compare(opened)))
        shown.update()


def make_board(name: str, options: DemoOptions) -> None:
    """Write ``board.yaml``, the entries, and what is generated from them."""
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
    write_text(options.out / "board.yaml", json.dumps(rules, indent=2, ensure_ascii=False) + "\n")
    board = read_board(options.out)

    def runs(entry: str) -> list[Path]:
        return [path for path in (options.runs(entry), options.further(entry)) if path.is_dir()]

    with _shown(name, len(ENDS) + len(options.methods) + 1, options) as shown:
        for entry in (*ENDS, *options.methods):
            role = {EXACT: "control"}.get(entry, entry if entry in ENDS else "unlearned")
            note = {**dict.fromkeys(ENDS, ""), EXACT: _EXACT}.get(entry, _CHOSEN)
            submission = Submission(entry, role, note)  # type: ignore[arg-type]
            add_entry(board, runs(entry), submission)
            shown.update()
        build_board(board)
        shown.update()


def _shown(name: str, parts: int, options: DemoOptions) -> ProgressLine:
    return ProgressLine(name, parts, "part", options.progress)
