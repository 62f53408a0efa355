"""What backends share: the description of a precision, and the proof that it is in force."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from unlearnbench.errors import NotInForceError
from unlearnbench.results import Proof

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["Loaded", "PrecisionSpec", "Seen", "prove"]

_PER_KIND = 2


@dataclass(frozen=True)
class PrecisionSpec:
    """One precision: its full name, bits of a quantized weight (None: the checkpoint's own) and
    how it is made. ``options`` are recorded in results and go to the backend's library.
    """

    name: str
    bits: float | None
    scheme: str
    backend: str
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)


class Loaded(NamedTuple):
    """A model ready to answer, and what shows its precision."""

    model: PreTrainedModel
    proof: Proof


class Seen(NamedTuple):
    """What a backend sees in one quantized module: the weight in force, and its distinct codes."""

    weight: torch.Tensor
    codes: int | None


def prove(
    spec: PrecisionSpec,
    model: PreTrainedModel,
    before: Mapping[str, torch.Tensor],
    inspect: Callable[[nn.Module], Seen | None],
) -> Proof:
    """Gather proof that ``spec`` is in force in ``model``.

    before: the checkpoint's own weights by parameter name. inspect: returns what is in a quantized
    module and None for any other; called before the first forward pass, because bitsandbytes
    repacks its 4-bit weights there on CPU and can no longer give them back.

    Raises:
        NotInForceError: a quantized precision without a quantized module, a module without the
            checkpoint weight it came from, or more distinct codes than the bits allow.
    """
    from torch import nn

    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    quantized = [name for name, module in linear.items() if inspect(module) is not None]
    if spec.bits is not None and not quantized:
        raise NotInForceError(
            f"{spec.name}: no module of the loaded model is quantized; its scores would be those "
            "of full precision"
        )
    if spec.bits is not None and spec.bits < 16:
        _require_most(spec, model, before, set(quantized))
    lost = [name for name in quantized if f"{name}.weight" not in before]
    if lost:
        raise NotInForceError(f"{spec.name}: module {lost[0]} has no weight in the checkpoint")
    chosen = _spread(quantized)
    compared = [_compare(linear[n], before[f"{n}.weight"], inspect) for n in chosen]
    codes = max((c for _, _, c in compared if c is not None), default=None)
    if codes is not None and spec.bits is not None and codes > 2**spec.bits:
        raise NotInForceError(f"{spec.name}: a module holds {codes} distinct codes")
    signal = sum(s for s, _, _ in compared)
    error = (sum(e for _, e, _ in compared) / signal) ** 0.5 if signal else None
    return Proof(
        module_types=_count(type(m).__name__ for m in linear.values()),
        weights_by_dtype=_count_weights(model),
        quantized_weights=sum(before[f"{name}.weight"].numel() for name in quantized),
        total_weights=_total_weights(before),
        weight_bytes=_bytes(model),
        relative_error=error,
        compared_modules=len(compared),
        on_grid=error == 0.0,
        codes=codes,
    )


def _require_most(
    spec: PrecisionSpec,
    model: PreTrainedModel,
    before: Mapping[str, torch.Tensor],
    quantized: set[str],
) -> None:
    """Refuse a model whose knowledge lies outside what was quantized, as fused experts do."""
    from torch import nn

    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    skipped = {
        name for name, m in model.named_modules() if id(m) in ends or isinstance(m, nn.Embedding)
    }
    sizes = {
        name.removesuffix(".weight"): tensor.numel()
        for name, tensor in before.items()
        if tensor.dim() > 1 and name.removesuffix(".weight") not in skipped
    }
    left = {name: size for name, size in sizes.items() if name not in quantized}
    if sum(left.values()) > 0.1 * sum(sizes.values()):
        largest = max(left, key=lambda name: left[name])
        raise NotInForceError(
            f"{spec.name} leaves {sum(left.values()):,} of {sum(sizes.values()):,} weights as they "
            f"are, the most in {largest}; this kind of model cannot be measured at this precision"
        )


def _spread(names: list[str]) -> list[str]:
    """Some modules of every kind (q_proj, up_proj, ...), from all depths."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    return [n for kind in kinds.values() for n in kind[:: max(1, len(kind) // _PER_KIND)]]


def _compare(
    module: nn.Module, before: torch.Tensor, inspect: Callable[[nn.Module], Seen | None]
) -> tuple[float, float, int | None]:
    """Sum of squares of the checkpoint's weight, and of its difference to the one in force."""
    import torch

    seen = inspect(module)
    if seen is None or seen.weight.shape != before.shape:
        raise NotInForceError("a quantized module's weight has another shape than the checkpoint's")
    own = before.to(device=seen.weight.device, dtype=torch.float32)
    now = seen.weight.float()
    if not bool(torch.isfinite(now).all()):
        raise NotInForceError("a quantized weight is NaN or infinite")
    return float(own.square().sum()), float((now - own).square().sum()), seen.codes


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _count_weights(model: PreTrainedModel) -> dict[str, int]:
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + parameter.numel()
    return dict(sorted(counts.items()))


def _total_weights(state: Mapping[str, torch.Tensor]) -> int:
    """Weights of the checkpoint; tied ones count once."""
    return sum({t.data_ptr(): t.numel() for t in state.values()}.values())


def _bytes(model: PreTrainedModel) -> int:
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        for constant in _constants(parameter):
            total += constant.numel() * constant.element_size()
    return total


def _constants(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Scales that bitsandbytes keeps beside a packed weight."""
    state = getattr(parameter, "quant_state", None)
    found = [getattr(state, "absmax", None), getattr(parameter, "SCB", None)]
    return [tensor for tensor in found if tensor is not None]
