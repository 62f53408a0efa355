"""All options of an evaluation, each declared once.

The command line, its YAML ``--config``, the ``UNLEARNBENCH_*`` variables and Python's ``evaluate``
are made from the fields of ``Options``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from unlearnbench.conditions.options import KernelOptions
from unlearnbench.errors import one_line


class Options(KernelOptions):
    """Everything that may be asked of an evaluation beside its model, tasks and conditions."""

    output: Path = Field(default=Path("results"), title="DIR")
    """Run folders."""

    data_dir: Path | None = Field(default=None, title="DIR")
    """Local data; default: $UNLEARNBENCH_DATA."""

    include_path: tuple[Path, ...] = Field(default=(), title="DIR")
    """More task files; repeatable."""

    allow_data_drift: bool = False
    """Run on rows that are not the pinned ones."""

    limit: int | float | None = Field(default=None, title="N|SHARE")
    """First N rows of each split, or below 1 a share."""

    batch_size: int | Literal["auto"] = Field(default="auto", title="auto|N")
    """Prompts or texts of a batch."""

    seed: int = Field(default=0, ge=0)
    """Of everything that is drawn."""

    protocol: Literal["muse", "zhang2025"] = "muse"
    """zhang2025 samples VerbMem at temperature 0.9."""

    reference: Literal["stated"] | Path | None = Field(default=None, title="RUN_DIR|stated")
    """PrivLeak's zero: a run of the retrained model, or the task's stated reference."""

    ppl_lower: bool = False
    """Also score lower-cased texts (a second pass)."""

    fresh: bool = False
    """Start over; an earlier run is kept under .old."""

    gen_kwargs: Mapping[str, Any] = Field(default={}, title="KEY=VALUE,...")
    """In place of the tasks' own decoding; such runs stand on no board."""

    apply_chat_template: bool = False
    """Prompts go through the chat template."""

    confirm_run_unsafe_code: bool = False
    """Let lm-eval task files of --include-path run their own Python."""

    backend: Literal["hf", "vllm"] = "hf"
    """Generate through transformers, or vLLM on GPUs."""

    threads: int | None = Field(default=None, ge=1, title="N")
    """Processor threads; default: torch's."""

    explain: bool = False
    """Say which way the model is run, and why."""

    progress: bool = False
    """Show progress bars, as the command line always does."""

    @field_validator("limit", mode="before")
    @classmethod
    def _limit(cls, given: Any) -> int | float | None:
        if given is None:
            return None
        try:
            number = float(given)
            whole = int(number)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"--limit {one_line(given, 60)!r} is not a number or a share"
            ) from None
        if number <= 0:
            raise ValueError(
                f"--limit {given} leaves no sample; use 1 or more, a share below 1, or leave it out"
            )
        if number > 1 and number != whole:
            raise ValueError(f"--limit {given}: use a whole number, or a share below 1")
        return whole if number == whole else number

    @field_validator("batch_size", mode="before")
    @classmethod
    def _batch_size(cls, given: Any) -> int | str:
        text = str(given)
        if text == "auto":
            return "auto"
        if not text.isascii() or not text.isdigit() or int(text) == 0:
            raise ValueError(
                f"--batch-size {one_line(text, 60)}: use 'auto' or a whole number above 0"
            )
        return int(text)
