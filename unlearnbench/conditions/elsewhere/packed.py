"""What is in the modules of a deployed folder, with the levels next to each weight: from the scales
that the file holds, or where few bits tell them, from the values themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.checkpoint import CheckpointSource
from unlearnbench.checkpoints.find import SCHEMES
from unlearnbench.checkpoints.packed import StoredScheme
from unlearnbench.conditions.base import ModuleReading
from unlearnbench.conditions.elsewhere.distance import SLACK, Grid, Law, near_levels
from unlearnbench.conditions.quantize.gptqmodel import scaling
from unlearnbench.conditions.stored import packed_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Found = tuple[str, ModuleReading, Grid]
# compressed-tensors divides by the scale in the checkpoint's own dtype, which may be bf16, and
# unpacks some schemes into bf16, whatever it is asked for.
_UNPACKED = 2.0**-8
_E4M3 = (-6, 3, 448.0)
"""Of FP8 E4M3: the exponent of its smallest normal number, bits of the mantissa, the largest."""


def read_modules(
    scheme: StoredScheme,
    other: CheckpointSource,
    model: PreTrainedModel,
    own: Callable[[str], torch.Tensor],
) -> Iterator[Found]:
    """Every packed module: its name, what is in force, and its levels. own: gives the weight (out,
    in) of the checkpoint that it is held against.
    """
    law = _law(scheme, other)
    for name, module, reading in packed_modules(scheme, model, other):
        if scheme.method == "mxfp4":
            yield name, reading, _stacked(scheme, reading)
        elif scheme.method == "gptq":
            yield name, reading, _gptq(reading.weight, module, law)
        elif scheme.method == "awq":
            yield name, *_awq(reading, module, own(name))
        elif scheme.method == "bitsandbytes":
            yield name, reading, _bitsandbytes(scheme, reading, module)
        else:
            yield name, *_scaled(scheme, other, name, reading, own(name), law)


def _law(scheme: StoredScheme, other: CheckpointSource) -> Law:
    """By what the config says. compressed-tensors does not say whether errors were moved."""
    facts: Any = next(iter(other.full.config[key] for key in SCHEMES if key in other.full.config))
    if "auto" in str(facts.get("provider")) + str((facts.get("meta") or {}).get("quantizer")):
        return "none"  # AutoRound learns which way each weight is rounded
    if scheme.method == "gptq":
        meta = facts.get("meta") or {}
        ordered = facts.get("desc_act") or meta.get("act_group_aware")
        return "column" if ordered else "first"
    if scheme.method == "compressed-tensors":
        parts = facts["config_groups"].values()
        return "column" if any(part["weights"].get("actorder") for part in parts) else "first"
    return "all"


def _even(values: torch.Tensor, step: torch.Tensor, law: Law, group: int | None = None) -> Grid:
    """An even grid with a step for each weight; a group's ends have nothing beyond them."""
    inf = float("inf")
    size = group if group and values.shape[1] % group == 0 else values.shape[1]
    parts = values.reshape(values.shape[0], -1, size)
    low, high = (
        end.expand(parts.shape).reshape(values.shape)
        for end in (parts.amin(2, keepdim=True), parts.amax(2, keepdim=True))
    )
    half = step.to(values) / 2 + SLACK * values.abs().amax(1, keepdim=True)
    return Grid(half.masked_fill(values == low, inf), half.masked_fill(values == high, inf), law)


def _gptq(values: torch.Tensor, module: Any, law: Law) -> Grid:
    scales, order = module.scales.float(), module.g_idx.long()
    step = scales[order].T
    grid = _even(values, step, law)
    # The ends of the grid: what lies beyond is cut off there.
    most = (2 ** (module.bits - 1) - 1) * step * (1 - SLACK)
    inf = float("inf")
    return Grid(
        grid.below.masked_fill(values <= -most, inf),
        grid.above.masked_fill(values >= most, inf),
        law,
    )


def _awq(reading: ModuleReading, module: Any, own: torch.Tensor) -> tuple[ModuleReading, Grid]:
    """Its scales stand in the layers before and after, and are divided out."""
    values = reading.weight.float()
    scales = scaling(values, own)
    plain, factor = (values / scales).float(), (1 / scales.abs()).float()
    size = module.group_size if module.group_size > 0 else values.shape[1]
    step = module.scales.float().T.repeat_interleave(size, 1)[:, : values.shape[1]]
    return reading._replace(own=plain), _even(plain, step * factor, "none")


def _stacked(scheme: StoredScheme, reading: ModuleReading) -> Grid:
    """Of experts in one tensor, (experts, in, out), whose groups run along ``in``."""
    import torch

    rows = reading.weight.float().mT.contiguous()
    sides = near_levels(rows.numpy(), scheme.group)
    below, above = (torch.from_numpy(side).reshape(rows.shape).mT for side in sides)
    return Grid(below, above)


