"""The options of a training run, checked; they are also what ``unlearning.json`` records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unlearnbench.errors import OptionError, one_line
from unlearnbench.util.yaml import read_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class TrainOptions(_Strict):
    """How to train, whatever the loss."""

    lr: float = Field(default=1e-5, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the forget set (``finetune``: over the texts)."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps, instead of epochs."""
    batch_size: int = Field(default=8, gt=0)
    """Sequences of an optimizer step, over all processes; as many retain ones beside them."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Sequences of one forward pass in one process; the rest is accumulated."""
    max_length: int | None = Field(default=None, gt=1)
    """Tokens of a sequence; default: the model's context, at most 2048."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0: never."""
    l1: float = Field(default=0.0, ge=0)
    """Soft-threshold of the inner linear weights after each step, in units of the learning rate."""
    weight_noise: float = Field(default=0.0, ge=0)
    """Width of the noise on inner linear weights while a gradient is taken, in steps of int4."""
    qa_loss: Literal["answer", "all"] = "answer"
    """Which tokens of a question-answer pair are learned."""
    pack: int = Field(default=1, gt=0)
    """Question-answer pairs in one sequence, drawn anew in each epoch (``finetune``)."""
    weights_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """The dtype of the weights under training and of their gradients and optimizer state; auto: the
    checkpoint's own."""
    reference_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """The dtype of the second copy that KL terms compare with; auto: as the weights."""
    lora_rank: int | None = Field(default=None, gt=0)
    keep_adapter: bool = False
    """Save a LoRA adapter as it is, instead of merging it into the weights."""
    gradient_checkpointing: bool = False
    save_steps: int | None = Field(default=None, ge=0)
    """Steps between checkpoints to resume from; 0: none; default: once in an epoch."""
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _fits_together(self) -> TrainOptions:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size: {self.batch_size} is no multiple of --micro-batch-size "
                f"{self.micro_batch_size}"
            )
        if self.l1 and self.lora_rank is not None:
            raise ValueError("l1: it shrinks the weights themselves, which LoRA does not train")
        if self.weight_noise and self.lora_rank is not None:
            raise ValueError("weight_noise: it moves the weights, which LoRA does not train")
        return self


@dataclass(frozen=True)
class SelectorOptions:
    """tasks: what to evaluate. reference: run folder of the retrained model, or a score 0 to 100.
    every: steps between evaluations; None: an epoch. task: the one that decides. limit:
    first rows of each split. dtype: to compute in, as ``--dtype`` has it.
    """

    tasks: tuple[str, ...]
    reference: str
    every: int | None = None
    task: str | None = None
    limit: int | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what evaluations would only refuse after the first steps."""
        for name, value in (("steps", self.every), ("limit", self.limit)):
            if value is not None and value < 1:
                raise OptionError(f"--eval-{name} {value}: use 1 or more")
        if self.dtype not in ("auto", "fp32", "bf16", "fp16"):
            raise OptionError(
                f"--eval-dtype {one_line(self.dtype, 40)}: use auto, fp32, bf16, fp16"
            )


def make_options(values: dict[str, Any]) -> TrainOptions:
    """Check options by name; absent ones take their defaults.

    Raises:
        OptionError: a value makes no sense; names the option.
    """
    try:
        return TrainOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            name, given = str(first["loc"][0]).replace("_", "-"), one_line(first["input"], 60)
            raise OptionError(f"--{name} {given}: {one_line(message)}") from None
        name, _, rest = message.partition(": ")
        raise OptionError(f"--{name.replace('_', '-')}: {rest}") from None


def read_config(path: Path, known: set[str]) -> dict[str, Any]:
    """Options from a YAML file, under the names of the command line, with ``-`` or ``_``.

    Raises:
        TaskError: it is no plain YAML; says the line.
        OptionError: it names an option that does not exist.
    """
    source = read_yaml(path)
    values = {key.replace("-", "_"): value for key, value in source.value.items()}
    for given in source.value:
        if given.replace("-", "_") not in known:
            raise OptionError(f"{source.where(given)}: unknown option {one_line(given, 60)!r}")
    return values
