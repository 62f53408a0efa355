"""The options of a training: how to train, on which texts, and which of its checkpoints to keep."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from unlearnbench.util.validation import OptionModel


class TrainOptions(OptionModel):
    """How to train, whatever the loss. ``unlearning.json`` records them."""

    lr: float = Field(default=1e-5, gt=0, le=1e37)  # AdamW's first step takes ten times as much
    """Learning rate of AdamW."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the texts; in unlearning, over the forget set."""
    max_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps, instead of epochs."""
    batch_size: int = Field(default=8, gt=0)
    """Sequences of an optimizer step, over all processes; as many retain ones beside them."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Sequences of one forward pass in one process; the rest is accumulated."""
    max_length: int | None = Field(default=None, gt=1)
    """Tokens of a sequence; default: the model's context, at most 2048."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Of the learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises to --lr."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0: never."""
    l1: float = Field(default=0.0, ge=0)
    """Soft-threshold of the inner linear weights after each step, in units of the learning rate."""
    weight_noise: float = Field(default=0.0, ge=0)
    """Train under noise so many int4 steps wide: what is learned survives rounding."""
    survive: str | None = Field(default=None, min_length=1, title="CONDITIONS")
    """Take every term of the loss at the weights as these conditions round them too, as
    rtn-int4,bnb-nf4."""
    survive_weight: float | None = Field(default=None, ge=0)
    """Factor of the terms at each of --survive; default: 1."""
    survive_forget: Literal["every", "worst"] | None = None
    """Where the forget term counts under --survive: every place (the default), or each time the one
    where it is largest, so that what is forgotten there is not pushed further."""
    chunk: int | None = Field(default=None, gt=0)
    """Forget so many sequences at once, all of them in each step, one chunk after another, each for
    --epochs or --max-steps."""
    stop_el: int | None = Field(default=None, gt=0, title="N")
    """Stop where EL_N and MA are at or below those of --unseen texts; 10 in the paper."""
    span_share: float | None = Field(default=None, gt=0, le=1)
    """Of --spans surprise: the share of the tokens that is forgotten; default: 0.2."""
    qa_loss: Literal["answer", "all"] = "answer"
    """Which tokens of a question-answer pair are learned."""
    pack: int = Field(default=1, gt=0)
    """Question-answer pairs in one sequence, drawn anew in each epoch."""
    weights_dtype: Literal["auto", "fp32", "bf16", "bf16-rounded", "bf16-sr"] = "auto"
    """The dtype of weights, gradients and optimizer state; auto: the checkpoint's own;
    bf16-rounded: fp32, but weights are rounded to bf16 after each step; bf16-sr: stochastically."""
    reference_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """The dtype of frozen models to compare with, as KL terms do; auto: as the weights."""
    lora_rank: int | None = Field(default=None, gt=0)
    """Train an adapter of this rank, merged at the end."""
    keep_adapter: bool = False
    """Save a LoRA adapter as it is, instead of merging it into the weights."""
    gradient_checkpointing: bool = False
    """Compute layers twice to save memory."""
    save_steps: int | None = Field(default=None, ge=0)
    """Steps between checkpoints to resume from; 0: none; default: once in an epoch."""
    shards: int | None = Field(default=None, gt=0, le=63)
    """Train so many models on disjoint rows: an ensemble, for `unlearn --method sisa`."""
    slices: int | None = Field(default=None, gt=0, le=64)
    """Train each shard in so many stages, and keep the model after each; default: 1."""
    placement: Literal["random", "together"] | None = None
    """How rows are put into shards and slices: drawn by the seed, or those that are given one after
    another together; default: random."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the order of the texts, and of what methods draw."""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainOptions:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            micro = f"--micro-batch-size {self.micro_batch_size}"
            raise ValueError(f"--batch-size: {self.batch_size} is no multiple of {micro}")
        if (self.l1 or self.weight_noise) and self.lora_rank is not None:
            option = "--l1" if self.l1 else "--weight-noise"
            raise ValueError(f"{option}: it moves the weights, which LoRA does not train")
        if self.shards is not None and self.max_steps is not None:
            raise ValueError("--max-steps: shards learn for --epochs, whatever rows they have")
        for name in ("slices", "placement") if self.shards is None else ():
            if getattr(self, name) is not None:
                raise ValueError(f"--{name} is for --shards, which is missing")
        for name in ("survive_weight", "survive_forget"):
            if getattr(self, name) is not None and self.survive is None:
                raise ValueError(f"--{name.replace('_', '-')} is for --survive, which is missing")
        return self


class CorpusOptions(OptionModel):
    """Where ``task:NAME`` finds its rows, the fields of a row (a.b: b in a), and a pair's blank."""

    text_field: str = Field(default="text", min_length=1, title="NAME")
    """The field of a row that holds its text."""
    question_field: str = Field(default="question", min_length=1, title="NAME")
    """The field of a row that holds its question."""
    answer_field: str = Field(default="answer", min_length=1, title="NAME")
    """The field of a row that holds its answer."""
    answer_blank: Literal["auto", "prompt", "answer"] = "auto"
    """Where a pair's blank behind "Answer:" stands: with the question, or the answer; auto: as the
    tokenizer joins blank and word. Evaluations during training follow."""
    data_dir: str | None = Field(default=None, title="DIR")
    """Local data of tasks."""
    include_path: tuple[str, ...] = Field(default=(), title="DIR")
    """More task files."""
    allow_data_drift: bool = False
    """Use rows that are not the pinned ones."""


class SelectOptions(OptionModel):
    """Evaluate during training, and keep the first checkpoint that meets the rule."""

    eval_tasks: str | None = Field(default=None, title="NAMES")
    """Evaluate during training, and keep the first checkpoint at or below --retrained."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Steps between evaluations; default: an epoch."""
    retrained: str | None = Field(default=None, title="RUN_DIR|SCORE")
    """The retrained model's run folder, or its score from 0 to 100."""
    select_task: str | None = Field(default=None, title="NAME")
    """The task that decides; default: the one called *_knowmem_f."""
    eval_limit: int | None = Field(default=None, ge=1)
    """First N rows of each split."""
    eval_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """The dtype to evaluate in."""

    @property
    def names(self) -> list[str]:
        """The tasks to evaluate, as they were given."""
        return [name.strip() for name in (self.eval_tasks or "").split(",") if name.strip()]

    @model_validator(mode="after")
    def _fits_together(self) -> SelectOptions:
        if self.eval_tasks and not self.retrained:
            raise ValueError("--retrained is missing")
        fields = type(self).model_fields
        for name in (n for n in fields if n != "eval_tasks" and not self.eval_tasks):
            if getattr(self, name) != fields[name].default:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{option} is for --eval-tasks, which is missing")
        return self
