"""``--profile``: where the time of one command goes, as a trace and as shares beside the floor.

Stages are wrapped round the package's own functions while the command runs, so that a run without
the option passes through nothing of this.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from unlearnbench.conditions.base import precisions
from unlearnbench.errors import OptionError, OutputError
from unlearnbench.models.floor import forward_flops, generating_flops, matmul_peak
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate
from unlearnbench.runs.folder import require_writable
from unlearnbench.util.files import writing
from unlearnbench.util.process import muted, process_count
from unlearnbench.util.text import text_table

R = TypeVar("R")

FILE = "trace.json"
KINDS = ("products", "attention", "head", "tokenizing", "metrics", "loading", "proof")
_OTHER, _REST, _UNCOUNTED = "other operations", "the rest (imports, Python, files)", "uncounted"
_MARK = "unlearnbench: "
# What counts as which stage; inside another the inner one counts.
_STAGES = (
    ("unlearnbench.conditions.load", "prepare_all", "loading"),
    ("unlearnbench.conditions.load", "Prepared.load", "loading"),
    ("unlearnbench.conditions.proof", "prove", "proof"),
    ("unlearnbench.conditions.stored", "_prove", "proof"),
    ("unlearnbench.models.batches", "Tokens.encode", "tokenizing"),
    ("unlearnbench.models.batches", "Tokens.decode", "tokenizing"),
    ("unlearnbench.tasks.rows", "TaskSamples.record", "metrics"),
    ("unlearnbench.tasks.rows", "TaskSamples.result", "metrics"),
)
_PRODUCTS = ("aten::linear", "aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "bitsandbytes")
_ATTENTION = (
    "aten::bmm",
    "aten::baddbmm",
    "aten::scaled_dot",
    "aten::_scaled_dot",
    "aten::_softmax",
)


class Floor:
    """Operations that what was asked cannot do without, by compute dtype."""

    def __init__(self) -> None:
        self.flops: dict[torch.dtype, float] = {}

    def add(self, model: HFModel, asked: Sequence[Any]) -> None:
        """Prompts of one kind, or texts."""
        if not asked:
            return
        ids = [
            model.tokens.encode(getattr(r, "prompt", "") + getattr(r, "text", "")) for r in asked
        ]
        if isinstance(asked[0], Generate):
            found = generating_flops(model.network, ids, asked)
        else:
            found = forward_flops(model.network, [len(row) for row in ids])
        dtype = model.network.dtype
        self.flops[dtype] = self.flops.get(dtype, 0.0) + found

    def seconds(self) -> float:
        """At the peak, which is measured now."""
        return sum(flops / matmul_peak(dtype, "cpu") for dtype, flops in self.flops.items())


@contextmanager
def profiling(output: Path, device: str | None) -> Iterator[None]:
    """Write what is done meanwhile to ``trace.json`` in ``output`` (Chrome's format), and print
    where its time went.

    Raises:
        OptionError: several processes, or a GPU.
        OutputError: the trace cannot be written.
    """
    if process_count() > 1:
        raise OptionError("--profile watches one process; leave accelerate launch out")
    if device != "cpu" and torch.cuda.is_available():
        raise OptionError("--profile shares out a processor's time; add --device cpu")
    require_writable(output)
    path = output / FILE
    with writing(path, remedy="use another --output"):
        path.open("ab").close()
    try:
        with _watched(path):
            yield
    finally:
        if not path.stat().st_size:  # what failed leaves no empty trace, and an earlier one stays
            path.unlink()


@contextmanager
def _watched(path: Path) -> Iterator[None]:
    precisions()  # imports every condition's file, whose names are then found
    floor, undo = Floor(), list[Callable[[], None]]()
    try:
        watched = profile(activities=[ProfilerActivity.CPU], acc_events=True)
        with muted():  # it says that it starts and stops
            watched.start()
        try:
            _wrap_all(floor, undo)
            start = time.perf_counter()
            yield
            seconds = time.perf_counter() - start
        finally:
            with muted():
                watched.stop()
    finally:
        for step in reversed(undo):
            step()
    path.open("wb").close()
    watched.export_chrome_trace(str(path))
    if not path.stat().st_size:
        raise OutputError(f"{path} cannot be written; free some space or use another --output")
    click.echo(summary(shares(watched.events(), seconds), floor.seconds(), path))


def _wrap_all(floor: Floor, undo: list[Callable[[], None]]) -> None:
    for module, name, stage in _STAGES:
        *inside, last = name.split(".")
        owner: Any = import_module(module)
        for part in inside:
            owner = getattr(owner, part)
        before = getattr(owner, last)
        after = _staged(before, stage)
        owners = [owner] if inside else _holders(before, last)
        for each in owners:
            setattr(each, last, after)
            undo.append(partial(setattr, each, last, before))
    made = HFModel.__init__

    @wraps(made)
    def watched(self: HFModel, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        _watch_head(self, undo)

    setattr(HFModel, "__init__", watched)  # noqa: B010
    undo.append(partial(setattr, HFModel, "__init__", made))
    for kind in ("generate", "score"):
        _count(floor, kind, undo)


def _holders(function: object, name: str) -> list[Any]:
    """The modules of the package that imported it by its name."""
    ours = [m for n, m in sys.modules.items() if n.startswith("unlearnbench.")]
    return [module for module in ours if vars(module).get(name) is function]


def _staged(function: Callable[..., R], stage: str) -> Callable[..., R]:
    @wraps(function)
    def inside(*args: Any, **kwargs: Any) -> R:
        with record_function(_MARK + stage):
            return function(*args, **kwargs)

    return inside


def _watch_head(model: HFModel, undo: list[Callable[[], None]]) -> None:
    head: Any = model.network.get_output_embeddings()
    open_spans: list[Any] = []
    if head is None:
        return

    def enter(*_: object) -> None:
        open_spans.append(record_function(_MARK + "head"))
        open_spans[-1].__enter__()

    def leave(*_: object) -> None:
        open_spans.pop().__exit__(None, None, None)

    handles = [head.register_forward_pre_hook(enter)]
    handles.append(head.register_forward_hook(leave, always_call=True))
    undo.extend(handle.remove for handle in handles)


def _count(floor: Floor, kind: str, undo: list[Callable[[], None]]) -> None:
    answer = getattr(HFModel, kind)

    @wraps(answer)
    def counted(self: HFModel, requests: Sequence[Any], skip: Any = ()) -> Iterator[Any]:
        with record_function(_MARK + _UNCOUNTED):
            floor.add(self, [request for request in requests if request.id not in skip])
        return answer(self, requests, skip)  # type: ignore[no-any-return]

    setattr(HFModel, kind, counted)
    undo.append(partial(setattr, HFModel, kind, answer))


def shares(events: Sequence[Any], seconds: float) -> dict[str, float]:
    """Seconds of the main thread by kind, which add up to all of them; largest first.

    events: the profiler's. seconds: of the whole, on the clock.
    """
    found = dict.fromkeys((*KINDS, _OTHER, _UNCOUNTED), 0.0)
    marks = [event.thread for event in events if event.name == _MARK + "loading"]
    for event in events:
        if marks and event.thread == marks[0]:
            found[_kind(event)] += event.self_cpu_time_total / 1e6
    seconds -= found.pop(_UNCOUNTED)
    found[_REST] = max(0.0, seconds - sum(found.values()))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _kind(event: Any) -> str:
    """By the innermost stage round it; outside of all by the outermost operation that is known."""
    kind, at = _OTHER, event
    while at is not None:
        if at.name.startswith(_MARK):
            return str(at.name.removeprefix(_MARK))
        if at.name.startswith(_ATTENTION):
            kind = "attention"
        elif at.name.startswith(_PRODUCTS):
            kind = "products"
        at = at.cpu_parent
    return kind


def summary(found: dict[str, float], floor: float, path: Path) -> str:
    """The table, the floor, and a line of what they say."""
    whole = sum(found.values())
    rows = [(kind, f"{s:.2f}", f"{100 * s / whole:.1f}%") for kind, s in found.items()]
    rows.append(("all", f"{whole:.2f}", "100.0%"))
    rows.append(
        ("floor: products and attention at the peak", f"{floor:.2f}", f"{floor / whole:.1%}")
    )
    first = next(iter(found))
    said = f"{first} takes the most, {100 * found[first] / whole:.0f}%; "
    if floor:
        said += f"all of it is {whole / floor:.3g} times the floor"
    else:
        said += "no model was asked anything"
    table = text_table(rows, ["where time goes", "seconds", "share"])
    return f"{table}\n{said}. Trace: {path}"
