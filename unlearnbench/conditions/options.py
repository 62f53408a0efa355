"""How a condition is made and run: the options of every command that loads a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from unlearnbench.checkpoints.options import LoadOptions


class KernelOptions(LoadOptions):
    """How a checkpoint is found, and how a condition of it is made and run."""

    device: str | None = Field(default=None, title="NAME")
    """cpu, cuda or auto (over all GPUs); default: cuda where there is one."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Compute dtype."""

    quant_kernel: Literal["auto", "native", "dequantized"] = "auto"
    """Products by the library's own kernel, or with the quantized weights written back in the
    compute dtype.
    """

    calibration: str = Field(default="generic", title="generic|forget|retain|FILE")
    """Texts for gptq, awq, auto-round, prune-wanda and gguf-*-imat; for the last also an
    imatrix.gguf.
    """

    calibration_samples: int = Field(default=96, title="N")
    """Texts to draw from them."""

    relearn_on: str = Field(default="forget", title="forget|forget-part|K-of-M|FILE")
    """Texts for relearn-N: the tasks' forget rows, those that hold no answer asked for, or K of
    every M rows, which are then not asked.
    """

    relearn_lr: float | None = Field(default=None, gt=0, title="RATE")
    """Learning rate of relearn-N; default: 1e-5, of relearn-lora-N 2e-4."""

    relearn_batch_size: int = Field(default=4, ge=1, title="N")
    """Texts of a step of relearn-N."""

    target_model: str | None = Field(default=None, title="PATH|ID")
    """The model before unlearning, for merge-A and suffix-N-target."""

    deployed: tuple[str, ...] = Field(default=(), title="FILE|FOLDER|ID")
    """A checkpoint that another tool quantized of this one, as a condition deployed:SCHEME;
    repeatable.
    """
