"""The proof that a precision is in force: what is in the loaded model, before it is used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench.checkpoints.linear import linear_layers, require_most
from unlearnbench.conditions.base import (
    How,
    Inspect,
    Loaded,
    PrecisionSpec,
    Seen,
    dtype_name,
    held_bytes,
    make_dense,
)
from unlearnbench.errors import NotInForceError
from unlearnbench.results import ON_GRID, Proof

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

# How two proofs become one, by field.
_COUNTED = ("module_types", "covered_modules", "uncovered", "weights_by_dtype")
_SUMMED = ("covered_weights", "total_weights", "weight_bytes", "compared_modules")
_AVERAGED = ("changed_share", "mean_relative_error")
_LARGEST = ("relative_error", "max_relative_error", "codes")
_PER_KIND = 2
# Above this the values of some modules of every kind are compared, not of all.
_COMPARE_ALL = 300_000_000
_SORTED_AT_ONCE = 2**22


class _Compared(NamedTuple):
    signal: float
    noise: float
    changed: int
    weights: int
    codes: int

    @property
    def relative_error(self) -> float:
        return float((self.noise / self.signal) ** 0.5) if self.signal else 0.0


def finish(
    spec: PrecisionSpec,
    source: CheckpointSource,
    model: PreTrainedModel,
    inspect: Inspect,
    how: How,
) -> Loaded:
    """Prove ``spec``, then write the weights in force back as dense ones where that was asked.

    Raises:
        NotInForceError: see ``prove``.
    """
    proof = prove(spec, source, model, inspect)
    if how.kernel == "dequantized":
        make_dense(model, inspect, how.dtype)
    return Loaded(model, proof)


def prove(
    spec: PrecisionSpec, source: CheckpointSource, model: PreTrainedModel, inspect: Inspect
) -> Proof:
    """Gather proof that ``spec`` is in force in ``model``, which was made from ``source``.

    Raises:
        NotInForceError: a linear module but the output head is not quantized, most weights lie
            elsewhere (fused experts), a weight in force is not finite or not of the checkpoint's
            shape, a group has more distinct values than the bits allow, or the values are not the
            checkpoint's at all.
    """
    before = source.state_dict()
    names = list(linear_layers(source.model()))
    chosen = set(_choose(names, before))
    found = Found()
    for name, module in model.named_modules():
        seen = inspect(name, module)
        if seen is not None:
            found.add(name, seen)
            own = _own_weight(name, seen, before)
            if name in chosen:
                found.compared[name] = _compare(spec, name, seen, own)
    _require_all(spec, names, list(found.weights))
    if spec.bits is not None and spec.bits < 16:
        _require_covered(spec, source, found.weights)
    return _summary(spec, model, before, found)


@dataclass
class Found:
    """What was seen in the quantized modules, by module name."""

    weights: dict[str, int] = field(default_factory=dict)
    dtypes: Counter[str] = field(default_factory=Counter)
    stored_bytes: int = 0
    compared: dict[str, _Compared] = field(default_factory=dict)

    def add(self, name: str, seen: Seen) -> None:
        """Count one module's weights and bytes."""
        self.weights[name] = seen.weight.numel()
        self.dtypes[seen.stored_as] += seen.weight.numel()
        self.stored_bytes += seen.stored_bytes


def _require_all(spec: PrecisionSpec, names: list[str], quantized: list[str]) -> None:
    if spec.bits is None:
        return
    if not quantized:
        raise NotInForceError(
            f"{spec.name}: no module of the loaded model is quantized; its scores would be those "
            "of full precision"
        )
    left = sorted(set(names) - set(quantized))
    if left:
        raise NotInForceError(
            f"{spec.name}: {len(left)} of {len(names)} linear modules are not quantized, as "
            f"{left[0]}; its scores would be those of a mixture"
        )


def require_coverable(spec: PrecisionSpec, source: CheckpointSource) -> None:
    """Refuse a model that ``spec`` would leave mostly as it is, before a library takes it apart.

    Raises:
        NotInForceError: most weights lie outside linear modules.
    """
    _require_covered(spec, source, list(linear_layers(source.model())))


def _require_covered(
    spec: PrecisionSpec, source: CheckpointSource, covered: Collection[str]
) -> None:
    from torch import nn

    model = source.model()
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    skipped = {
        name for name, m in model.named_modules() if id(m) in ends or isinstance(m, nn.Embedding)
    }
    sizes = {
        name.removesuffix(".weight"): tensor.numel()
        for name, tensor in source.state_dict().items()
        if tensor.dim() > 1 and name.removesuffix(".weight") not in skipped
    }
    require_most(spec.name, sizes, set(covered))


def _choose(names: list[str], before: Mapping[str, torch.Tensor]) -> list[str]:
    """All modules, or in a large model some of every kind (q_proj, ...) from all depths."""
    total = sum(before[f"{name}.weight"].numel() for name in names if f"{name}.weight" in before)
    return names if total <= _COMPARE_ALL else _spread(names)


