"""llama.cpp's importance matrices: of every matrix's column the mean square of its inputs over
calibration texts, by which rounding errors are weighed. Made here, or read from the GGUF file that
llama-imatrix writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.gguf import damaged, read_gguf_head
from unlearnbench.checkpoints.load import linear_layers, out_first
from unlearnbench.conditions.base import Calibration, ConditionSpec, LoadPlan
from unlearnbench.conditions.quantize.recipes import tensor_name
from unlearnbench.conditions.wanda import mean_squares
from unlearnbench.errors import DataError, PrecisionError, UnlearnbenchError, one_line
from unlearnbench.results import CalibrationData
from unlearnbench.util.files import file_sha256

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_calibration(path: Path) -> Calibration:
    """What results record of an importance matrix's file. Raises DataError where it is none."""
    if not path.is_file():
        raise DataError(f"--calibration {path} is not there, or no file")
    try:
        tensors = read_gguf_head(path)
        said = {key: _number(path, f"imatrix.{key}") for key in ("chunk_count", "chunk_size")}
    except (UnlearnbenchError, OSError) as error:
        raise DataError(f"--calibration {path}: {one_line(error, 200)}") from None
    if not any(name.endswith(_SUMS) for name in tensors) or not all(said.values()):
        raise DataError(
            f"--calibration {path} is no importance matrix: give the GGUF file that llama-imatrix "
            "writes (an older .dat is converted by llama-imatrix --in-file)"
        )
    data = CalibrationData(
        name=path.name,
        samples=said["chunk_count"],
        max_tokens=said["chunk_size"],
        seed=0,
        sha256=file_sha256(path, DataError),
    )
    return Calibration((), data, path)


def _number(path: Path, key: str) -> int:
    """A number above 0 of the file's head, else 0."""
    field = _reader(path).get_field(key)
    value = field.contents() if field is not None else 0
    return value if isinstance(value, int) and value > 0 else 0


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # it has no errors of its own
        raise damaged(path, error) from None


def importance(
    spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan
) -> Mapping[str, NDArray[np.float32]]:
    """Of every linear layer but the output head, (in,).

    Raises:
        PrecisionError: a file is of another model, or texts reach a layer not at all.
    """
    calibration = plan.materials.calibration
    assert calibration is not None  # noqa: S101 - load.prepare sees to it
    if calibration.file is None:
        found = mean_squares(spec, source, plan)
        return {name: mean.float().numpy() for name, mean in found.items()}
    return _from_file(calibration.file, source)


def _from_file(path: Path, source: CheckpointSource) -> dict[str, NDArray[np.float32]]:
    import numpy as np

    held = {tensor.name: tensor.data for tensor in _reader(path).tensors}
    found = {}
    for name, layer in linear_layers(source.model()).items():
        columns = out_first(layer, layer.weight).shape[1]
        known = tensor_name(name)
        sums, count = (held.get(f"{known}{end}") for end in (_SUMS, _COUNTS))
        if sums is None or count is None or sums.size != columns or count.size != 1:
            has = "nothing of it" if sums is None else f"{sums.size} columns of it"
            raise PrecisionError(
                f"--calibration {path} is an importance matrix of another model: {name} has "
                f"{columns} columns, and the file {has} ({known or 'a matrix that has no name'})"
            )
        tokens = float(count.reshape(-1)[0])
        if not tokens > 0 or not math.isfinite(tokens):
            raise PrecisionError(f"--calibration {path}: no text reached {known}")
        # In float32, as llama.cpp divides.
        found[name] = np.asarray(sums, np.float32).reshape(-1) / np.float32(tokens)
    return found
