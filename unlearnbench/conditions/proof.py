"""The proof that a condition is in force: what is in the loaded model, before it is used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from unlearnbench.checkpoints.load import (
    left_alone,
    linear_layers,
    matrices,
    out_first,
    require_most,
    text_modules,
)
from unlearnbench.conditions.base import (
    ConditionSpec,
    Inspect,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    dense_like,
    dtype_name,
    held_bytes,
)
from unlearnbench.errors import NotInForceError, PrecisionError
from unlearnbench.results import FULL, ON_GRID, Proof

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

# Kinds that spare no tensor.
_WHOLE = ("stored", "merged", "relearned")
_PER_KIND = 2
# Above this the values of some modules of every kind are compared, not of all.
_COMPARE_ALL = 300_000_000
_SORTED_AT_ONCE = 2**22

Judge: TypeAlias = "Callable[[str, torch.Tensor, torch.Tensor], Mapping[str, float]]"
"""(module, its weight in force, the checkpoint's) -> the figures that show a condition of its kind,
which the proof has as means over all weights. Raises NotInForceError where it is not."""


class _Comparison(NamedTuple):
    """One module's weights in force beside the checkpoint's."""

    signal: float
    """Sum of squares of the checkpoint's."""
    noise: float
    """Sum of squares of the differences."""
    changed: int
    weights: int
    codes: int
    """Most distinct values in a group; 0 where nothing is quantized."""
    figures: Mapping[str, float]
    """What the condition's kind shows."""

    @property
    def relative_error(self) -> float:
        return float((self.noise / self.signal) ** 0.5) if self.signal else 0.0


@dataclass
class Inspection:
    """What was seen in the covered modules, by module name."""

    weights: dict[str, int] = field(default_factory=dict)
    """How many weights."""
    dtypes: Counter[str] = field(default_factory=Counter)
    """Weights by the dtype that holds them."""
    stored_bytes: int = 0
    compared: dict[str, _Comparison] = field(default_factory=dict)
    """Those whose values were compared with the checkpoint's."""

    def add(self, name: str, reading: ModuleReading) -> None:
        """Count one module's weights and bytes."""
        self.weights[name] = reading.weight.numel()
        self.dtypes[reading.stored_as] += reading.weight.numel()
        self.stored_bytes += reading.stored_bytes


def finish(
    spec: ConditionSpec,
    source: CheckpointSource,
    model: PreTrainedModel,
    inspect: Inspect,
    plan: LoadPlan,
    judge: Judge | None = None,
) -> ModelWithProof:
    """Prove ``spec``, then write the weights in force back as dense ones where that was asked.

    Raises:
        NotInForceError: see ``prove``.
    """
    proof = prove(spec, source, model, inspect, judge)
    for name, module in text_modules(model).items() if plan.kernel == "dequantized" else []:
        reading = inspect(name, module)
        if reading is not None:
            bias = getattr(module, "bias", None)
            bias = None if bias is None else bias.to(plan.dtype)
            origin = source.model().get_submodule(name)
            model.set_submodule(name, dense_like(origin, reading.weight.to(plan.dtype), bias))
    return ModelWithProof(model, proof)


def load_changed(
    spec: ConditionSpec,
    source: CheckpointSource,
    plan: LoadPlan,
    change: Callable[[str, torch.Tensor], torch.Tensor],
    judge: Judge | None = None,
    read: Callable[[str, torch.Tensor], ModuleReading] | None = None,
) -> ModelWithProof:
    """A dense model in whose linear layers but the output head ``change(name, weight)`` is in
    force, with its proof. The weight is the checkpoint's own, not one already rounded to the
    compute dtype. ``read``: what a module with such a weight holds; None: a dense row.

    Raises:
        NotInForceError: see ``prove``.
    """
    from torch.nn import Parameter

    before = source.state_dict()
    model = source.build(plan.dtype, plan.device)
    layers = linear_layers(model)
    for name, layer in layers.items():
        weight = change(name, out_first(layer, before[f"{name}.weight"]))
        weight = weight.to(device=layer.weight.device, dtype=plan.dtype)
        layer.weight = Parameter(out_first(layer, weight).contiguous(), requires_grad=False)

    def inspect(name: str, module: nn.Module) -> ModuleReading | None:
        if name not in layers:
            return None
        weight = out_first(module, module.get_parameter("weight"))
        return ModuleReading.of(weight, None, weight) if read is None else read(name, weight)

    return ModelWithProof(model, prove(spec, source, model, inspect, judge))


def load_state(
    spec: ConditionSpec,
    source: CheckpointSource,
    plan: LoadPlan,
    state: dict[str, torch.Tensor],
    judge: Judge | None = None,
) -> ModelWithProof:
    """A dense model of other weights, ``state``, with its proof, in which every linear layer but
    the output head is compared with the checkpoint's. Raises NotInForceError: see ``prove``.
    """
    model = source.build(plan.dtype, plan.device, state=state)
    layers = linear_layers(model)

    def inspect(name: str, module: nn.Module) -> ModuleReading | None:
        if name not in layers:
            return None
        weight = out_first(module, module.get_parameter("weight"))
        return ModuleReading.of(weight, None, weight)

    return ModelWithProof(model, prove(spec, source, model, inspect, judge))


def prove(
    spec: ConditionSpec,
    source: CheckpointSource,
    model: PreTrainedModel,
    inspect: Inspect,
    judge: Judge | None = None,
) -> Proof:
    """Gather proof that ``spec`` is in force in ``model``, which was made from ``source``.

    Raises:
        NotInForceError: a linear module but the output head is not covered, most weights lie
            elsewhere (fused experts), a weight in force is not finite or not of the checkpoint's
            shape, a group has more distinct values than the bits allow, the values are not the
            checkpoint's at all, or ``judge`` says so.
    """
    before = source.state_dict()
    origin = source.model()
    names, text = list(linear_layers(origin)), text_modules(origin)
    chosen = set(_choose(names, before))
    inspection = Inspection()
    for name, module in text_modules(model).items():
        reading = inspect(name, module)
        if reading is not None:
            inspection.add(name, reading)
            own = before.get(f"{name}.weight")
            if own is None:
                raise NotInForceError(f"module {name} has no weight in the checkpoint")
            own = out_first(origin.get_submodule(name), own)
            if reading.weight.shape != own.shape:
                raise NotInForceError(
                    f"module {name} has shape {tuple(reading.weight.shape)}, and the checkpoint's "
                    f"weight {tuple(own.shape)}"
                )
            if name in chosen:
                own = own.detach().to(reading.weight.device)
                figures = judge(name, reading.weight.detach(), own) if judge is not None else {}
                inspection.compared[name] = _compare(spec, name, reading, own, figures)
    if spec.name != FULL:
        _require_all(spec, names, inspection.weights)
    if spec.kind != "stored":
        require_coverable(spec, source, inspection.weights)
    facts = describe(model, inspection)
    if spec.kind in _WHOLE and spec.name != FULL:
        facts["uncovered"] = {}
    # Tied weights of the checkpoint count once.
    own_text = (t for name, t in before.items() if name.rpartition(".")[0] in text)
    total = sum({t.data_ptr(): t.numel() for t in own_text}.values())
    return Proof.model_validate(facts | {"total_weights": total} | _summary(inspection.compared))


def _require_all(spec: ConditionSpec, names: list[str], covered: Collection[str]) -> None:
    done = "quantized" if spec.kind == "stored" else spec.kind
    if not covered:
        raise NotInForceError(
            f"{spec.name}: no module of the loaded model is {done}; its scores would be those "
            "of full precision"
        )
    left = sorted(set(names) - set(covered))
    if left:
        raise NotInForceError(
            f"{spec.name}: {len(left)} of {len(names)} linear modules are not {done}, as "
            f"{left[0]}; its scores would be those of a mixture"
        )


def require_linear(spec: ConditionSpec, source: CheckpointSource) -> None:
    """Refuse layers that ``spec``'s library passes over.

    Raises:
        PrecisionError: names one.
    """
    from transformers.pytorch_utils import Conv1D

    for name, layer in linear_layers(source.model()).items():
        if isinstance(layer, Conv1D):
            raise PrecisionError(
                f"{spec.name}: {spec.backend} quantizes torch's Linear only, and {name} is a "
                "Conv1D, which holds its weight transposed (GPT-2's kind); use a bnb, rtn, gguf "
                "or hqq precision"
            )


def require_text_alone(spec: ConditionSpec, source: CheckpointSource) -> None:
    """Refuse a model that takes more than text, of which ``spec``'s library would take it apart.

    Raises:
        PrecisionError: it does.
    """
    if left_alone(source.model()) is not None:
        raise PrecisionError(
            f"{spec.name} is made of models of text only, and {source.files.path} takes images or "
            "sound too; use a bnb, rtn, gguf, hqq, quanto or torchao precision"
        )


def require_coverable(
    spec: ConditionSpec, source: CheckpointSource, covered: Collection[str] | None = None
) -> None:
    """Refuse a model of which ``spec`` leaves most weights as they are; without ``covered``, before
    a library takes the model apart.

    Raises:
        NotInForceError: most weights lie outside linear modules.
    """
    model = source.model()
    covered = set(linear_layers(model) if covered is None else covered)
    require_most(spec.name, matrices(model), covered)


def _choose(names: list[str], before: Mapping[str, torch.Tensor]) -> list[str]:
    """All modules, or in a large model some of every kind (q_proj, ...) from all depths."""
    total = sum(before[f"{name}.weight"].numel() for name in names if f"{name}.weight" in before)
    if total <= _COMPARE_ALL:
        return names
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    return [n for kind in kinds.values() for n in kind[:: max(1, len(kind) // _PER_KIND)]]


def _compare(
    spec: ConditionSpec,
    name: str,
    reading: ModuleReading,
    before: torch.Tensor,
    figures: Mapping[str, float],
) -> _Comparison:
    import torch

    now = (reading.weight if reading.own is None else reading.own).float()
    own = before.float()
    if not bool(torch.isfinite(now).all()):
        raise NotInForceError(f"{spec.name}: a weight of module {name} is NaN or infinite")
    bits = spec.bits if reading.bits is None else reading.bits
    codes = distinct_values(reading.groups) if bits is not None and bits < 16 else 0
    if bits is not None and codes > 2**bits:
        raise NotInForceError(
            f"{spec.name}: a group of module {name} holds {codes} distinct values, more than "
            f"{bits:g} bits can tell apart"
        )
    found = _Comparison(
        signal=float(own.square().sum(dtype=torch.float64)),
        noise=float((now - own).square().sum(dtype=torch.float64)),
        changed=int((now != own).sum()),
        weights=own.numel(),
        codes=codes,
        figures=figures,
    )
    # Rounding to 4 bits or more never moves weights as far as another matrix is away.
    if spec.bits is not None and spec.bits >= 4 and found.relative_error >= 1:
        raise NotInForceError(
            f"{spec.name}: the weights in force in module {name} are not those of the checkpoint "
            f"(relative error {found.relative_error:.3g})"
        )
    return found


def distinct_values(groups: torch.Tensor) -> int:
    """The most distinct values in one row of a matrix of shape (groups, size)."""
    rows = max(1, _SORTED_AT_ONCE // groups.shape[1])
    most = 0
    for part in groups.split(rows):
        ordered = part.float().sort(dim=1).values
        most = max(most, int((ordered[:, 1:] != ordered[:, :-1]).sum(dim=1).max()) + 1)
    return most


def describe(model: PreTrainedModel, inspection: Inspection) -> dict[str, object]:
    """The fields of ``Proof`` that need no unquantized weights, of what text passes through."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    inside, text = inspection.weights, text_modules(model)
    rest = {
        name: parameter
        for name, parameter in model.named_parameters()  # tied ones once
        if (name.rpartition(".")[0] in text.keys() - inside.keys() and name not in inside)
        or (name.endswith(".bias") and name.rpartition(".")[0] in text)
    }
    dtypes, uncovered = Counter(inspection.dtypes), Counter[str]()
    for name, parameter in rest.items():
        dtypes[dtype_name(parameter)] += parameter.numel()
        uncovered[pattern(name)] += parameter.numel()
    types = Counter(
        type(module).__name__
        for name, module in text.items()
        if name in inside or isinstance(module, (nn.Linear, Conv1D))
    )
    covered = sum(inside.values())
    return {
        "module_types": _sorted(types),
        "covered_modules": _sorted(Counter(map(pattern, inside))),
        "uncovered": _sorted(uncovered),
        "weights_by_dtype": _sorted(dtypes),
        "covered_weights": covered,
        "total_weights": covered + sum(p.numel() for p in rest.values()),
        "weight_bytes": inspection.stored_bytes + held_bytes(*rest.values()),
        "compared_modules": len(inspection.compared),
        "on_grid": False,
    }


def _summary(compared: Mapping[str, _Comparison]) -> dict[str, object]:
    if not compared:
        return {}
    every = list(compared.values())
    signal, weights = sum(c.signal for c in every), sum(c.weights for c in every)
    errors = {name: c.relative_error for name, c in compared.items()}
    worst = max(errors, key=lambda name: errors[name])
    figures = {
        name: sum(c.weights * c.figures[name] for c in every) / weights for name in every[0].figures
    }
    return {
        "changed_share": sum(c.changed for c in every) / weights,
        "relative_error": (sum(c.noise for c in every) / signal) ** 0.5 if signal else None,
        "mean_relative_error": sum(errors.values()) / len(errors),
        "max_relative_error": errors[worst],
        "max_error_module": worst,
        "on_grid": errors[worst] < ON_GRID,
        "codes": max(c.codes for c in every) or None,
        "figures": figures or None,
    }


def pattern(name: str) -> str:
    """A name with layers' numbers written as ``*``."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def join_proofs(proofs: Mapping[str, Proof]) -> Proof:
    """One proof for several models, by name: counts add up, and the largest error and most codes
    count.
    """

    def among(name: str) -> list[Any]:
        return [v for v in (getattr(proof, name) for proof in proofs.values()) if v is not None]

    update: dict[str, object] = {}
    for name in ("module_types", "covered_modules", "uncovered", "weights_by_dtype"):
        total = Counter[str]()
        for counts in among(name):
            total.update(counts)
        update[name] = _sorted(total)
    for name in ("covered_weights", "total_weights", "weight_bytes", "compared_modules"):
        update[name] = sum(among(name))
    # All have one shape, so as many weights and modules of each were compared.
    for name in ("changed_share", "mean_relative_error"):
        if among(name):
            update[name] = fmean(among(name))
    for name in ("relative_error", "max_relative_error", "codes"):
        update[name] = max(among(name), default=None)
    update["on_grid"] = all(proof.on_grid for proof in proofs.values())
    figures = among("figures")
    if figures:
        update["figures"] = {n: fmean(part[n] for part in figures) for n in figures[0]}
    name, worst = max(proofs.items(), key=lambda found: found[1].max_relative_error or 0)
    if worst.max_error_module is not None:
        update["max_error_module"] = f"{name}: {worst.max_error_module}"
    return next(iter(proofs.values())).model_copy(update=update)
