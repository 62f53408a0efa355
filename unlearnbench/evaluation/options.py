"""All options of an evaluation, each declared once.

The command line, its YAML ``--config``, the ``UNLEARNBENCH_*`` variables and Python's ``evaluate``
are made from the fields of ``Options``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from unlearnbench.conditions.options import KernelOptions
from unlearnbench.tasks.chat import DATE
from unlearnbench.util.validation import auto_or_count, count_or_share


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

    limit: Annotated[int | float | None, BeforeValidator(count_or_share)] = Field(
        default=None, title="N|SHARE"
    )
    """First N rows of each split, or below 1 a share."""

    batch_size: Annotated[int | Literal["auto"], BeforeValidator(auto_or_count)] = Field(
        default="auto", title="auto|N"
    )
    """Prompts or texts of a batch."""

    seed: int = Field(default=0, ge=0)
    """Of everything that is drawn."""

    protocol: Literal["muse", "zhang2025"] = "muse"
    """zhang2025 samples VerbMem at temperature 0.9."""

    reference: Literal["stated"] | Path | None = Field(default=None, title="RUN_DIR|stated")
    """PrivLeak's zero: a run of the retrained model, or the task's stated reference."""

    ppl_lower: bool = False
    """Also score lower-cased texts (a second pass)."""

    gradnorm: bool = False
    """Also score texts by the norm of their loss's gradient (a backward pass each); recorded."""

    fresh: bool = False
    """Start over; an earlier run is kept under .old."""

    gen_kwargs: Mapping[str, Any] = Field(default={}, title="KEY=VALUE,...")
    """In place of the tasks' own decoding; such runs stand on no board."""

    apply_chat_template: bool = False
    """Prompts go through the chat template."""

    date_string: str = Field(default=DATE, title="DATE")
    """The day that a chat template is told, whatever day it is; recorded."""

    enable_thinking: bool = False
    """Let the chat template begin a thought, which --think-end-token ends; recorded."""

    confirm_run_unsafe_code: bool = False
    """Let lm-eval task files of --include-path run their own Python."""

    answer_blank: Literal["auto", "prompt", "answer"] = "auto"
    """Where the blank behind "Answer:" stands: in MUSE's prompt, or before the answer (version 2);
    auto: as the tokenizer joins blank and word."""

    budget: int | None = Field(default=None, ge=1, title="N")
    """Most forward passes (texts run through the model) of each search of a condition."""

    drafts: Literal["auto", "off"] = "auto"
    """Verify answers that are known from other conditions, or from --reference, several tokens a
    pass; off: always one token.
    """

    drafts_from: tuple[Path, ...] = Field(default=(), title="RUN_DIR")
    """Other runs whose answers are drafts, as the target's; repeatable."""

    backend: Literal["hf", "vllm"] = "hf"
    """Generate through transformers, or vLLM on GPUs."""

    threads: int | None = Field(default=None, ge=1, title="N")
    """Processor threads; default: torch's."""

    explain: bool = False
    """Say which way the model is run, and why."""

    progress: bool = False
    """Show how far the work is, as the command line always does: one line in a terminal, elsewhere
    one every half minute."""
