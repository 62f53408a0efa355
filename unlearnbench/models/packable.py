"""Which models and prompts may be run in rows without padding: those whose logits stay as they are.

Products that round activations turn a last bit into a whole step, and hide what is looked for:
SmolLM2-135M's packed rows in bf16 are 0.98 of the logits' spread off its own forward under
LLM.int8() where all is right, and 0.99 with a wrong mask.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from unlearnbench.models.batches import Tokens, is_out_of_memory, layer_configs
from unlearnbench.models.generation import Continuer, Ending

LARGE = 2**18
"""Weights of a layer from which on a product on CPU takes longer than choosing its library could
save."""
_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
# Share of the logits' spread. In bf16 the right way moves SmolLM2-135M's by 0.14, wrong positions
# and masks by 0.39 and more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
_ROUNDED = 0.15
_PRODUCTS = 6.200124e-05  # bitsandbytes' 1 / 127^2
_WEIGHTS = 7.874015718698502e-3  # and 1 / 127


def find_continuer(model: Any, device: str, ids: Sequence[int]) -> Continuer | str:
    """A continuer whose logits are those of ``model``'s own forward, or why there is none. ids: a
    real prompt, of which a few tokens are run both ways, with products that round no activations.
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    if reason := _unfit(whole):
        return reason
    continuer = Continuer(whole, device)
    try:
        with unrounded(model):
            plain = lambda *given: continuer.continue_rows(*given[:5])  # noqa: E731
            return compare(continuer, model, ids, plain) or continuer
    except Exception as error:  # an unusual model may fail anywhere; its own generate is there
        if is_out_of_memory(error):
            raise
        return f"its attention is computed otherwise ({type(error).__name__})"


def _unfit(model: Any) -> str | None:
    config = model.config
    if config is not config.get_text_config():
        return "it is not only a language model"
    if any(getattr(part, "config", config) is not config for part in model.modules()):
        return "it is made of several models"
    if getattr(config, "attn_temperature_tuning", False):  # from 8,192 tokens on, by default
        return "its attention counts the places in a pass"
    kinds = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    if kinds:
        return f"it has layers of kind {min(kinds)}"
    missing = {"position_ids", "past_key_values", "logits_to_keep"}
    missing -= set(inspect.signature(model.forward).parameters)
    return f"its forward has no {min(missing)}" if missing else None


def compare(
    continuer: Continuer, model: Any, ids: Sequence[int], run: Callable[..., object]
) -> str | None:
    """Rows behind a prefix, two steps each, against ``model``'s forward; returns what is wrong.

    run: takes what ``Continuer.continue_rows`` does, and the new tokens that each row will have.
    """
    few = _unlike_tokens(ids, int(model.config.get_text_config().vocab_size))
    shared, rows = few[:4], [few[4:6], few[5:11], few[8:11]]
    forced, seen = [few[:3], few[3:6], few[6:9]], [list[torch.Tensor]() for _ in rows]

    def choose(logits: torch.Tensor, alive: Sequence[int]) -> list[int]:
        for row, own in zip(alive, logits, strict=True):
            seen[row].append(own.float())
        return [forced[row][len(seen[row]) - 1] for row in alive]

    ending = Ending(frozenset(), lambda _: False, 3)
    run(continuer.run_prefix(shared), len(shared), rows, choose, ending, forced)
    for row, given, logits in zip(rows, forced, seen, strict=True):
        whole = torch.tensor([[*shared, *row, *given[:2]]], device=continuer.device)
        own = model(input_ids=whole, use_cache=False).logits[0, -3:].float()
        found = torch.stack(logits).to(own.device)  # a model on several GPUs may differ here
        if not bool(own.isfinite().all()):  # then generate says so, with the sample's name
            return "its logits are NaN or infinite"
        if _moves_logits(own, found, model):
            return "its attention gives other logits when prompts are run together"
    return None


