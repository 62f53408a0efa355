"""A checkpoint mended: read and written one tensor at a time, whole or not at all."""

from __future__ import annotations

import json
import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unlearnbench.checkpoints.checkpoint import hash_files, open_checkpoint
from unlearnbench.checkpoints.find import CheckpointFiles, TensorHead, find_checkpoint
from unlearnbench.checkpoints.load import load_config
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE, Repaired, RepairRecord, Training, read_record
from unlearnbench.checkpoints.shards import size_of, write_index, write_shard
from unlearnbench.checkpoints.tokenizer import load_tokenizer
from unlearnbench.checkpoints.weights import Weights, open_weights
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.quantize.overlap import require_alike
from unlearnbench.errors import CheckpointError, OptionError, PrecisionError
from unlearnbench.repair.matrices import Mender, Totals
from unlearnbench.repair.method import Strategy
from unlearnbench.repair.place import new_folder, require_apart, require_room
from unlearnbench.results import Checkpoint
from unlearnbench.runs.fingerprint import git_hash, source_sha256
from unlearnbench.training.output import save_tokenizer
from unlearnbench.util.process import ProgressLine
from unlearnbench.util.version import __version__

if TYPE_CHECKING:
    import torch

log = logging.getLogger("unlearnbench")
Dtype = Literal["auto", "fp32", "bf16"]
_STORED = {"fp32": "F32", "bf16": "BF16"}
_TORCH = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


@dataclass(frozen=True)
class RepairJob:
    """What to mend, and how."""

    model: str
    target: str
    out: Path
    precisions: tuple[ConditionSpec, ...]
    """To mend it for; with ``grid`` moves end on the first one's levels."""
    strategy: Strategy
    strength: float
    dtype: Dtype
    load: LoadOptions
    report: tuple[ConditionSpec, ...] = ()
    """Further ones to report on."""
    loose: bool = False
    """Those may not fit the model."""
    progress: bool = False


@dataclass(frozen=True)
class _Pair:
    """Both checkpoints, opened."""

    files: CheckpointFiles
    """Of the model; an adapter's are merged and unpacked."""
    ours: Weights
    theirs: Weights
    facts: tuple[Checkpoint, Checkpoint]
    """What is recorded of the model and the target."""


def repair(job: RepairJob) -> Totals:
    """Write the mended checkpoint to ``job.out``.

    Raises:
        OptionError: ``out`` is in the way or inside of one of the two, or there is no room for it.
        CheckpointError: the two are not of one architecture or tokenizer, or are swapped.
        PrecisionError: one is quantized.
        NotInForceError: what was written would be rounded to other codes than were meant.
        OutputError: it cannot be written.
    """
    require_apart(job.out, Path(job.model), Path(job.target))
    with new_folder(job.out) as work, ExitStack() as stack:
        pair = _open(job, work, stack)
        plan = _plan(pair, job)
        require_room(job.out, sum(map(size_of, plan.values())))
        how = job.strategy, job.strength, job.loose
        mender = Mender(pair.ours, job.precisions, job.report, *how)
        _write(pair, plan, mender, work, job.progress)
        _copy(pair.files, job, work)
        record = _record(pair, job, mender.totals)
        (work / FILE).write_text(record, encoding="utf-8")
    return mender.totals


def _open(job: RepairJob, work: Path, stack: ExitStack) -> _Pair:
    """Open both and check that one came of the other, as far as can be seen."""
    load = _own(job.model, job.load)
    others = job.load.model_copy(update={"revision": None})  # which is the model's
    others = _own(job.target, others)
    if job.load.base is not None and load.base is others.base is None:
        raise OptionError(f"--base is for adapter folders, and {job.model} is a full checkpoint")
    files, ours = _facts(job.model, load)
    other, theirs = _facts(job.target, others)
    _require_order(files, ours, other, theirs)
    if ours.tokenizer_probe_sha256 != theirs.tokenizer_probe_sha256:
        raise CheckpointError(
            f"{job.model} and {job.target} have different tokenizers; one did not come of the other"
        )
    if files.kind != "safetensors":
        files = _unpack(job, work / "unpacked")
    weights = open_weights(str(files.folder), load, stack)
    pair = _Pair(files, weights, open_weights(job.target, others, stack), (ours, theirs))
    require_alike(pair.ours, pair.theirs)
    return pair


def _own(path: str, options: LoadOptions) -> LoadOptions:
    """Without a base that is the other's."""
    if find_checkpoint(path, options, options.revision).kind == "adapter":
        return options
    return options.model_copy(update={"base": None})


def _facts(path: str, options: LoadOptions) -> tuple[CheckpointFiles, Checkpoint]:
    files = find_checkpoint(path, options, options.revision)
    packed = sorted({head.dtype for head in files.tensors.values()} - set(_TORCH))
    if files.kind == "gguf" and packed:
        raise PrecisionError(
            f"{path} is quantized already ({', '.join(packed)}); use the unquantized checkpoint"
        )
    source = open_checkpoint(path, options)
    if files.kind != "safetensors":
        return files, source.checkpoint
    config: Any = load_config(files)
    rows = getattr(config.get_text_config(), "vocab_size", 0)
    return files, hash_files(files, load_tokenizer(files), rows)


