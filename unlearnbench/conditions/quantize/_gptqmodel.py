"""What GPTQ and AWQ share: GPTQModel's settings, its silence, and the weights in its modules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from unlearnbench.conditions.base import Calibration, ModuleReading, dtype_name, groups, held_bytes
from unlearnbench.errors import NotInForceError, PrecisionError, UnlearnbenchError, one_line
from unlearnbench.util.process import muted, unmoved_caches

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unlearnbench.checkpoints.checkpoint import CheckpointSource


@contextmanager
def gptqmodel() -> Iterator[None]:
    """GPTQModel imported, set for small machines and silent.

    Raises:
        PrecisionError: the library fails; the message says plan.
    """
    # Read when it is imported. With fewer workers than 2 its loader refuses to start; its packing
    # extension compiles for half a minute to save a second.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
    try:
        with muted(), unmoved_caches():
            import gptqmodel  # noqa: F401

            yield
    except UnlearnbenchError:
        raise
    except Exception as error:  # the library asserts and raises many kinds of errors
        what = one_line(error, 200) or type(error).__name__
        raise PrecisionError(f"GPTQModel cannot quantize or load this model: {what}") from error


def token_batches(
    source: CheckpointSource, calibration: Calibration
) -> list[dict[str, torch.Tensor]]:
    """The calibration texts as token ids, each a batch of one, cut to the recorded length.

    Raises:
        PrecisionError: a text has fewer than 2 tokens.
    """
    import torch

    batches = []
    for text in calibration.texts:
        ids = list(source.tokenizer(text)["input_ids"])[: calibration.data.max_tokens]
        if len(ids) < 2:
            raise PrecisionError(
                f"a calibration text has {len(ids)} tokens: {one_line(text, 60)!r}; remove it"
            )
        row = torch.tensor([ids])
        batches.append({"input_ids": row, "attention_mask": torch.ones_like(row)})
    return batches


def in_module(
    module: Any, bits: float | None = None, size: int | None = None
) -> ModuleReading | None:
    """What one of GPTQModel's linear modules holds; None for any other module.

    Raises:
        NotInForceError: it holds other bits or another group size than asked for.
    """
    from gptqmodel.nn_modules.qlinear import AWQuantLinear, BaseQuantLinear

    if not isinstance(module, BaseQuantLinear):
        return None
    found = (float(module.bits), int(module.group_size))
    if bits is not None and found != (bits, size):
        raise NotInForceError(f"a module holds {found[0]:g} bits in groups of {found[1]}")
    values = _awq_weight(module) if isinstance(module, AWQuantLinear) else _gptq_weight(module)
    stored = held_bytes(module.qweight, module.qzeros, module.scales)
    per = module.group_size if module.group_size > 0 else None
    order = getattr(module, "g_idx", None)
    by_group = values
    if per is not None and order is not None and len(order) == values.shape[1]:
        by_group = values[:, order.argsort(stable=True)]  # columns of a group side by side
    return ModuleReading(values, groups(by_group, per), dtype_name(module.qweight), stored)


def _gptq_weight(module: Any) -> torch.Tensor:
    # The class's own method: the instance's may be a compiled one.
    return type(module).dequantize_weight(module).T.contiguous()  # type: ignore[no-any-return]


def _awq_weight(module: Any) -> torch.Tensor:
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    weight: torch.Tensor = dequantize_gemm(
        qweight=module.qweight,
        qzeros=module.qzeros,
        scales=module.scales,
        bits=module.bits,
        group_size=module.group_size,
    )
    return weight.T.contiguous()


def without_compilation(model: nn.Module) -> None:
    """Undo torch.compile on CPU, where it costs minutes at the first forward and saves nothing."""
    for module in model.modules():
        module.__dict__.pop("dequantize_weight", None)
