"""Which library multiplies by a dense layer's weight on CPU: the fastest by a short measurement.

torch gives fp32 products to MKL, which is slow on AMD processors and on few rows elsewhere; oneDNN
is torch's other library. Of four ways only ``packed`` moves the weight, into oneDNN's order.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import torch
from filelock import FileLock
from torch import nn
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from unlearnbench.models import packable
from unlearnbench.util.files import write_whole
from unlearnbench.util.process import explain
from unlearnbench.util.processor import processor_name

Way: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(rows, (n, in); weight, (out, in) or packed; bias, (out,) or None) -> products, (n, out)."""

_FEW = 64  # rows: up to here decoding, beyond it scoring and prompts
# A way for few rows must gain at all of these: what gains on eight may lose on two.
_TRIED = {"few": (2, 8), "many": (256,)}
_MOST = 2**23  # weights of a layer that are multiplied where it is timed
_PATIENCE = 0.03  # seconds for the repeats of one way, beside the first
_GAIN = 0.85  # of torch's seconds; less gain is within what two measurements differ by
_LOSS = 1.05  # what a packed weight may lose at one number of rows, where it gains at the other
# oneDNN makes code for each number of rows, some milliseconds each.
_ROWS = (1, 4, *range(8, _FEW + 1, 8))
_KEPT = 500  # choices in the file
_WAIT = 60.0  # seconds for another process that measures


@dataclass(frozen=True)
class Choice:
    """Of one shape: the ways for few rows (decoding) and for many (scoring, prompts)."""

    few: str = "torch"
    many: str = "torch"
    shares: Mapping[str, float] | None = None
    """Seconds of each way over torch's, as ``packed few``; None where nothing was measured."""

    @property
    def packed(self) -> bool:
        return self.few == "packed"


