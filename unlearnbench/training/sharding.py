"""Weights that are spread over processes (FSDP2, DeepSpeed), and how to have them whole again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env

from unlearnbench.errors import OptionError


def require_supported(trainer: Any, stage: Any) -> bool:
    """Whether weights will be sharded while ``stage`` is trained. Raises OptionError where a result
    would not be what its record says.
    """
    state = trainer.accelerator.state
    sharded = {"FSDP": trainer.is_fsdp_enabled, "DEEPSPEED": trainer.is_deepspeed_enabled}
    for kind, in_force in sharded.items():
        if parse_flag_from_env(f"ACCELERATE_USE_{kind}") and not in_force:
            raise OptionError(
                f"accelerate was asked for {kind} and does not shard in such a launch (on CPU, or "
                f"with one process); leave --use_{kind.lower()} out"
            )
    if state.mixed_precision != "no":
        raise OptionError(
            f"accelerate is set to --mixed_precision {state.mixed_precision}; use "
            "--mixed_precision no and --weights-dtype"
        )
    if trainer.is_deepspeed_enabled:
        _require_deepspeed(trainer, stage)
    elif trainer.is_fsdp_enabled and not state.is_fsdp2:
        raise OptionError("FSDP version 1 is not supported; use --fsdp_version 2")
    whole = {
        "--weight-noise": stage.noise,
        "--survive": stage.survive.roundings,
        "this method's own gradient": stage.gradient is not None,
    }
    if any(sharded.values()) and any(whole.values()):
        what = next(name for name, asked in whole.items() if asked)
        raise OptionError(f"{what} needs whole weights; train without sharding")
    return any(sharded.values())


def _require_deepspeed(trainer: Any, stage: Any) -> None:
    masked = stage.masks is not None
    if masked or stage.l1 or stage.rounding:
        option = "--l1" if stage.l1 else "rounding after each step"
        what = "a mask works on gradients" if masked else f"{option} works on weights"
        raise OptionError(f"{what} that DeepSpeed keeps to itself; use DDP or FSDP 2")
    config = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if config.get(name, {}).get("enabled") is True and trainer.model.dtype != dtype:
            raise OptionError(
                f"DeepSpeed's config trains in {name} and the weights are {trainer.model.dtype}; "
                "use --weights-dtype bf16, or turn that off"
            )


def empty_twin(model: Any) -> Any:
    """A copy of ``model`` whose parameters have no values yet; tied ones stay tied."""
    memo: dict[int, Any] = {
        id(p): torch.nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def gather(model: Any, twin: Any) -> Any:
    """A copy of ``twin`` on CPU with the whole weights of ``model``. Every process has to call it,
    and each gets all.
    """
    whole = copy.deepcopy(twin)
    state = {name: _whole(t) for name, t in model.state_dict(keep_vars=True).items()}
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    return whole


def _whole(tensor: Any) -> Any:
    if hasattr(tensor, "full_tensor"):
        return tensor.detach().full_tensor().cpu()
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    return tensor.detach().cpu().clone()


def local(tensor: Any) -> Any:
    """This process's part of a tensor, which shares its memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def mask_gradients(model: Any, masks: Any) -> None:
    """Zero the gradient of every row (of a Conv1D: column) outside its mask, bool (rows,); a
    gradient's mask is cut as the gradient is, which is by rows.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor
    from transformers.pytorch_utils import Conv1D

    for name, parameter in model.named_parameters():
        if name not in masks or parameter.grad is None:
            continue
        gradient, held = parameter.grad, ~masks[name].to(parameter.grad.device)
        if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D):
            local(gradient).masked_fill_(held, 0.0)
            continue
        if isinstance(gradient, DTensor):
            mesh, placements = gradient.device_mesh, gradient.placements
            held = distribute_tensor(held, mesh, placements, src_data_rank=None).to_local()
        held = held.reshape(-1, *[1] * (gradient.dim() - 1))
        local(gradient).masked_fill_(held, 0.0)


def agreed(fine: bool, device: Any) -> bool:
    """Whether all processes say so: then they stop together, and none waits for another."""
    if not torch.distributed.is_initialized():
        return fine
    answer = torch.tensor(int(fine), device=device)
    torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MIN)
    return bool(answer)
