"""What a config may ask for, because libraries believe it: numbers, and patterns that end."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Numbers that are not sizes, and sizes of which nothing is made before ``check_size`` has counted.
_FREE = re.compile(
    r"theta|freq|position|ctx|context|length|window|seed|param|prng|token|step|samples|period|date"
    r"|version|(^|_)base$"
)
# Numbers that lists and modules are counted out by; the deepest model in use has some 200 layers.
_COUNTS = re.compile(
    r"^num_|^n_(layer|head|block|expert)|(layers?|depths?|block_count|blocks?|experts|labels"
    r"|stages|heads|head_count|expert_count)$"
)
_LAYERS = re.compile(r"^(num_hidden_layers|n_layers?|num_layers)$")
_MOST_COUNTED, _MOST = 2**16, 2**24
# Buffers are not stored: causal masks, tables of positions. The largest in use are some 100 MB.
_BUFFERS = 256 * 2**20
# A tied head is stored once and counted twice.
_TIED, _SLACK = 2, 2**20
_GIB = 2**30
# PEFT and the quantizers' libraries match patterns against the names of modules. Some take longer
# than the universe has existed, and Python cannot stop a match.
_SECONDS = 10.0
# What makes a match branch; a plain name, dots and all, is matched in one go.
_BRANCHING = frozenset("*+?{|")
# In the ways that PEFT 0.21 and transformers 5.23 put a pattern into one of their own.
_CODE = r"""
import json, re, sys
given = json.load(sys.stdin)
for pattern in given["patterns"]:
    forms = [pattern, rf"(.*\.)?({pattern})$", rf"(^|.*\.){pattern}($|\..*)", rf"(?:{pattern})\."]
    forms.append(rf"(?:^|.*?\.){pattern}\.(?P<idx_>\d+)\.")
    for form in forms:
        try:
            compiled = re.compile(form)
        except re.error:
            if form is pattern:
                sys.exit(3)
            continue
        for name in given["names"]:
            compiled.fullmatch(name), compiled.match(name), compiled.search(name)
"""


def walk_json(value: object) -> Iterator[tuple[str, object]]:
    """Every part with its key (a list's items have the list's); no recursion, however deep."""
    todo: list[tuple[str, object]] = [("", value)]
    while todo:
        key, part = todo.pop()
        yield key, part
        if isinstance(part, Mapping):
            todo += [(str(name), inner) for name, inner in part.items()]
        elif isinstance(part, list):
            todo += [(key, inner) for inner in part]


def check_numbers(facts: object, where: str) -> None:
    """Raise CheckpointError for sizes and counts in a stranger's JSON far above any in use."""
    for key, value in walk_json(facts):
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) <= _MOST_COUNTED:
            continue
        most = _MOST_COUNTED if _COUNTS.search(key) else _MOST
        if abs(value) > most and not _FREE.search(key):
            # Python refuses to print numbers of thousands of digits.
            shown = str(value) if abs(value) < 10**30 else "of more than 30 digits"
            raise CheckpointError(
                f"{where} has {one_line(key, 80)} {shown}, and more than {most:,} is refused "
                "before anything of that size is made; correct it or leave it out"
            )


def check_config(raw: Mapping[str, object], tensors: int, path: str) -> None:
    """Raise CheckpointError for a raw ``config.json`` with absurd numbers, or a key that would load
    unchecked weights or code from a hub. tensors: how many are stored.
    """
    where = f"{path}: config.json has"
    check_numbers(raw, f"{path}: config.json")
    for key, value in walk_json(raw):
        if key == "transformers_weights" and value is not None:
            raise CheckpointError(
                f"{where} transformers_weights, which would load {one_line(value, 80)} in place of "
                "the weights that were checked; remove it"
            )
        if key.endswith("_implementation"):  # chooses the code of a part
            for _, code in walk_json(value):
                if isinstance(code, str) and re.search(r"[/:|@\\]", code):
                    raise CheckpointError(
                        f"{where} {one_line(key, 60)} {one_line(code, 80)}, code from a hub; "
                        "refused: remove it"
                    )
    most = max(tensors, 1)
    parts = walk_json(raw)
    wrong = [(key, value) for key, value in parts if isinstance(value, int) and value > most]
    for part in (raw, raw.get("text_config")):  # a part of another kind may have none
        own = part.items() if isinstance(part, Mapping) else ()
        wrong += [(key, value) for key, value in own if isinstance(value, int) and value < 1]
    for key, value in wrong:
        if _LAYERS.search(key):
            raise CheckpointError(
                f"{where} {key} {value}, and {tensors} tensors are stored; a model of so many "
                "layers is not what was saved"
            )