def _spread(names: list[str]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    return [n for kind in kinds.values() for n in kind[:: max(1, len(kind) // _PER_KIND)]]


def _own_weight(name: str, seen: Seen, before: Mapping[str, torch.Tensor]) -> torch.Tensor:
    own = before.get(f"{name}.weight")
    if own is None:
        raise NotInForceError(f"module {name} has no weight in the checkpoint")
    if seen.weight.shape != own.shape:
        raise NotInForceError(
            f"module {name} has shape {tuple(seen.weight.shape)}, and the checkpoint's weight "
            f"{tuple(own.shape)}"
        )
    return own


def _compare(spec: PrecisionSpec, name: str, seen: Seen, before: torch.Tensor) -> _Compared:
    import torch

    now = (seen.weight if seen.own is None else seen.own).float()
    own = before.to(device=now.device, dtype=torch.float32)
    if not bool(torch.isfinite(now).all()):
        raise NotInForceError(f"{spec.name}: a weight of module {name} is NaN or infinite")
    narrow = spec.bits is not None and spec.bits < 16
    codes = distinct_values(seen.groups) if narrow else 0
    if spec.bits is not None and narrow and codes > 2**spec.bits:
        raise NotInForceError(
            f"{spec.name}: a group of module {name} holds {codes} distinct values, more than "
            f"{spec.bits:g} bits can tell apart"
        )
    found = _Compared(
        signal=float(own.square().sum(dtype=torch.float64)),
        noise=float((now - own).square().sum(dtype=torch.float64)),
        changed=int((now != own).sum()),
        weights=own.numel(),
        codes=codes,
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


def _summary(
    spec: PrecisionSpec, model: PreTrainedModel, before: Mapping[str, torch.Tensor], found: Found
) -> Proof:
    facts = describe(model, found)
    if spec.bits is not None and spec.bits >= 16:
        facts["uncovered"] = {}  # a storage dtype spares nothing
    facts |= {"total_weights": _total_weights(before), **_figures(found.compared)}
    return Proof.model_validate(facts)


def describe(model: PreTrainedModel, found: Found) -> dict[str, object]:
    """The fields of ``Proof`` that need no unquantized weights."""
    inside = set(found.weights)
    rest = {
        name: parameter
        for name, parameter in model.named_parameters()  # tied ones once
        if name.rpartition(".")[0] not in inside or name.endswith(".bias")
    }
    dtypes = Counter(found.dtypes)
    for parameter in rest.values():
        dtypes[dtype_name(parameter)] += parameter.numel()
    quantized = sum(found.weights.values())
    return {
        "module_types": _module_types(model, inside),
        "covered_modules": _sorted(Counter(map(_pattern, found.weights))),
        "uncovered": _weights_by_pattern(rest),
        "weights_by_dtype": _sorted(dtypes),
        "covered_weights": quantized,
        "total_weights": quantized + sum(p.numel() for p in rest.values()),
        "weight_bytes": found.stored_bytes + held_bytes(*rest.values()),
        "compared_modules": len(found.compared),
        "on_grid": False,
    }


def _figures(compared: Mapping[str, _Compared]) -> dict[str, object]:
    if not compared:
        return {}
    signal = sum(c.signal for c in compared.values())
    errors = {name: c.relative_error for name, c in compared.items()}
    worst = max(errors, key=lambda name: errors[name])
    return {
        "changed_share": sum(c.changed for c in compared.values())
        / sum(c.weights for c in compared.values()),
        "relative_error": (sum(c.noise for c in compared.values()) / signal) ** 0.5
        if signal
        else None,
        "mean_relative_error": sum(errors.values()) / len(errors),
        "max_relative_error": errors[worst],
        "max_error_module": worst,
        "on_grid": errors[worst] < ON_GRID,
        "codes": max(c.codes for c in compared.values()) or None,
    }


def _module_types(model: PreTrainedModel, quantized: set[str]) -> dict[str, int]:
    from torch import nn

    return _sorted(
        Counter(
            type(module).__name__
            for name, module in model.named_modules()
            if name in quantized or isinstance(module, nn.Linear)
        )
    )


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _weights_by_pattern(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        counts[_pattern(name)] += tensor.numel()
    return _sorted(counts)


def _total_weights(state: Mapping[str, torch.Tensor]) -> int:
    """Weights of the checkpoint; tied ones count once."""
    return sum({t.data_ptr(): t.numel() for t in state.values()}.values())


def join_proofs(proofs: Mapping[str, Proof]) -> Proof:
    """One proof for several models, by name: counts add up, and the largest error and most codes
    count.
    """

    def added(name: str) -> dict[str, int]:
        total: Counter[str] = Counter()
        for proof in proofs.values():
            total.update(getattr(proof, name))
        return _sorted(total)

    def among(name: str) -> list[Any]:
        return [v for v in (getattr(proof, name) for proof in proofs.values()) if v is not None]

    update: dict[str, object] = {name: added(name) for name in _COUNTED}
    update |= {name: sum(among(name)) for name in _SUMMED}
    # All have one shape, so as many weights and modules of each were compared.
    update |= {name: fmean(among(name)) for name in _AVERAGED if among(name)}
    update |= {name: max(among(name), default=None) for name in _LARGEST}
    update["on_grid"] = all(proof.on_grid for proof in proofs.values())
    name, worst = max(proofs.items(), key=lambda found: found[1].max_relative_error or 0)
    if worst.max_error_module is not None:
        update["max_error_module"] = f"{name}: {worst.max_error_module}"
    return next(iter(proofs.values())).model_copy(update=update)
