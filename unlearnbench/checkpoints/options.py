"""The options of every command that opens a checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from unlearnbench.util.validation import OptionModel


class LoadOptions(OptionModel):
    """How to find and trust a checkpoint. Everything that could run a stranger's code is off."""

    revision: str | None = Field(default=None, title="REV")
    """Hub revision of --model."""
    base: str | None = Field(default=None, title="PATH|ID")
    """Base model of an adapter folder."""
    tokenizer: str | None = Field(default=None, title="PATH|ID")
    """A folder or hub id with the tokenizer, for a checkpoint that has none."""
    adapter: Literal["merge", "keep"] = "merge"
    """Merge an adapter before quantizing, or keep it beside the quantized base."""
    allow_adapter_base: bool = False
    """Follow the base that an adapter names."""
    trust_remote_code: bool = False
    """Let the checkpoint run its own Python."""
    allow_pickle: bool = False
    """Load pickled weights (.bin)."""
    truncate_left: bool = False
    """Cut prompts beyond the model's context on the left; recorded."""
    max_length: int | None = Field(default=None, gt=0, title="N")
    """Context in tokens, where less than the model's own; recorded."""
    add_bos_token: bool | None = None
    """Begin every text with the begin token, or none; default: as the tokenizer does; recorded."""
    mask_pad_id: bool = False
    """Mask the pad id wherever it stands in a text, as open-unlearning does; recorded."""
    think_end_token: str | None = Field(default=None, title="TOKEN|ID")
    """Answers begin behind this token, as </think>; recorded."""


ASKING = frozenset(
    {"truncate_left", "max_length", "add_bos_token", "think_end_token", "mask_pad_id"}
)
"""Those that say how a model is asked, which commands that ask nothing leave out."""
