"""Update survival of checkpoints that were measured, for a policy that demands it: what rounding
leaves of (checkpoint - target), from the files of both (docs/why.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from unlearnbench import conditions
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.weights import Weights, open_weights
from unlearnbench.conditions.quantize.overlap import PrecisionOverlap, compare_codes, require_codes
from unlearnbench.errors import OptionError
from unlearnbench.runs.entries import LoadedRun


def survivals(run: LoadedRun, target: LoadedRun, precisions: Sequence[str]) -> dict[str, float]:
    """By precision, of the checkpoint that a run measured against the target's.

    Raises:
        CheckpointError: a checkpoint is not where its run says, or broken.
        OptionError: it is not the one that the run measured, its adapter was kept beside the
            quantized base, or nothing was updated.
        PrecisionError: a precision has no codes that follow from a weight alone.
    """
    specs = conditions.resolve(list(precisions))
    require_codes(specs)
    with ExitStack() as stack:
        pair = _weights(run, stack), _weights(target, stack)
        layers = [found for _, found in compare_codes(*pair, specs)]
    found = {}
    for i, spec in enumerate(specs):
        survival = PrecisionOverlap(spec.name, tuple(layer[i] for layer in layers)).survival
        if survival is None:
            what = f"the inner weights of {run.where} are those of the target"
            raise OptionError(f"{what}: there is no update that could survive")
        found[spec.name] = survival
    return found


def _weights(run: LoadedRun, stack: ExitStack) -> Weights:
    """The weights that a run measured, read where it says."""
    measured = run.result.checkpoint
    if measured.adapter == "kept":
        raise OptionError(f"min_survival: {run.where} kept an adapter beside its base; merge it")
    options = LoadOptions(
        revision=measured.revision,
        base=measured.base.path if measured.base else None,
        tokenizer=measured.tokenizer.path if measured.tokenizer else None,
    )
    there = open_checkpoint(measured.path, options).checkpoint.weights_sha256
    if there != measured.weights_sha256:
        raise OptionError(
            f"{measured.path} holds other weights than those that {run.where} measured; evaluate "
            "it again"
        )
    return open_weights(measured.path, options, stack)