def check_patterns(facts: object, names: Iterable[str], where: str) -> None:
    """Raise CheckpointError for texts in ``facts`` that are no patterns, or slow over ``names``."""
    texts = [text for pair in walk_json(facts) for text in pair if isinstance(text, str)]
    # "re:" is compressed-tensors' mark of a pattern, "+:" and "-:" are GPTQModel's.
    marked = (text.removeprefix("re:").removeprefix("+:").removeprefix("-:") for text in texts)
    patterns = sorted({text for text in marked if _BRANCHING & set(text)})
    if not patterns:
        return
    given = json.dumps({"patterns": patterns, "names": list(names)})
    said = f"{where}: the pattern {one_line(patterns[0], 80)!r} (of {len(patterns)})"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CODE],
            input=given.encode("ascii"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{said} takes longer than {_SECONDS:g} s over the model's module names; refused: name "
            "the modules"
        ) from None
    if done.returncode:
        raise CheckpointError(f"{said} is no usable regular expression; name the modules")


def auto_class(config: Any) -> Any:
    """What transformers opens a model with: one for causal language models, or where it knows none
    of this kind, one for models that take images beside text, which run without an image here.
    """
    import transformers

    known, wider = (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )
    if type(config) in known or type(config) not in wider or config.is_encoder_decoder:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def empty_model(config: Any, trust_remote_code: bool = False) -> PreTrainedModel | None:
    """The model that ``config`` describes, without memory; None where loading will say why not."""
    import torch

    plain = copy.deepcopy(config)
    if getattr(plain, "quantization_config", None) is not None:
        del plain.quantization_config
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(plain).from_config(
                plain, trust_remote_code=trust_remote_code
            )
    except Exception:  # a damaged config can fail anywhere in the library
        return None
    return model


def places(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Which weight of ``model`` each stored tensor becomes, and whether it does so as it is, not
    cut or joined with others on the way. As transformers renames them; others are no weights of it.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules, known, found = get_model_conversion_mapping(model), model.state_dict(), {}
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    for name in stored:
        for rename, convert in ((renamings, converters), ([], [])):
            place, pattern = rename_source_key(
                name, rename, convert, model.base_model_prefix, known
            )
            if place in known:
                found[name] = (place, pattern is None)
                break
    return found


def check_size(model: PreTrainedModel, path: str, stored: int, size: int, exact: bool) -> None:
    """Raise CheckpointError where ``model``, without memory yet, is larger by far than what is
    stored, or smaller. stored: weights, at most as many or (``exact``) just as many; size: bytes.
    """
    asked = sum(parameter.numel() for parameter in model.parameters())
    says = f"{path}: its config describes a model of {asked:,} weights, and {stored:,} are stored"
    remedy = "correct config.json or save the checkpoint again"
    if asked > _TIED * stored + _SLACK:
        raise CheckpointError(f"{says}; refused before memory is taken: {remedy}")
    tables = sum(buffer.numel() for buffer in model.buffers())  # MiniMax's are stored
    if exact and _TIED * (asked + tables) < stored:
        raise CheckpointError(f"{says}: most would be left out; {remedy}")
    taken = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if taken > _TIED * size + _BUFFERS:
        raise CheckpointError(
            f"{path}: its config asks for tables of {taken / _GIB:,.1f} GiB beside the weights, "
            "as for masks and positions; refused: correct max_position_embeddings or n_positions "
            "in config.json"
        )


def require_memory(size: int, path: str) -> None:
    """Raise CheckpointError for ``size`` bytes that memory, swap and GPUs together cannot hold."""
    import psutil
    import torch

    have = psutil.virtual_memory().total + psutil.swap_memory().total
    gpus = range(torch.cuda.device_count())  # none where there is no CUDA
    have += sum(torch.cuda.get_device_properties(i).total_memory for i in gpus)
    if size > have:
        raise CheckpointError(
            f"{path}: its weights need {size / _GIB:,.1f} GiB, and this machine has "
            f"{have / _GIB:,.1f} GiB of memory in all; use a larger machine or a smaller model"
        )