def _unlike_tokens(ids: Sequence[int], vocabulary: int) -> list[int]:
    """Twelve tokens of which most differ: among like ones no wrong place or mask would show."""
    few = list(ids)[:12]
    if len(few) == 12 and len(set(few)) > 6:
        return few
    return [n * vocabulary // 13 for n in range(1, 13)]


def _moves_logits(own: torch.Tensor, found: torch.Tensor, model: Any) -> bool:
    """Whether ``found`` differ from ``own`` by more than ``model``'s dtype does; NaN does."""
    # bitsandbytes' 4-bit kernel for CPUs with bf16 products computes in bf16 whatever it is given.
    in_bf16 = any(
        getattr(part, "support_avx512bf16_for_cpu", False) and part.weight.device.type == "cpu"
        for part in model.modules()
    )
    tolerance = _ROUNDED if in_bf16 else _TOLERANCE.get(model.dtype, _ROUNDED)
    return not float((found - own).abs().max()) <= tolerance * float(own.std())


def padding_moves(model: Any, tokens: Tokens, ids: Sequence[int]) -> bool:
    """Whether a longer prompt beside it moves one: without a mask (RWKV) padding reads as text, and
    others lose it behind the first new token (GIT).
    """
    few = _unlike_tokens(ids, int(tokens.config.vocab_size))
    seen = []
    with torch.no_grad(), unrounded(model):
        for rows in ([few[:7]], [few[:7], few]):
            inputs, mask = tokens.tensors(rows, str(model.device), left=True)
            output = model.generate(
                input_ids=inputs,
                attention_mask=mask,
                max_new_tokens=3,
                min_new_tokens=3,
                output_logits=True,
                return_dict_in_generate=True,
            )
            seen.append(torch.stack(output.logits)[:, 0].float())
    alone, beside = seen  # NaN in ``alone`` is said with the sample's name when it is asked
    return bool(alone.isfinite().all()) and _moves_logits(alone, beside, model)


def sees_ahead(model: Any, device: str, ids: Sequence[int]) -> bool:
    """Whether later tokens move the logits of earlier ones, as in a BERT that is no decoder: what
    is scored would be known beforehand.
    """
    few = _unlike_tokens(ids, int(model.config.get_text_config().vocab_size))
    try:
        with torch.no_grad(), unrounded(model):
            rows = [torch.tensor([own], device=device) for own in (few[:7], few)]
            part, whole = (model(input_ids=row).logits[0, :7].float() for row in rows)
    except Exception as error:  # what fails here fails, and says why, where it is asked
        if is_out_of_memory(error):
            raise
        return False
    return bool(part.isfinite().all()) and _moves_logits(part, whole, model)


def short_window(model: Any, longest: int) -> str | None:
    """Why ``longest`` tokens do not fit an attention window, or pass where positions turn."""
    turns = [point for point in turning_points(model.config) if point < longest]
    if turns:
        return f"its positions turn to other factors beyond {turns[0]} tokens"
    layers = layer_configs(model.config)
    for name in ("sliding_window", "attention_chunk_size"):
        found = [getattr(layer, name, None) for layer in layers]
        # Of 0 there is none: Qwen 2's mixtures of experts say so.
        window = min((size for size in found if isinstance(size, int) and size), default=longest)
        if window < longest:
            return f"its {name} of {window} is shorter than the longest prompt and answer"
    return None


def turning_points(config: Any) -> tuple[int, ...]:
    """Lengths in tokens up to which LongRoPE's short factors hold, if any; one pass beyond such a
    length turns every position of every row in it.

    Source: arXiv 2402.13753; transformers' ``dynamic_rope_update``.
    """
    stated = getattr(config, "rope_parameters", None) or {}
    parts = [stated, *(part for part in stated.values() if isinstance(part, Mapping))]
    turning = [part for part in parts if part.get("rope_type") == "longrope"]
    lengths = {part.get("original_max_position_embeddings") for part in turning}
    return tuple(sorted(length for length in lengths if isinstance(length, int)))


def side_of(points: tuple[int, ...], length: int, new: int) -> tuple[int, ...]:
    """For each point 0 before it, 1 crossing it while the text is continued, 2 beyond it. Texts of
    one side may be run together; those that cross a point run alone.

    Example:
        >>> side_of((4096,), 4000, 32), side_of((4096,), 4000, 128), side_of((), 4000, 128)
        ((0,), (1,), ())
    """
    return tuple((length > point) + (length + new > point) for point in points)


def mixes_rows(model: nn.Module) -> bool:
    """Whether a row of a pass moves the others: LLM.int8() computes a column in 16 bits in which
    any row has an outlier, some schemes of compressed-tensors scale a whole pass by its largest.
    """
    found = [rounding for module in model.modules() for rounding in _roundings(module)]
    whole_pass = any(bool(each.dynamic) and each.strategy == "tensor" for each in found)
    return bool(int8_modules(model)) or whole_pass


@contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """Meanwhile no layer rounds its inputs, and no cache what it holds, so a row does not depend on
    others of its pass.
    """
    with ExitStack() as stack:
        for module in int8_modules(model):
            if "forward" in vars(module):
                stack.callback(setattr, module, "forward", module.forward)
            else:
                stack.callback(delattr, module, "forward")
            module.forward = partial(_multiply_dense, module)
        for cache in [
            found for m in model.modules() if (found := getattr(m, "cache_rounding", None))
        ]:
            stack.callback(setattr, cache, "enabled", cache.enabled)
            cache.enabled = False
        layers: list[Any] = [module for module in model.modules() if _roundings(module)]
        for module in layers:
            before = getattr(module, "quantization_enabled", True)  # as the library reads it
            stack.callback(setattr, module, "quantization_enabled", before)
            module.quantization_enabled = False
        yield


def _roundings(module: Any) -> list[Any]:
    """How compressed-tensors rounds what goes into a layer and comes out of it."""
    scheme = getattr(module, "quantization_scheme", None)
    parts = (getattr(scheme, f"{side}_activations", None) for side in ("input", "output"))
    return [part for part in parts if part is not None]


def int8_modules(model: nn.Module) -> list[Any]:
    """LLM.int8()'s layers in ``model``."""
    library = sys.modules.get("bitsandbytes.nn.modules")
    layer = library.Linear8bitLt if library else ()  # not imported: no module is its own
    return [part for part in model.modules() if isinstance(part, layer)]


def quicken_int8(model: nn.Module) -> None:
    """Let LLM.int8()'s layers on CPU take the steps before their rounding in fp32, in place.

    bitsandbytes 0.50 takes them in fp16, for which CPUs have no vector instructions: that takes
    longer than the products. Every fp16 number is an fp32 number, so the bits are the same.
    """
    for module in int8_modules(model):
        module.forward = partial(_multiply_int8, module)


def _multiply_dense(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """By the dequantized weights, without rounding."""
    weight = module.weight.data.float() * (_scale(module)[:, None] * _WEIGHTS)
    bias = None if module.bias is None else module.bias.to(inputs.dtype)
    return linear(inputs, weight.to(inputs.dtype), bias)


def _scale(module: Any) -> Any:
    """Of each row of the weight: bitsandbytes moves it at the first forward pass."""
    own = getattr(module.weight, "SCB", None)
    return own if own is not None else module.state.SCB


def _multiply_int8(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The steps of bitsandbytes' ``int8_vectorwise_quant`` and ``int8_mixed_scaled_mm``."""
    codes, scale = module.weight.data, _scale(module)
    rows = inputs.reshape(-1, inputs.shape[-1])
    known = rows.to(torch.float16).float()
    sizes, columns = known.abs(), None
    if module.state.threshold > 0.0:
        outliers = sizes >= module.state.threshold
        columns = outliers.any(dim=0).nonzero().view(-1)
        sizes.masked_fill_(outliers, 0.0)
    largest = sizes.amax(dim=1)
    rounded = torch.round(known * (127.0 / largest[:, None])).to(torch.int8)
    if columns is not None:  # the outliers' own codes, which mean nothing, are among them
        rounded[:, columns] = 0
    sums = torch.ops.bitsandbytes.int8_linear_matmul.default(rounded, codes)
    output = sums.float().mul_(largest[:, None] * scale[None]).mul_(_PRODUCTS)
    if module.bias is not None:
        output += module.bias.to(inputs.dtype)
    output = output.to(inputs.dtype)
    if columns is not None and columns.numel():
        taken = codes[:, columns] * scale[:, None] * _WEIGHTS
        output = output.addmm(rows[:, columns], taken.to(inputs.dtype).t())
    shaped: torch.Tensor = output.reshape(*inputs.shape[:-1], codes.shape[0])
    return shaped