def _torch(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return linear(rows, weight, bias)


def _turned(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found = torch.mm(weight, rows.t()).t()
    return found.contiguous() if bias is None else found.contiguous().add_(bias)


def _onednn(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    count = len(rows)
    if count <= _FEW:
        rows = pad(rows, (0, 0, 0, next(n for n in _ROWS if n >= count) - count))
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found[:count]


WAYS: Mapping[str, Way] = {"torch": _torch, "turned": _turned, "onednn": _onednn, "packed": _onednn}


class Product:
    """A layer's forward by the ways that were chosen for it."""

    def __init__(self, layer: Any, choice: Choice) -> None:
        # Not the layer, which holds this: a circle would keep an unused model in memory.
        self._weight, self._bias = layer.weight, layer.bias
        self._few, self._many = WAYS[choice.few], WAYS[choice.many]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        weight, bias = self._weight, self._bias
        if torch.is_grad_enabled() and inputs.requires_grad:  # as a search for a suffix asks
            return linear(inputs, weight.to_dense() if weight.is_mkldnn else weight, bias)
        rows = inputs.reshape(-1, inputs.shape[-1])
        if not len(rows):
            return inputs.new_empty(*inputs.shape[:-1], weight.shape[0])
        found = (self._few if len(rows) <= _FEW else self._many)(rows, weight, bias)
        return found.view(*inputs.shape[:-1], found.shape[-1])


def quicken(model: nn.Module) -> str | None:
    """Let the large dense layers of ``model``, which is on CPU and only answers from here on, take
    the fastest way for their shape; returns what was chosen in words, None where all stay torch's.

    A packed weight takes the place of the plain one. It is left out where that would cost memory:
    for a weight that something else holds too, as a tied embedding, and where none is free.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    kinds: dict[tuple[Any, ...], list[Any]] = {}
    holders = Counter(_place(parameter) for parameter in _every(model))
    for layer in _layers(model):
        can_pack = holders[_place(layer.weight)] == 1 and _whole(layer.weight)
        is_turned = isinstance(layer, Conv1D)
        if can_pack or not is_turned:
            kind = (*_oriented(layer).shape, layer.weight.dtype, can_pack, is_turned)
            kinds.setdefault(kind, []).append(layer)
    known, said = _Known(), []
    for (out, width, dtype, can_pack, is_turned), layers in kinds.items():
        size = out * width * dtype.itemsize * len(layers)
        names = ["torch", *(() if is_turned else ("turned", "onednn"))]
        if can_pack and psutil.virtual_memory().available > size + 2**30:
            names.append("packed")
        if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            names = [name for name in names if WAYS[name] is not _onednn]  # it refuses bf16 here
        key = f"{out}x{width} {str(dtype).removeprefix('torch.')} {'/'.join(names)}"
        choice = known.settle(key, names, [_oriented(each) for each in layers[:4]])
        _explain(out, width, len(layers), choice)
        if choice.few == choice.many == "torch":
            continue
        said.append(f"{out}x{width} {choice.few}/{choice.many}")
        for layer in layers:
            if choice.packed:
                packed = torch.ops.mkldnn._reorder_linear_weight(
                    _oriented(layer), _TRIED["few"][-1]
                )
                layer.weight = nn.Parameter(packed, requires_grad=False)
            layer.forward = Product(layer, choice)
    return ", ".join(said) or None


def measure(weights: Sequence[torch.Tensor], names: Sequence[str]) -> Choice:
    """Time the ways ``names``, of which one is ``torch``, on weights of one shape, (out, in); they
    are multiplied in turn, as in a model, so that no cache holds them.
    """
    weights = [weight[: max(1, _MOST // weight.shape[1])] for weight in weights]
    held: dict[str, Sequence[torch.Tensor]] = dict.fromkeys(names, weights)
    with torch.no_grad():
        if "packed" in names:
            pack = torch.ops.mkldnn._reorder_linear_weight
            held["packed"] = [pack(weight.contiguous(), _TRIED["few"][-1]) for weight in weights]
        worst = {}
        for regime, counts in _TRIED.items():
            tried = [name for name in names if regime == "few" or name != "turned"]
            found = []
            for count in counts:
                # Ones cost what all numbers do, and move no other draw.
                rows = weights[0].new_ones(count, weights[0].shape[1])
                works = {name: partial(_all, WAYS[name], rows, held[name]) for name in tried}
                found.append(best_seconds(works))
            worst[regime] = {n: max(each[n] / each["torch"] for each in found) for n in tried}
    return choose(worst["few"], worst["many"])


def _all(way: Way, rows: torch.Tensor, weights: Sequence[torch.Tensor]) -> None:
    for weight in weights:
        way(rows, weight, None)


def best_seconds(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The least of the thread's own seconds of each; they take turns, the first is not counted."""
    clock = time.thread_time
    if time.get_clock_info("thread_time").resolution > 1e-6:  # Windows
        clock = time.perf_counter
    for work in works.values():
        work()
    best, start = dict.fromkeys(works, float("inf")), time.perf_counter()
    for turn in range(5):
        if turn > 1 and time.perf_counter() - start > _PATIENCE * len(works):
            break
        for name, work in works.items():
            before = clock()
            work()
            best[name] = min(best[name], clock() - before)
    return best


def choose(few: Mapping[str, float], many: Mapping[str, float]) -> Choice:
    """From the seconds of each way, in any unit. Packed is both or neither."""
    plain = {}
    for regime, times in (("few", few), ("many", many)):
        name = min((n for n in times if n != "packed"), key=lambda n: times[n])
        plain[regime] = name if times[name] < _GAIN * times["torch"] else "torch"
    found = Choice(plain["few"], plain["many"])
    if "packed" in few:
        ratios = few["packed"] / few[found.few], many["packed"] / many[found.many]
        if min(ratios) < _GAIN and max(ratios) < _LOSS:
            found = Choice("packed", "packed")
    shares = {f"{n} few": t / few["torch"] for n, t in few.items() if n != "torch"}
    shares |= {f"{n} many": t / many["torch"] for n, t in many.items() if n != "torch"}
    return Choice(found.few, found.many, shares)


def _explain(out: int, width: int, count: int, choice: Choice) -> None:
    how = f"{choice.few} for few rows, {choice.many} for many"
    if choice.few == choice.many:
        how = choice.few
    shares = [f"{name} {share:.2f}" for name, share in (choice.shares or {}).items()]
    why = f"of torch's seconds: {', '.join(shares)}" if shares else "as measured here before"
    explain(f"products of {count} layers of {out}x{width}: {how} ({why})")


def _every(model: nn.Module) -> Iterator[torch.Tensor]:
    """All that modules hold, what two of them hold twice."""
    for module in model.modules():
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)


def _place(tensor: torch.Tensor) -> object:
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return tensor.untyped_storage().data_ptr() if is_plain else id(tensor)


def _whole(weight: torch.Tensor) -> bool:
    """Nothing else lies in its memory, so that this goes with it."""
    return weight.untyped_storage().nbytes() == weight.numel() * weight.element_size()


def _layers(model: nn.Module) -> Iterator[Any]:
    """The dense layers of torch's or transformers' own kind, on which nothing else is hung."""
    for layer in model.modules():
        if type(layer) not in (nn.Linear, Conv1D) or "forward" in vars(layer):
            continue
        weight: Any = layer.weight
        plain = type(weight) is nn.Parameter and type(weight.data) is torch.Tensor
        fits = plain and weight.device.type == "cpu" and weight.is_contiguous()
        if (
            fits
            and weight.dtype in (torch.float32, torch.bfloat16)
            and weight.numel() >= packable.LARGE
        ):
            yield layer


def _oriented(layer: Any) -> torch.Tensor:
    """Its weight as (out, in)."""
    weight: torch.Tensor = layer.weight.detach()
    return weight.t().contiguous() if isinstance(layer, Conv1D) else weight


class _Known:
    """Choices that were made on this machine, in a file of the user's cache folder: the same
    command is to take the same ways, and so to give the same bits, today and when it goes on.
    """

    def __init__(self) -> None:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        with suppress(RuntimeError):  # no home: a folder called ~ is none either
            base = base.expanduser()
        self.path = base / "unlearnbench" / "products.json"
        facts = [processor_name(), torch.backends.cpu.get_cpu_capability(), torch.__version__]
        facts += [f"{torch.get_num_threads()} threads", f"{_TRIED} rows"]
        self._here = f"{', '.join(facts)}: "
        self._found: dict[str, Any] = {}
        self._read()

    def settle(self, key: str, names: Sequence[str], weights: Sequence[torch.Tensor]) -> Choice:
        """The choice that is kept; else one is measured, and kept. One process at a time measures,
        so that those that begin together take the same.
        """
        found = self._get(key, names)
        if found is not None:
            return found
        with ExitStack() as stack:
            # Where nothing can be written or locked, each measures for itself.
            with suppress(OSError, NotImplementedError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(self.path.with_suffix(".lock"), timeout=_WAIT))
            self._read()
            found = self._get(key, names)
            if found is None:
                found = measure(weights, names)
                self._found[self._here + key] = [found.few, found.many]
                kept = dict([*self._found.items()][-_KEPT:])
                with suppress(OSError, RecursionError):  # then the next run measures again
                    write_whole(self.path, json.dumps(kept, indent=1).encode("ascii"))
        return found

    def _read(self) -> None:
        """What others wrote meanwhile too; nobody's edit is to stop an evaluation."""
        with suppress(OSError, ValueError, RecursionError):
            if self.path.stat().st_size < 2**20:
                content = json.loads(self.path.read_bytes())
                self._found |= content if isinstance(content, dict) else {}

    def _get(self, key: str, names: Sequence[str]) -> Choice | None:
        """None where it is not known, or what is stated cannot be."""
        match self._found.get(self._here + key):
            case [str(few), str(many)] if {few, many} <= {*names} and many != "turned":
                if (few == "packed") == (many == "packed"):
                    return Choice(few, many)
        return None
