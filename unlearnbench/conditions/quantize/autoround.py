"""AutoRound (SignRound, arXiv 2309.05516) by its own library, calibrated on texts: whether a weight
is rounded up or down, and how far each group's range is cut, are learned by signed gradient descent
on the error of a transformer block's outputs.

The library changes transformers as it is imported, so it works in a process of its own. What it
saves as a GPTQ folder is unpacked here; embeddings, norms and the head, which it rounds to 16 bits
there, stay as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearnbench.checkpoints.limits import require_memory
from unlearnbench.checkpoints.load import linear_layers
from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    dtype_name,
    groups,
)
from unlearnbench.conditions.proof import (
    load_changed,
    require_coverable,
    require_linear,
    require_text_alone,
)
from unlearnbench.conditions.quantize.calibration import token_batches
from unlearnbench.errors import NotInForceError, PrecisionError, one_line

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_BITS = 4
_DEEPEST, _LEAST = 2 ** (_BITS - 1), 1e-5  # the lowest level's number; the library's least scale
_MULTIPLE = 32  # rows and columns that the library packs
_STEPS, _BATCH = 200, 8  # the library's own
_WORKER = "unlearnbench.conditions.quantize.autoround_worker"


def _spec(group: int) -> ConditionSpec:
    return ConditionSpec(
        f"auto-round-int{_BITS}-g{group}",
        "quantized",
        f"AutoRound, symmetric per group of {group} columns, calibrated",
        "auto-round",
        {"group_size": group, "symmetric": True, "iterations": _STEPS, "batch_size": _BATCH},
        bits=_BITS,
        bits_per_weight=_BITS + (16 + _BITS) / group,
        kernels=("dequantized",),
        extra="auto-round",
        libraries=("auto_round",),
        calibrated=True,
    )


CONDITIONS = tuple(_spec(group) for group in (32, 64, 128))


class PackedMatrix(NamedTuple):
    """One matrix as the library saves it, in GPTQ's layout."""

    codes: torch.Tensor
    """(in / 8, out), int32: eight codes of a column in a word, the first lowest."""
    zeros: torch.Tensor
    """(groups, out / 8), int32: eight zero points less 1 in a word."""
    scales: torch.Tensor
    """(groups, out), fp16."""

    def values(self, size: int) -> torch.Tensor:
        """The weight in force, (out, in), float32: (code - zero point) x scale of each ``size``
        columns.
        """
        levels, scale = self._levels(size)
        return levels * scale

    def is_plain(self, weight: torch.Tensor, size: int) -> bool:
        """Whether nothing was learned: each scale is the group's largest |weight| / 8 in fp16, as
        the library begins with, and each weight (out, in) went to its nearest level. Up to 0.01 of
        a step, for it may divide in fp16.
        """
        exact = weight.float()
        levels, scale = self._levels(size)
        start = groups(exact, size).abs().amax(1).div(_DEEPEST).half().clamp(min=_LEAST)
        if not bool((self.scales.T.abs() == start.view(len(exact), -1)).all()):
            return False
        found = exact.div(scale).clamp(-_DEEPEST, _DEEPEST - 1)
        return bool(((found - levels).abs() <= 0.51).all())

    def _levels(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Code less zero point, and scale, of each weight: (out, in), float32."""
        codes = _unpacked(self.codes.T)
        zeros = _unpacked(self.zeros).T + 1
        spread = [each.repeat_interleave(size, 1) for each in (zeros, self.scales.float().T)]
        zero, scale = (each[:, : codes.shape[1]] for each in spread)
        return (codes - zero).float(), scale

    @property
    def stored_bytes(self) -> int:
        """Of codes and constants."""
        return sum(part.numel() * part.element_size() for part in self)


def _unpacked(words: torch.Tensor) -> torch.Tensor:
    """(rows, words) -> (rows, 8 words) of 4 bits each, from the lowest."""
    import torch

    shifts = torch.arange(0, 32, _BITS, dtype=torch.int32)
    parts: torch.Tensor = (words[:, :, None] >> shifts) & (2**_BITS - 1)
    return parts.reshape(words.shape[0], -1)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head.

    Raises:
        PrecisionError: the library cannot quantize this model, or its layers do not fit.
        CheckpointError: memory cannot hold it here and in the library's process.
        NotInForceError: a layer was not quantized, or all were rounded plainly.
    """
    _require_fit(spec, source, plan.device)
    size = int(spec.options["group_size"])
    packed = quantize(spec, source, plan)
    learned = False

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        found = packed.get(name)
        if found is None:
            raise NotInForceError(f"{spec.name}: AutoRound left {name} as it was")
        nonlocal learned
        values = found.values(size)
        if values.shape != weight.shape:
            raise NotInForceError(
                f"{spec.name}: AutoRound's {name} has shape {tuple(values.shape)}, and the "
                f"checkpoint's weight {tuple(weight.shape)}"
            )
        learned = learned or not found.is_plain(weight, size)
        return values

    def read(name: str, weight: torch.Tensor) -> ModuleReading:
        found = ModuleReading.of(weight, size, weight)
        return found._replace(stored_as="int4", stored_bytes=packed[name].stored_bytes)

    made = load_changed(spec, source, plan, change, read=read)
    if not learned:  # it begins there, and says nothing of an error that is never finite
        raise NotInForceError(
            f"{spec.name}: AutoRound learned nothing, as where its error is never finite: every "
            "weight went to its nearest level; use other calibration texts, or rtn"
        )
    return made


def _require_fit(spec: ConditionSpec, source: CheckpointSource, device: str) -> None:
    """What the library would pass over, or find out after minutes."""
    path = source.files.path
    require_linear(spec, source)
    require_text_alone(spec, source)
    if type(source.model()).__module__.partition(".")[0] != "transformers":
        raise PrecisionError(
            f"{spec.name}: AutoRound opens transformers' own models, and {path} brings its code; "
            "use a bnb, rtn, gguf, hqq, quanto or torchao precision"
        )
    require_coverable(spec, source)
    for name, layer in linear_layers(source.model()).items():
        if any(side % _MULTIPLE for side in layer.weight.shape):
            rows, columns = layer.weight.shape
            raise PrecisionError(
                f"{spec.name} needs rows and columns in multiples of {_MULTIPLE}, and {name} has "
                f"{rows} x {columns}; use rtn or gptq"
            )
    here = source.state_dict().values()
    bytes_there = [4 * t.numel() if device == "cpu" else t.nbytes for t in here]  # its process
    require_memory(sum(t.nbytes for t in here) + sum(bytes_there), path)


def quantize(
    spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan
) -> dict[str, PackedMatrix]:
    """Every matrix that the library quantizes, by module. Raises as ``load``."""
    calibration = plan.materials.calibration
    assert calibration is not None  # noqa: S101 - load.prepare sees to it
    job = {
        "texts": [batch["input_ids"][0].tolist() for batch in token_batches(source, calibration)],
        "seed": calibration.data.seed,
        "device": plan.device,
        "bits": spec.width,
        **spec.options,
    }
    with tempfile.TemporaryDirectory(prefix="unlearnbench-autoround-") as name:
        folder = Path(name)
        source.model().save_pretrained(folder / "full")
        source.tokenizer.save_pretrained(folder / "full")
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        _run(spec, folder)
        return _read(spec, folder / "packed")


def _run(spec: ConditionSpec, folder: Path) -> None:
    """The library in its process, in ``folder``."""
    import torch

    code = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]
    threads = str(torch.get_num_threads())
    told = {"PYTHONPATH": os.pathsep.join(filter(None, code)), "OMP_NUM_THREADS": threads}
    with (folder / "said").open("w", encoding="utf-8") as said:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", _WORKER],
            cwd=folder,
            env={**os.environ, **told},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            check=False,
        )
    if done.returncode < 0:
        raise PrecisionError(
            f"{spec.name}: AutoRound's process was ended by signal {-done.returncode}; signal 9 "
            "is mostly a lack of memory"
        )
    if done.returncode:
        lines = (folder / "said").read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        raise PrecisionError(f"AutoRound cannot quantize this model: {one_line(last, 200)}")


