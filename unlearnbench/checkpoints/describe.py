"""What results record of a checkpoint: its hashes, its base, and where its weights came from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from unlearnbench.checkpoints.ends import named_ends
from unlearnbench.checkpoints.find import CheckpointFiles, read_json
from unlearnbench.checkpoints.load import load_tokenizer, tokenizer_sha256
from unlearnbench.checkpoints.packed import StoredScheme
from unlearnbench.errors import CheckpointError, one_line
from unlearnbench.results import Checkpoint
from unlearnbench.util.files import content_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unlearnbench.checkpoints.source import Source


def describe_checkpoint(source: Source, weights_at: CheckpointFiles) -> Checkpoint:
    """Hashes and origin of an open checkpoint; ``weights_at``: where its full weights are."""
    files, base = source.files, source.base
    weights = files.weights_sha256
    base_facts = None
    if base is not None:
        base_facts = Checkpoint(
            path=base.path,
            revision=base.revision,
            format=base.kind,
            weights_sha256=base.weights_sha256,
            tokenizer_sha256=tokenizer_sha256(_base_tokenizer(source, base)),
        )
        weights = content_sha256([weights, base_facts.weights_sha256])
    return Checkpoint(
        path=files.path,
        revision=files.revision,
        format=files.kind,
        weights_sha256=weights,
        tokenizer_sha256=tokenizer_sha256(source.tokenizer),
        config_sha256=content_sha256(_config_facts(source, weights_at)),
        origin=_origin(weights_at, source.stored),
        adapter={"merge": "merged", "keep": "kept"}[source.options.adapter]  # type: ignore[arg-type]
        if base is not None
        else None,
        base=base_facts,
    )


def _base_tokenizer(source: Source, base: CheckpointFiles) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(base, None, source.options.trust_remote_code)
    except CheckpointError:  # a base without a tokenizer, where the adapter brings its own
        return source.tokenizer


def _config_facts(source: Source, weights_at: CheckpointFiles) -> dict[str, object]:
    """The config, and an adapter's, without what changes from one saving to the next and does not
    change the model; and the ends of texts where ``generation_config.json`` has others.
    """
    facts = json.loads(source.config.to_json_string(use_diff=False))
    ends = _generation_ends(weights_at)
    if ends is not None and ends != named_ends(facts.get("eos_token_id")):
        facts["generation_eos_token_id"] = ends
    if source.files.kind == "adapter":
        facts["adapter"] = _adapter_facts(source.files)
    for key in ("_name_or_path", "_model_name_or_path", "transformers_version"):
        facts.pop(key, None)
    return dict(facts)


def _generation_ends(files: CheckpointFiles) -> list[object] | None:
    try:
        return named_ends(read_json(files.folder / "generation_config.json").get("eos_token_id"))
    except CheckpointError:  # not there, or damaged: transformers takes config.json's
        return None


def _adapter_facts(files: CheckpointFiles) -> dict[str, object]:
    facts = read_json(files.folder / "adapter_config.json")
    for key in ("base_model_name_or_path", "revision", "peft_version", "inference_mode"):
        facts.pop(key, None)
    present = {key: value for key, value in facts.items() if value is not None}
    # PEFT keeps lists of modules as sets and writes them in any order.
    return {k: sorted(map(str, v)) if isinstance(v, list) else v for k, v in present.items()}


def _origin(files: CheckpointFiles, stored: StoredScheme | None) -> dict[str, str]:
    """Weights that come from a 4-bit grid are not full precision: a GGUF file's tensor types, or
    the scheme that a checkpoint is quantized in.
    """
    if stored is not None:
        return {"quantized": f"{stored.bits:g} bits, {stored.text}"}
    if files.kind != "gguf":
        return {}
    types: dict[str, int] = {}
    for name, _ in gguf_tensors(files):
        types[name] = types.get(name, 0) + 1
    return {"gguf_tensor_types": ", ".join(f"{n} {t}" for t, n in sorted(types.items()))}


def gguf_tensors(files: CheckpointFiles) -> list[tuple[str, int]]:
    """Type and number of weights of every tensor of a GGUF file."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(files.weights[0]).tensors
        return [(tensor.tensor_type.name, int(tensor.n_elements)) for tensor in tensors]
    except Exception as error:  # the reader trusts the file's own numbers and fails in many ways
        raise CheckpointError(
            f"{files.path} is truncated or damaged ({one_line(error, 150)}); copy or download it "
            "again"
        ) from None
