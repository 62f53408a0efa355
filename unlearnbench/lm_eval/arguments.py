"""lm-eval's ``key=value`` arguments: read as it reads them, and put into our options' words."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from unlearnbench.errors import OptionError, one_line

if TYPE_CHECKING:
    from unlearnbench.models.hf import HFModel

# lm-eval's words for what our options say, and ours, which are taken as they are.
_SAME = (
    "revision",
    "tokenizer",
    "device",
    "dtype",
    "trust_remote_code",
    "batch_size",
    "quant",
    "base",
    "adapter",
    "allow_adapter_base",
    "allow_pickle",
    "quant_kernel",
    "calibration",
    "calibration_samples",
    "target_model",
    "relearn_on",
    "add_bos_token",
    "max_length",
    "enable_thinking",
    "think_end_token",
)
_FLAGS = (
    *("trust_remote_code", "allow_adapter_base", "allow_pickle"),
    *("add_bos_token", "enable_thinking"),
)
_NUMBERS = ("calibration_samples", "max_length")
_BITSANDBYTES = (
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_use_double_quant",
)
_DTYPES = {
    "float32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    **{name: name for name in ("auto", "fp32", "fp16", "bf16")},
}


def read_pairs(text: str, option: str) -> dict[str, object]:
    """``key=value,key=value`` as lm-eval reads it: a value is a Python literal or plain text, and
    commas inside brackets or quotes belong to it.

    Raises:
        OptionError: a part is no pair, or a key comes twice.

    Example:
        >>> read_pairs("pretrained=gpt2,load_in_4bit=True", "--model-args")
        {'pretrained': 'gpt2', 'load_in_4bit': True}
    """
    found: dict[str, object] = {}
    for part in _split(text):
        key, sign, value = part.partition("=")
        key = key.strip()
        if not sign or not key.isidentifier():
            raise OptionError(f"{option} {one_line(part, 80)!r}: expected key=value")
        if key in found:
            raise OptionError(f"{option}: {one_line(key, 80)} is given twice")
        found[key] = _value(value.strip())
    return found


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'" and parts[-1].rstrip()[-1:] in ("=", "[", "(", "{", ",", ":"):
            quote = c  # an apostrophe inside a path is no quotation mark
        elif c in "[({":
            depth += 1
        elif c in "])}":
            depth -= 1
        if c == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [part for part in parts if part.strip()]


def _value(text: str) -> object:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text)
    return text


def translate(given: Mapping[str, object]) -> dict[str, object]:
    """Our options, by the names of ``evaluate``'s parameters, from ``--model_args``.

    ``pretrained`` is the model; with ``peft`` the adapter is the model and ``pretrained`` its base.
    ``load_in_4bit`` and ``load_in_8bit`` are the bitsandbytes precisions that transformers makes of
    them.

    Raises:
        OptionError: an argument that has no meaning here, named; or two that contradict.
    """
    known = {"pretrained", "peft", *_SAME, *_BITSANDBYTES}
    strange = [key for key in given if key not in known]
    if strange:
        raise OptionError(
            f"--model-args: {one_line(strange[0], 80)} has no meaning here; known: "
            f"{', '.join(sorted(known))}"
        )
    options = {key: _plain(key, given[key]) for key in _SAME if key in given}
    model, peft = given.get("pretrained"), given.get("peft")
    if peft is not None:
        if model is None or "base" in options:
            raise OptionError("--model-args: with peft, pretrained is the base model; give both")
        options["base"], model = str(model), peft
    if model is not None:
        options["model"] = str(model)
    return options | _bitsandbytes(given, options)


def _plain(key: str, value: object) -> object:
    if key == "dtype":
        return _dtype(key, value)
    if key in _FLAGS and not isinstance(value, bool):
        raise OptionError(f"--model-args: {key} is True or False")
    if key in _NUMBERS and type(value) is not int:
        raise OptionError(f"--model-args: {key} is a number")
    return value if key in (*_FLAGS, *_NUMBERS) else str(value)


def _dtype(key: str, value: object) -> str:
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise OptionError(f"--model-args: {key}={one_line(value, 60)}: use {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _bitsandbytes(given: Mapping[str, object], options: Mapping[str, object]) -> dict[str, object]:
    four, eight = given.get("load_in_4bit", False), given.get("load_in_8bit", False)
    details = [key for key in _BITSANDBYTES if key.startswith("bnb_") and key in given]
    if not four and not eight:
        if details:
            raise OptionError(f"--model-args: {details[0]} needs load_in_4bit=True")
        return {}
    if (four and eight) or "quant" in options or (eight and details):
        raise OptionError("--model-args: one of quant, load_in_4bit and load_in_8bit")
    if eight:
        return {"quant": "bnb-int8"}
    kind = given.get("bnb_4bit_quant_type", "fp4")
    if kind not in ("fp4", "nf4"):
        raise OptionError(f"--model-args: bnb_4bit_quant_type={one_line(kind, 60)}: fp4 or nf4")
    double = "-dq" if given.get("bnb_4bit_use_double_quant", False) else ""
    found: dict[str, object] = {"quant": f"bnb-{kind}{double}"}
    if "bnb_4bit_compute_dtype" in given and "dtype" not in options:
        found["dtype"] = _dtype("bnb_4bit_compute_dtype", given["bnb_4bit_compute_dtype"])
    return found


def load_from_arguments(given: Mapping[str, object]) -> HFModel:
    """The model that ``--model_args`` asks for, loaded and proven at its one precision.

    Raises:
        UnlearnbenchError: as the main job's, for the same options.
    """
    from unlearnbench import conditions
    from unlearnbench.conditions.load import prepare_all
    from unlearnbench.conditions.materials import gather
    from unlearnbench.conditions.options import KernelOptions
    from unlearnbench.tasks.registry import split_names

    asked = translate(given)
    if "model" not in asked:
        raise OptionError("--model_args needs pretrained=PATH|ID")
    specs = conditions.resolve(split_names(str(asked.get("quant", "none"))))
    if len(specs) != 1:
        raise OptionError("--model_args quant takes one precision; lm-eval runs one at a time")
    fields = KernelOptions.model_fields
    options = KernelOptions.of({key: value for key, value in asked.items() if key in fields})
    materials = gather(specs, options, (), 0)
    (prepared,) = prepare_all(str(asked["model"]), specs, options, materials)
    return prepared.load()
