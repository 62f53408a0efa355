"""What results record of a checkpoint: its hashes, its base, and where its weights came from."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import CheckpointFiles, read_json
from unlearnbench.checkpoints.load import load_tokenizer, named_ends, tokenizer_sha256
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import read_origin
from unlearnbench.checkpoints.packed import StoredScheme
from unlearnbench.errors import CheckpointError
from unlearnbench.results import Checkpoint
from unlearnbench.util.files import content_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def describe_checkpoint(
    files: CheckpointFiles,
    full: CheckpointFiles,
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    options: LoadOptions,
    stored: StoredScheme | None,
) -> Checkpoint:
    """Hashes and origin of a checkpoint. ``full``: an adapter's base, else ``files`` themselves.

    Raises:
        CheckpointError: a file cannot be read, or ``unlearning.json`` is damaged.
    """
    weights = files.weights_sha256
    facts = Checkpoint(
        path=files.path,
        revision=files.revision,
        format=files.kind,
        weights_sha256=weights,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        config_sha256=content_sha256(_config_facts(files, full, config)),
        origin=_weights_origin(full, stored) | read_origin(files.folder),
    )
    if full is files:
        return facts
    try:
        base_tokenizer = load_tokenizer(full, full, options.trust_remote_code)
    except CheckpointError:  # a base without a tokenizer, where the adapter brings its own
        base_tokenizer = tokenizer
    base = Checkpoint(
        path=full.path,
        revision=full.revision,
        format=full.kind,
        weights_sha256=full.weights_sha256,
        tokenizer_sha256=tokenizer_sha256(base_tokenizer),
    )
    return facts.model_copy(
        update={
            "weights_sha256": content_sha256([weights, base.weights_sha256]),
            "adapter": {"merge": "merged", "keep": "kept"}[options.adapter],
            "base": base,
        }
    )


def _config_facts(files: CheckpointFiles, full: CheckpointFiles, config: Any) -> dict[str, object]:
    """The config, and an adapter's, without what changes from one saving to the next and does not
    change the model; and the ends of texts where ``generation_config.json`` has others.
    """
    facts: dict[str, object] = json.loads(config.to_json_string(use_diff=False))
    try:
        named = read_json(full.folder / "generation_config.json").get("eos_token_id")
    except CheckpointError:  # not there, or damaged: transformers takes config.json's
        named = facts.get("eos_token_id")
    if named_ends(named) != named_ends(facts.get("eos_token_id")):
        facts["generation_eos_token_id"] = named_ends(named)
    if files.kind == "adapter":
        adapter = read_json(files.folder / "adapter_config.json")
        for key in ("base_model_name_or_path", "revision", "peft_version", "inference_mode"):
            adapter.pop(key, None)
        # PEFT keeps lists of modules as sets and writes them in any order.
        facts["adapter"] = {
            key: sorted(map(str, value)) if isinstance(value, list) else value
            for key, value in adapter.items()
            if value is not None
        }
    for key in ("_name_or_path", "_model_name_or_path", "transformers_version"):
        facts.pop(key, None)
    return facts


def _weights_origin(full: CheckpointFiles, stored: StoredScheme | None) -> dict[str, str]:
    """Weights that come from a 4-bit grid are not full precision: a GGUF file's tensor types, or
    the scheme that a checkpoint is quantized in.
    """
    if stored is not None:
        return {"quantized": f"{stored.bits:g} bits, {stored.text}"}
    if full.kind != "gguf":
        return {}
    types = Counter(tensor.dtype for tensor in full.tensors.values())
    return {"gguf_tensor_types": ", ".join(f"{n} {name}" for name, n in sorted(types.items()))}
