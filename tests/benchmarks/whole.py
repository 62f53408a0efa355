"""A whole evaluation by each rival in a process of its own, loading and all."""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gauge import spread, watch_memory
from tests.benchmarks.rivals import NAMES, Harness, Plain, Rival, load_plain
from tests.benchmarks.samples import (
    TASKS,
    Answers,
    Asked,
    alike,
    answers_of,
    ask,
    data_folder,
    requests_of,
    scored,
)
from tests.benchmarks.turns import TURN, active, begin, run_in_turns
from unlearnbench.checkpoints.checkpoint import DTYPES
from unlearnbench.requests import Generate, Score

__all__ = ["measure_whole", "work"]


@dataclass
class Told:
    """A rival's whole evaluation, by precision and task: from when to when it ran (``loading``
    too) and how many times that is to be counted, and its answers.
    """

    spans: dict[str, dict[str, tuple[float, float, float]]] = field(default_factory=dict)
    answers: dict[str, dict[str, Answers]] = field(default_factory=dict)


def evaluate_ours(folder: Path, options: Namespace) -> Told:
    """As the command line does. A task ends when its records stand in the run folder; the first
    task of a precision includes its loading.
    """
    from unlearnbench import evaluate
    from unlearnbench.runs.folder import RunFolder, run_path

    told, last = Told(), time.time()
    with tempfile.TemporaryDirectory() as out:
        results = evaluate(
            str(folder),
            list(TASKS),
            list(options.precisions),
            output=out,
            data_dir=data_folder(),
            limit=options.limit,
            dtype=options.dtype,
            device=options.device,
            answer_blank="prompt",  # as the others' prompts, see ``requests_of``
        )
        for result in results:
            name = result.condition.name
            run, told.spans[name] = RunFolder(run_path(Path(out), result.checkpoint, name)), {}
            for task in TASKS:
                ended = run.samples_file(task).stat().st_mtime
                told.spans[name][task], last = (last, ended, 1.0), ended
            told.answers[name] = answers_of(Path(out), result)
    return told


def evaluate_rival(make: Callable[[Any, Any], Rival], folder: Path, options: Namespace) -> Told:
    """The same tasks, reloading for each precision; the plain one as published evaluators do also
    scores the retain texts, and every text lower-cased.

    Of the plain one's samples, which cost the same one by one, the first ``plain_limit`` rows are
    run, once it has answered one that is not counted; their seconds are multiplied by how many
    times their tokens all rows have.
    """
    dtype, told = getattr(torch, DTYPES[options.dtype]), Told()
    rival: Rival | None = None
    for precision in options.precisions:
        del rival  # before the next takes its memory
        start = time.time()
        rival = make(*load_plain(folder, precision, dtype, options.device))
        told.spans[precision] = {"loading": (start, time.time(), 1.0)}
        told.answers[precision] = {}
        limit = options.limit
        if isinstance(rival, Plain):
            limit = min(options.plain_limit, limit)
            for task in ("news_knowmem_f", "news_privleak"):
                ask(rival, requests_of(task, 1)[:1])
        for task in TASKS:
            asked, all_rows = (_asked(task, rival, n) for n in (limit, options.limit))
            start = time.time()
            told.answers[precision][task] = ask(rival, asked)
            end = time.time()
            share = _tokens(rival, all_rows) / _tokens(rival, asked) if limit < options.limit else 1
            told.spans[precision][task] = (start, end, share)
    return told


def _asked(task: str, rival: Rival, limit: int) -> Asked:
    asked = requests_of(task, limit)
    texts = scored(asked)
    if texts and isinstance(rival, Plain):
        texts += _retain(limit)
        return texts + [Score(f"{r.id}:lower", r.text.lower()) for r in texts]
    return asked


def _tokens(rival: Rival, asked: Asked) -> int:
    assert isinstance(rival, Plain)
    return sum(
        rival.count(r.prompt) + r.max_new_tokens if isinstance(r, Generate) else rival.count(r.text)
        for r in asked
    )


def _retain(limit: int) -> list[Score]:
    path = data_folder() / "muse-bench/MUSE-News/privleak/retain.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    return [Score(f"retain/{i}", row["text"]) for i, row in enumerate(rows)]


