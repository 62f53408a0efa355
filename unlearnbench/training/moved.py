"""What quantization leaves of a finished training's change, for its record."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import CodeChange, CodeRecord
from unlearnbench.checkpoints.weights import open_weights
from unlearnbench.conditions.base import find_condition
from unlearnbench.conditions.quantize.movable import COMMON
from unlearnbench.conditions.quantize.overlap import PrecisionOverlap, compare_codes
from unlearnbench.errors import UnlearnbenchError, one_line

log = logging.getLogger("unlearnbench")


def code_records(made: Path, target: str, load: LoadOptions) -> tuple[CodeRecord, ...] | None:
    """At each common precision that is installed here: the share of weights whose code changed, and
    the size of the change after against before quantizing. None where the two checkpoints cannot
    be compared, which is said.
    """
    specs = [spec for spec in map(find_condition, COMMON) if spec.missing() is None]
    own = LoadOptions(trust_remote_code=load.trust_remote_code)
    try:
        with ExitStack() as stack:
            ours, theirs = open_weights(str(made), own, stack), open_weights(target, load, stack)
            layers = [found for _, found in compare_codes(ours, theirs, specs)]
    except UnlearnbenchError as error:
        log.warning("what quantization leaves is not recorded: %s", one_line(error, 200))
        return None
    return tuple(
        _record(PrecisionOverlap(spec.name, tuple(layer[i] for layer in layers)))
        for i, spec in enumerate(specs)
    )


def _record(found: PrecisionOverlap) -> CodeRecord:
    def change(part: PrecisionOverlap) -> dict[str, float | int | None]:
        return {"weights": part.weights, "changed": 1 - part.overlap, "size": part.size}

    modules = {n: CodeChange.model_validate(change(p)) for n, p in found.by_module().items()}
    whole = {**change(found), "precision": found.precision, "modules": modules}
    return CodeRecord.model_validate(whole)