def _bitsandbytes(scheme: StoredScheme, reading: ModuleReading, module: Any) -> Grid:
    import torch

    values = reading.weight.float()
    if scheme.bits == 8:
        scale = getattr(module.weight, "SCB", None)
        scale = module.state.SCB if scale is None else scale
        return _even(values, scale.float()[:, None].expand(values.shape) / 127, "all")
    sides = near_levels(reading.groups.float().numpy(), None)
    below, above = (torch.from_numpy(s).reshape(-1)[: values.numel()] for s in sides)
    # Where scales are quantized themselves, codes were chosen by others than are in force.
    law: Law = "none" if scheme.name.endswith("-dq") else "all"
    return Grid(below.reshape(values.shape), above.reshape(values.shape), law)


def _scaled(
    scheme: StoredScheme,
    other: CheckpointSource,
    name: str,
    reading: ModuleReading,
    own: torch.Tensor,
    law: Law,
) -> tuple[ModuleReading, Grid]:
    """Of compressed-tensors and FP8: the scales stand beside the weights in the files. Where these
    were scaled before they were rounded (AWQ, SmoothQuant), that is divided out.
    """
    import torch

    values = reading.weight.float()
    plain, factor = values, torch.ones_like(values)
    if not _is_near(values, own.float()):
        scales, law = scaling(values, own), "none"
        plain, factor = (values / scales).float(), (1 / scales.abs()).float()
        reading = reading._replace(own=plain)
    scale = _scale(scheme, other, name, values.shape)
    if scheme.bits <= 4 and ("fp4" in scheme.name or scale is None):
        sides = near_levels(plain.numpy(), scheme.group)
        return reading, Grid(torch.from_numpy(sides[0]), torch.from_numpy(sides[1]), law)
    if scale is None:  # no more than a step of a mantissa of 3 bits
        half = plain.abs() / 16 + SLACK * plain.abs().amax(1, keepdim=True)
        return reading, Grid(half, half, law)
    if "fp8" in scheme.name or "mxfp8" in scheme.name:
        return reading, _float(values, scale, factor, law)
    grid, room = _even(plain, scale * factor, law, scheme.group), _UNPACKED * plain.abs()
    return reading, Grid(grid.below + room, grid.above + room, law)


def _is_near(values: torch.Tensor, own: torch.Tensor) -> bool:
    return float((values - own).norm()) < 0.5 * float(own.norm())


def _scale(
    scheme: StoredScheme, other: CheckpointSource, name: str, shape: torch.Size
) -> torch.Tensor | None:
    """Of every weight, from the files; None where they are packed otherwise."""
    from safetensors import safe_open

    key = f"{name}.weight_scale" + ("_inv" if scheme.method == "fp8" else "")
    if key not in other.full.tensors:
        return None
    for path in other.full.weights:
        with safe_open(path, framework="pt") as file:
            if key in file.keys():  # noqa: SIM118
                found = file.get_tensor(key)
                break
    if not found.is_floating_point():  # exponents of 2, as of MXFP8
        found = 2.0 ** (found.float() - 127)
    found = found.float().reshape(-1, found.shape[-1] if found.dim() > 1 else 1)
    rows, columns = found.shape
    if rows > shape[0] or columns > shape[1]:
        return None
    tall, wide = -(-shape[0] // rows), -(-shape[1] // columns)
    if scheme.group and columns > 1:
        wide = scheme.group
        tall = wide if rows < shape[0] and rows > 1 else tall
    full = found.repeat_interleave(tall, 0).repeat_interleave(wide, 1)
    full = full[: shape[0], : shape[1]]
    return full if full.shape == shape else None


def _float(values: torch.Tensor, scale: torch.Tensor, factor: torch.Tensor, law: Law) -> Grid:
    """Halves of the way to the neighbours of FP8 E4M3, inward half as far at a power of two."""
    import torch

    least, bits, most = _E4M3
    size = (values / scale).abs()
    power = torch.floor(torch.log2(size.clamp(min=2.0**least)) + 1e-6)
    step = 2.0 ** (power - bits)
    at_power = ((size - 2.0**power).abs() < step / 8) & (power > least)
    outward = torch.where(size >= most * (1 - SLACK), float("inf"), step / 2)
    inward = torch.where(at_power, step / 4, step / 2)
    room = scale * factor
    slack = _UNPACKED * (values * factor).abs()
    outward, inward = outward * room + slack, inward * room + slack
    up = values >= 0
    above, below = torch.where(up, outward, inward), torch.where(up, inward, outward)
    zero = size < 2.0 ** (least - bits - 1)
    return Grid(torch.where(zero, outward, below), torch.where(zero, outward, above), law)