def _read(spec: ConditionSpec, folder: Path) -> dict[str, PackedMatrix]:
    """The matrices of a GPTQ folder. NotInForceError where it is not what was asked for."""
    from safetensors.torch import load_file

    path = next(folder.rglob("config.json"), None)  # in a folder of the library's own name
    if path is None:
        raise NotInForceError(f"{spec.name}: AutoRound saved no model")
    said = json.loads(path.read_text(encoding="utf-8")).get("quantization_config", {})
    asked = {"bits": spec.width, "group_size": spec.options["group_size"], "sym": True}
    odd = any(
        said.get(key) for key in ("desc_act", "dynamic", "extra_config")
    )  # other orders, bits
    if odd or {key: said.get(key) for key in asked} != asked:
        raise NotInForceError(f"{spec.name}: AutoRound saved {one_line(said, 120)}")
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(path.parent.glob("*.safetensors")):
        tensors |= load_file(file)
    names = [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]
    return {name: _matrix(spec, name, tensors) for name in names}


def _matrix(spec: ConditionSpec, name: str, tensors: Mapping[str, torch.Tensor]) -> PackedMatrix:
    """One matrix of the folder. NotInForceError where its parts do not go together."""
    import torch

    size = int(spec.options["group_size"])
    words, rows = (*tensors[f"{name}.qweight"].shape, 0, 0)[:2]
    count = -(-8 * words // size)
    asked = {
        "qweight": ("int32", (words, rows)),
        "qzeros": ("int32", (count, rows // 8)),
        "scales": ("float16", (count, rows)),
    }
    for part, wanted in asked.items():
        found = tensors.get(f"{name}.{part}")
        there = None if found is None else (dtype_name(found), tuple(found.shape))
        if there != wanted:
            raise NotInForceError(
                f"{spec.name}: {part} of AutoRound's {name} is {there or 'missing'}, not {wanted}"
            )
    order = tensors.get(f"{name}.g_idx")
    if order is not None and not torch.equal(order.long(), torch.arange(8 * words) // size):
        raise NotInForceError(f"{spec.name}: AutoRound's {name} has its columns in another order")
    return PackedMatrix(*(tensors[f"{name}.{part}"] for part in asked))