def _require_order(
    files: CheckpointFiles, ours: Checkpoint, other: CheckpointFiles, theirs: Checkpoint
) -> None:
    """Refuse a target that says it was made from the model, and tell of one that is not the
    model's own by its record.
    """
    own, found = (_read(source.folder / FILE) for source in (files, other))
    came = [repair.model.weights_sha256 for repair in found.repairs] if found else []
    if isinstance(found, Training):
        came.append(found.target.weights_sha256)
    if ours.weights_sha256 in came and ours.weights_sha256 != theirs.weights_sha256:
        raise CheckpointError(
            f"{other.path} was made from {files.path} (its {FILE} says so): --model is the "
            "unlearned checkpoint and --target the one that it came from; swap them"
        )
    made = own if isinstance(own, Training) and own.kind == "unlearn" else None
    if made is not None and made.target.weights_sha256 != theirs.weights_sha256:
        log.warning(
            "%s says that it was unlearned from other weights than those of %s; unless these are "
            "the same, saved anew, what is mended is not what was unlearned",
            files.path,
            other.path,
        )


def _read(path: Path) -> Training | Repaired | None:
    return read_record(path) if path.is_file() else None


def _unpack(job: RepairJob, folder: Path) -> CheckpointFiles:
    """An adapter merged, a pickle or GGUF file unpacked: a checkpoint of safetensors."""
    source = open_checkpoint(job.model, job.load)
    source.model().save_pretrained(folder)
    save_tokenizer(source.tokenizer, source.home, folder)
    record = source.files.folder / FILE
    if record.is_file():
        shutil.copyfile(record, folder / FILE)
    return find_checkpoint(str(folder), job.load)


def _plan(pair: _Pair, job: RepairJob) -> dict[Path, dict[str, TensorHead]]:
    """The tensors of each file to write, in the dtype asked for."""
    from safetensors import safe_open

    plan = {}
    for path in pair.files.weights:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
        heads = {name: pair.files.tensors[name] for name in names}
        if job.dtype != "auto":
            wide = _STORED[job.dtype]
            heads = {
                n: h._replace(dtype=wide) if h.dtype in _TORCH else h for n, h in heads.items()
            }
        plan[path] = heads
    return plan


def _write(
    pair: _Pair,
    plan: dict[Path, dict[str, TensorHead]],
    mender: Mender,
    work: Path,
    progress: bool,
) -> None:
    import torch
    from safetensors import safe_open

    modules = {key: name for name, key in pair.ours.stored.items()}
    total = sum(map(len, plan.values()))
    with ProgressLine("repair", total, "tensor", progress) as shown:
        for path, heads in plan.items():
            with safe_open(path, framework="pt") as file:

                def give(key: str, file: Any = file, heads: Any = heads) -> torch.Tensor:
                    shown.update()
                    name, kind = modules.get(key), _TORCH.get(heads[key].dtype)
                    if name is not None:
                        if kind == "float64":
                            raise CheckpointError(
                                f"{key} is in float64, and float32 is read; save the model in that"
                            )
                        both = pair.ours.read(name), pair.theirs.read(name)
                        stored = getattr(torch, _TORCH[pair.files.tensors[key].dtype])
                        found = mender.mend(name, *both, stored, getattr(torch, str(kind)))
                        return pair.ours.keep(name, found)
                    own: torch.Tensor = file.get_tensor(key)
                    if own.is_floating_point() and not bool(own.isfinite().all()):
                        raise CheckpointError(f"{key} has NaN or infinite values; it is broken")
                    return own if kind is None else own.to(getattr(torch, kind))

                write_shard(work / path.name, heads, give)
    if [path.name for path in plan] != ["model.safetensors"]:
        homes = {name: path.name for path, heads in plan.items() for name in heads}
        write_index(work, homes, sum(map(size_of, plan.values())))


def _copy(files: CheckpointFiles, job: RepairJob, work: Path) -> None:
    """What a checkpoint has beside weights: as it is, but for the dtype in the config."""
    save_tokenizer(None, files, work)
    for name in ("config.json", "generation_config.json"):
        if (files.folder / name).is_file():
            shutil.copyfile(files.folder / name, work / name)
    if job.dtype != "auto":
        path, long = work / "config.json", {"fp32": "float32", "bf16": "bfloat16"}[job.dtype]
        config = dict(json.loads(path.read_bytes()))
        named = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
        config |= dict.fromkeys(named, long)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(work / "unpacked", ignore_errors=True)


def _record(pair: _Pair, job: RepairJob, totals: Totals) -> str:
    """What stands in ``unlearning.json``: the model's own record, and how it was mended since."""
    made = RepairRecord(
        strategy=job.strategy,
        strength=job.strength,
        precisions=tuple(spec.name for spec in job.precisions),
        model=pair.facts[0],
        target=pair.facts[1],
        dtype=job.dtype,
        moved=totals.moved,
        weights=totals.weights,
        unlearnbench=__version__,
        git_hash=git_hash(),
        source_sha256=source_sha256(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    found = _read(find_checkpoint(job.model, job.load, job.load.revision).folder / FILE)
    record: Training | Repaired = Repaired(repairs=(made,))
    if found is not None:
        record = found.model_copy(update={"repairs": (*found.repairs, made)})
    facts = record.model_dump(mode="json", exclude_none=True)
    return json.dumps(facts, indent=1, allow_nan=False) + "\n"
