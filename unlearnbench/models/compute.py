"""How a loaded model's products are computed: by which attention, and whether compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from unlearnbench.errors import OptionError, one_line
from unlearnbench.models.batches import is_out_of_memory
from unlearnbench.models.int8 import rows_apart
from unlearnbench.models.packable import moves_logits
from unlearnbench.models.rounding import unrounded
from unlearnbench.util.explain import explain

if TYPE_CHECKING:
    from unlearnbench.conditions.base import Attention

_FLASH = "flash_attention_2"
_TOKENS = 12


def set_attention(model: Any, asked: Attention, device: str) -> None:
    """Let ``model`` attend as ``asked``. ``auto`` takes FlashAttention 2 on a GPU, in a 16-bit
    dtype, where the flash-attn package and the model have it, and else transformers' own choice.

    Raises:
        OptionError: it cannot, or its logits are others then.
    """
    own = model.config._attn_implementation
    if asked == "auto":
        reason = _no_flash(model, device)
        if reason is not None:
            explain(f"attention {own}: transformers' choice ({reason})")
            return
        wrong = _try_attention(model, _FLASH, own)
        found = own if wrong else _FLASH
        explain(f"attention {found}: " + (f"flash-attn {wrong}" if wrong else "it is installed"))
        return
    reason = _no_flash(model, device) if asked == _FLASH else None
    wrong = reason or _try_attention(model, asked, own)
    if wrong:
        raise OptionError(f"--attention {asked}: {wrong}; leave it out")
    explain(f"attention {asked}: asked for")


def _no_flash(model: Any, device: str) -> str | None:
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not device.startswith("cuda") and device != "auto":
        return "flash-attn runs on GPUs only"
    if model.dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn does not compute in {str(model.dtype).removeprefix('torch.')}"
    if not is_flash_attn_2_available():
        return "flash-attn is not installed"
    return None


def _try_attention(model: Any, name: str, own: str) -> str | None:
    """Change it, and keep that where the logits stay. Returns what is wrong otherwise."""
    with unrounded(model):
        before = _few_logits(model)
    try:
        model.set_attn_implementation(name)
        with unrounded(model):
            after = _few_logits(model)
    except Exception as error:  # a library's own reasons, in its own classes
        if is_out_of_memory(error):
            raise
        model.set_attn_implementation(own)
        return f"fails ({one_line(error, 200)})"
    if model.config._attn_implementation != name:
        return "was not taken over by the model"
    if _apart(before, after, model, is_rounded=False):
        model.set_attn_implementation(own)
        return f"gives other logits than {own}"
    return None


def compile_layers(model: Any) -> None:
    """Compile every decoder layer in place by ``torch.compile``: one piece of code serves all of
    them, at any length and number of rows. What the rows attend to stays as it is.

    Raises:
        OptionError: torch cannot compile them here, or their logits are others then.
    """
    from torch._dynamo import config

    from unlearnbench.models.packed_rows import keep_uncompiled

    layers = _layers(model)
    if not layers:
        raise OptionError("--compile: the model does not say what its layers are; leave it out")
    with rows_apart(model):  # its products as they are: they are compiled too
        before = _few_logits(model)
    # A layer's number, which it hands to the cache, would make new code of each layer.
    config.allow_unspec_int_on_nn_module = True
    keep_uncompiled()
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        with rows_apart(model):
            after = _few_logits(model)
    except Exception as error:  # a compiler that is missing, a kernel that it does not know
        if is_out_of_memory(error):
            raise
        raise OptionError(
            f"--compile: torch.compile failed ({one_line(error, 300)}); leave it out"
        ) from None
    if _apart(before, after, model, is_rounded=True):
        raise OptionError("--compile: the compiled layers give other logits; leave it out")
    explain(f"torch.compile: {len(layers)} layers, compiled when they first run")


def _layers(model: Any) -> list[Any]:
    """Modules of the classes that the model calls its blocks."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(whole, "_no_split_modules", None) or ())
    return [part for part in whole.modules() if type(part).__name__ in names]


def _few_logits(model: Any) -> torch.Tensor:
    """Of some tokens, on the CPU in fp32, (tokens, vocabulary)."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(_TOKENS, device=model.get_input_embeddings().weight.device) % vocabulary
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits.float().cpu()


def _apart(before: torch.Tensor, after: torch.Tensor, model: Any, is_rounded: bool) -> bool:
    """Whether two ways give other logits. What is not finite is said with its sample, later."""
    if not bool(before.isfinite().all()):
        return False
    return moves_logits(before, after, model, is_rounded)
