"""Checkpoints that are quantized already: loaded as they are, for ``--quant none``. No precision of
its own; the scheme is the checkpoint's.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import device_map, from_pretrained, refusing
from unlearnbench.checkpoints.packed import StoredScheme
from unlearnbench.conditions.base import (
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    dtype_name,
    groups,
    held_bytes,
)
from unlearnbench.conditions.proof import Inspection, describe, distinct_values
from unlearnbench.conditions.quantize import _gptqmodel, bnb
from unlearnbench.errors import NotInForceError
from unlearnbench.results import Proof
from unlearnbench.util.process import muted

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from unlearnbench.checkpoints.checkpoint import CheckpointSource


def load(source: CheckpointSource, scheme: StoredScheme, plan: LoadPlan) -> ModelWithProof:
    """Load a quantized checkpoint and look into it.

    Raises:
        CheckpointError: it cannot be loaded.
        NotInForceError: the loaded modules are not packed as its config states.
    """
    if scheme.method in ("gptq", "awq"):
        with _gptqmodel.gptqmodel():
            model: Any = _load(source, scheme, plan)
            if plan.device == "cpu":
                _gptqmodel.without_compilation(model)
    else:
        model = _load(source, scheme, plan)
    if scheme.method == "compressed-tensors":
        # It would do so at the first forward, after the proof; a scheme that quantizes activations
        # goes on doing that.
        with refusing(f"{source.files.path}: its weights cannot be unpacked"), muted():
            model.hf_quantizer.compressor.decompress_model(model)
    if scheme.method == "bitsandbytes":
        bnb.require_blocks(model, plan.device)
        bnb.say_rounding(model, plan)
    return ModelWithProof(model, _prove(scheme, model))


def _load(source: CheckpointSource, scheme: StoredScheme, plan: LoadPlan) -> PreTrainedModel:
    """As the checkpoint states, by the libraries that unpack it; how is ours to say."""
    config: Any = copy.deepcopy(source.config)
    stated = config.quantization_config
    facts = dict(stated if isinstance(stated, dict) else stated.to_dict())
    if scheme.method == "gptq":
        facts["backend"] = "gptq_torch"
    elif scheme.method == "awq":
        facts["backend"] = "auto" if plan.device == "cpu" else "awq_torch"
    elif facts.get("load_in_4bit"):
        facts["bnb_4bit_compute_dtype"] = str(plan.dtype).removeprefix("torch.")
    config.quantization_config = facts
    extra = {"use_safetensors": True, "dtype": plan.dtype, "device_map": device_map(plan.device)}
    return from_pretrained(source.full, config, extra)


def _prove(scheme: StoredScheme, model: PreTrainedModel) -> Proof:
    inspection, codes = Inspection(), 0
    for name, module in model.named_modules():
        reading = _inspect(scheme, module)
        if reading is None:
            continue
        inspection.add(name, reading)
        if not bool(reading.weight.isfinite().all()):
            raise NotInForceError(f"a weight of module {name} is NaN or infinite")
        codes = max(codes, distinct_values(reading.groups))
    if not inspection.weights:
        raise NotInForceError(
            f"the checkpoint states {scheme.text}, and no module of the loaded model is packed so"
        )
    if codes > 2**scheme.bits:
        raise NotInForceError(
            f"the checkpoint states {scheme.bits:g} bits, and a group holds {codes} values"
        )
    return Proof.model_validate({**describe(model, inspection), "codes": codes})


def _inspect(scheme: StoredScheme, module: nn.Module) -> ModuleReading | None:
    if scheme.method == "bitsandbytes":
        return bnb.inspect_any(module)
    if scheme.method in ("gptq", "awq"):
        return _gptqmodel.in_module(module)
    return _compressed(scheme, module)


def _compressed(scheme: StoredScheme, module: Any) -> ModuleReading | None:
    from torch import nn

    stated = getattr(module, "quantization_scheme", None)
    if not isinstance(module, nn.Linear) or getattr(stated, "weights", None) is None:
        return None
    values = module.weight.detach()
    packed = int(values.numel() * scheme.bits / 8)
    stored = packed + held_bytes(getattr(module, "weight_scale", None))
    return ModuleReading(values, groups(values, scheme.group), dtype_name(values), stored)
