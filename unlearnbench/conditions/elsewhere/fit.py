"""Whether a deployed checkpoint fits the one that it is set against: tokens and shapes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.checkpoint import CheckpointSource
from unlearnbench.checkpoints.find import CheckpointFiles, tokenizer_files
from unlearnbench.checkpoints.limits import empty_model, require_memory
from unlearnbench.checkpoints.load import load_config
from unlearnbench.checkpoints.tokenizer import load_tokenizer, probe_ids
from unlearnbench.conditions.elsewhere.files import Deployed
from unlearnbench.conditions.elsewhere.gguf import require_fit
from unlearnbench.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from torch import nn

    from unlearnbench.checkpoints.gguf_parts import GgufFile

log = logging.getLogger("unlearnbench")

# Fields that change no answer, or that shapes tell.
_COMPUTES_NOTHING = {
    *("architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config"),
    *("compression_config", "use_cache", "initializer_range", "return_dict", "auto_map"),
    *("max_position_embeddings", "id2label", "label2id", "problem_type", "pretraining_tp"),
    *("chunk_size_feed_forward", "is_encoder_decoder"),
}


def shape_of(source: CheckpointSource) -> nn.Module:
    """The model without memory. CheckpointError where its config describes none."""
    found = empty_model(source.config, source.files.trusted)
    if found is None:
        raise CheckpointError(f"{source.files.path}: its config describes no causal language model")
    return found


def require_alike(one: Deployed, source: Any) -> None:
    """Raise CheckpointError where the file has another vocabulary or other shapes. source: one
    checkpoint, open.
    """
    config = source.config.get_text_config().to_dict()
    if one.gguf is not None:
        require_memory(4 * one.gguf.size, one.path)  # unpacked into fp32
        _require_words(one.gguf, source)
        require_fit(one.gguf, config, shape_of(source))
        _require_splits(_home(one.gguf), source)
        return
    assert one.folder is not None  # noqa: S101 - one of the two
    if tokenizer_files(one.folder.folder):
        _require_splits(one.folder, source)
    else:
        log.warning("--deployed %s brings no tokenizer to compare; the model's is used", one.path)
    found = load_config(one.folder)
    _require_config(one, config, found.get_text_config().to_dict())
    theirs = empty_model(found, one.folder.trusted)
    if theirs is None:
        raise CheckpointError(f"--deployed {one.path}: its config describes no language model")
    ours = shape_of(source)
    own, other = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (ours, theirs))
    odd = sorted(name for name in {**own, **other} if own.get(name) != other.get(name))
    if odd:
        raise CheckpointError(
            f"--deployed {one.path}: {odd[0]} has shape {other.get(odd[0], 'none')}, and in the "
            f"model {own.get(odd[0], 'none')}; it is no checkpoint of this model"
        )


def _require_config(one: Deployed, own: Mapping[str, object], other: Mapping[str, object]) -> None:
    """Hold what a folder's config computes with against the model's: it loads by its own."""
    for key in sorted((own.keys() & other.keys()) - _COMPUTES_NOTHING):
        if key.endswith(("_token_id", "dropout")) or key.startswith(("_", "output_")):
            continue
        if json.loads(json.dumps(own[key])) != json.loads(json.dumps(other[key])):
            raise CheckpointError(
                f"--deployed {one.path}: its config.json has {key} {one_line(other[key], 60)}, and "
                f"the model's {one_line(own[key], 60)}; it is no checkpoint of this model"
            )


def _home(file: GgufFile) -> CheckpointFiles:
    """The file as what a tokenizer is read from."""
    first = file.parts[0]
    return CheckpointFiles(
        file.path, first.parent, "gguf", (first,), {}, None, file.tensors, trusted=False
    )


def _require_words(file: GgufFile, source: Any) -> None:
    """Hold the tokens of a GGUF file against the model's, id by id."""
    tokenizer, words = source.tokenizer, file.words
    if not words:
        raise CheckpointError(f"--deployed {file.path} holds no tokens to compare")
    # Converters fill up what the model has rows for and the tokenizer has not.
    ours = {n: word for word, n in tokenizer.get_vocab().items() if n < len(words)}
    odd = [n for n, word in ours.items() if words[n] != word]
    rows = getattr(source.config.get_text_config(), "vocab_size", len(words))
    if odd or not 0.9 * len(tokenizer) <= len(words) <= max(rows, len(tokenizer)):
        said = f"{len(words)} tokens, and the model's tokenizer {len(tokenizer)}"
        if odd:
            said = (
                f"{one_line(repr(words[odd[0]]), 40)} as token {odd[0]}, and the model "
                f"{one_line(repr(ours[odd[0]]), 40)} ({len(odd)} of {len(ours)} differ)"
            )
        raise CheckpointError(
            f"--deployed {file.path} has another vocabulary: {said}; it is no file of this model"
        )


def _require_splits(home: CheckpointFiles, source: Any) -> None:
    """Hold what its tokenizer does to some texts against what the model's does."""
    try:
        theirs = probe_ids(load_tokenizer(home))
    except CheckpointError as error:
        if home.kind != "gguf":
            raise
        # Its tokens are the model's, id by id; only the rule that cuts texts is not known.
        log.warning(
            "%s; its tokens are the model's, the rule that splits texts is not compared", error
        )
        return
    begin = source.tokenizer.bos_token_id
    ours = probe_ids(source.tokenizer)
    for own, other in zip(ours, theirs, strict=True):
        one, two = (ids[1:] if ids[:1] == [begin] else ids for ids in (own, other))
        if one != two:
            at = next(
                (i for i, pair in enumerate(zip(one, two, strict=False)) if len(set(pair)) > 1), 0
            )
            raise CheckpointError(
                f"--deployed {home.path} has another tokenizer: of a test text it makes "
                f"{len(two)} tokens and the model's {len(one)}, first different at {at}; give the "
                "checkpoint that it was made from as --model"
            )
