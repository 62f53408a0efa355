"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

CHECKPOINT_OPTIONS = (
    click.option("--revision", metavar="REV", help="Hub revision of --model."),
    click.option("--base", metavar="PATH|ID", help="Base model of an adapter folder."),
    click.option(
        "--adapter",
        type=click.Choice(["merge", "keep"]),
        default="merge",
        show_default=True,
        help="Merge an adapter before quantizing, or keep it beside the quantized base.",
    ),
    click.option(
        "--allow-adapter-base", is_flag=True, help="Follow the base that an adapter names."
    ),
    click.option(
        "--trust-remote-code", is_flag=True, help="Let the checkpoint run its own Python."
    ),
    click.option("--allow-pickle", is_flag=True, help="Load pickled weights (.bin)."),
)

_KERNEL_OPTIONS = (
    click.option(
        "--quant-kernel",
        type=click.Choice(["auto", "native", "dequantized"]),
        default="auto",
        show_default=True,
        help="Products by the library's own kernel, or with the quantized weights written back in "
        "the compute dtype.",
    ),
    click.option(
        "--calibration",
        default="generic",
        show_default=True,
        metavar="generic|forget|retain|FILE",
        help="Texts for gptq and awq.",
    ),
    click.option(
        "--calibration-samples",
        type=int,
        default=96,
        show_default=True,
        metavar="N",
        help="Texts to draw from them.",
    ),
)

_RUNNING_OPTIONS = (
    click.option(
        "--truncate-left",
        is_flag=True,
        help="Cut prompts beyond the model's context on the left; recorded.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["hf", "vllm"]),
        default="hf",
        show_default=True,
        help="Generate through transformers, or vLLM on GPUs.",
    ),
    click.option("--threads", type=int, metavar="N", help="Processor threads; default: torch's."),
    click.option("--explain", is_flag=True, help="Say which way the model is run, and why."),
)


def checkpoint_options(command: F) -> F:
    """How to find and trust a checkpoint."""
    for option in reversed(CHECKPOINT_OPTIONS):
        command = option(command)
    return command


def kernel_options(command: F) -> F:
    """How a precision is made and run."""
    for option in reversed(_KERNEL_OPTIONS):
        command = option(command)
    return command


def running_options(command: F) -> F:
    """How a model that is loaded is run."""
    for option in reversed(_RUNNING_OPTIONS):
        command = option(command)
    return command