def work(name: str, folder: Path, options: Namespace) -> None:
    """One rival's whole evaluation, in this process, once it has imported everything and is told
    to begin; its memory, times and answers go to ``options.told``.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line a product
    evaluate = evaluate_ours
    if name == "ours":
        import bitsandbytes  # noqa: F401
        import datasets  # noqa: F401
        import sklearn.metrics  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401

        import unlearnbench.evaluation.evaluate  # noqa: F401
    elif name == "hflm":
        import lm_eval.models.huggingface  # noqa: F401

        evaluate = partial(evaluate_rival, partial(Harness, batch=options.hflm_batch))
    else:
        evaluate = partial(evaluate_rival, Plain)
    begin()
    found, told = watch_memory(lambda: evaluate(folder, options), options.device)
    options.told.write_text(json.dumps({"memory": found, **asdict(told)}), encoding="utf-8")


def measure_whole(folder: Path, options: Namespace) -> dict[str, Any]:
    """Seconds and memory of each, how many times ours the others take (all in all, and at each
    precision), and how many answers are the same. A machine's speed changes within the hour that
    all of it takes, so at each precision they run in turns of some seconds; so ours too is loaded
    for each, and memory is needed for three models at once.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for turn in range(options.whole_repeats):
        parts: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
        for number, precision in enumerate(options.precisions):
            first = (turn + number) % 3
            names = [*NAMES[first:], *NAMES[:first]]
            for name, part in _run_workers(names, folder, options, precision).items():
                parts[name].append(part)
                said = {key: part[key] for key in ("memory", "seconds")}
                print(f"whole, {name}: {json.dumps(said)}", file=sys.stderr, flush=True)
        for name in NAMES:
            runs[name].append(_join(parts[name]))
    found: dict[str, Any] = {
        name: {
            precision: {
                task: spread([run["seconds"][precision][task] for run in each])
                for task in each[0]["seconds"][precision]
            }
            for precision in options.precisions
        }
        | {
            "all": spread([_total(run, options.precisions) for run in each]),
            "memory": {
                key: spread([run["memory"][key] for run in each]) for key in each[0]["memory"]
            },
        }
        for name, each in runs.items()
    }
    for name in ("plain", "hflm"):
        found[f"{name} / ours"] = {
            of: spread(
                [
                    _total(a, precisions) / _total(b, precisions)
                    for a, b in zip(runs[name], runs["ours"], strict=True)
                ]
            )
            for of, precisions in (
                {"all": options.precisions} | {p: [p] for p in options.precisions}
            ).items()
        }
        found[f"answers of {name} that are ours"] = {
            f"{precision} {task}": alike(
                *(runs[of][0]["answers"][precision][task] for of in ("ours", name))
            )
            for precision in options.precisions
            for task in (TASKS if name == "plain" else TASKS[:-1])  # HFLM counts the first token
        }
    found["ours, memory in copies of the weights, less 600 MB"] = {
        key: spread([(run["memory"][key] - 600e6) / _weights(folder, options) for run in each])
        for each in [runs["ours"]]
        for key in each[0]["memory"]
    }
    return found


def _join(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The runs at each precision as one: the most memory that any took."""
    keys = parts[0]["memory"]
    found: dict[str, Any] = {"memory": {k: max(part["memory"][k] for part in parts) for k in keys}}
    for kind in ("seconds", "answers"):
        found[kind] = {name: value for part in parts for name, value in part[kind].items()}
    return found


def _run_workers(
    names: Sequence[str], folder: Path, options: Namespace, precision: str
) -> dict[str, dict[str, Any]]:
    """What each told, with ``seconds`` by precision and task."""
    line = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.measure_speed"]
    line += ["--model", str(folder), "--dtype", options.dtype, "--device", options.device]
    line += ["--limit", str(options.limit), "--plain-limit", str(options.plain_limit)]
    line += ["--hflm-batch", options.hflm_batch, "--precisions", precision]
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: Path(scratch) / name for name in names}
        commands = {
            name: [*line, "--worker", name, "--told", str(file)] for name, file in files.items()
        }
        turn = dict.fromkeys(names, TURN) if options.device == "cpu" else None
        turns = run_in_turns(commands, turn)
        found = {name: json.loads(file.read_text("utf-8")) for name, file in files.items()}
    for name, told in found.items():
        told["seconds"] = {
            precision: {
                task: active(turns[name], start, end) * times
                for task, (start, end, times) in spans.items()
            }
            for precision, spans in told["spans"].items()
        }
    return found


def _total(run: Mapping[str, Any], precisions: Sequence[str]) -> float:
    return sum(sum(run["seconds"][precision].values()) for precision in precisions)


def _weights(folder: Path, options: Namespace) -> int:
    """Bytes of one copy in the compute dtype."""
    from safetensors import safe_open

    numbers = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            numbers += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return numbers * int(getattr(torch, DTYPES[options.dtype]).itemsize)
