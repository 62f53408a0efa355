"""The model in which a deployed checkpoint's weights are in force, with its proof."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.checkpoint import CheckpointSource
from unlearnbench.checkpoints.load import linear_layers, out_first, text_modules
from unlearnbench.conditions.base import (
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    dtype_name,
    file_of,
    find_condition,
)
from unlearnbench.conditions.elsewhere import gguf
from unlearnbench.conditions.elsewhere.distance import Distance, Grid
from unlearnbench.conditions.elsewhere.files import Deployed, stranger
from unlearnbench.conditions.elsewhere.fit import shape_of
from unlearnbench.conditions.elsewhere.packed import read_modules
from unlearnbench.conditions.proof import Inspection, describe, pattern
from unlearnbench.conditions.quantize import blocks
from unlearnbench.errors import CheckpointError, NotInForceError
from unlearnbench.results import FULL, ON_GRID, Proof

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger("unlearnbench")


@dataclass
class _Meeting:
    """Holds every tensor of the file against the checkpoint's as it comes."""

    one: Deployed
    source: CheckpointSource
    target: CheckpointSource | None
    distance: Distance = field(default_factory=Distance)
    kinds: dict[str, str] = field(default_factory=dict)
    """The type of every tensor, by the model's name for it."""
    folded: bool = False
    """Whether scales of a matrix stand in the layers before it."""

    def meet(
        self,
        name: str,
        now: torch.Tensor,
        grid: Grid | None,
        kind: str,
        own: torch.Tensor | None = None,
    ) -> None:
        """own: the checkpoint's, where it does not lie as it is stored."""
        path, ours = self.one.path, self.source.state_dict().get(name)
        own = ours if own is None else own
        if own is None or own.shape != now.shape:
            there = "none" if own is None else tuple(own.shape)
            raise CheckpointError(
                f"--deployed {path}: {name} has shape {tuple(now.shape)}, and in the model "
                f"{there}; it is no checkpoint of this model"
            )
        if not bool(now.isfinite().all()):
            raise CheckpointError(f"--deployed {path}: {name} has NaN or infinite values")
        self.kinds[name] = kind.lower()
        if grid is None:
            self.distance.plain(name, own, now)
            return
        theirs = None if self.target is None else self.target.state_dict().get(name)
        fits = theirs is not None and theirs.shape == own.shape
        self.distance.quantized(name, own, now, grid, theirs if fits else None)

    def prove(self, model: PreTrainedModel, inspection: Inspection) -> Proof:
        """Raises PrecisionError where the file is of another checkpoint, NotInForceError where no
        linear layer is quantized in it.
        """
        path, layers = self.one.path, linear_layers(self.source.model())
        if not inspection.weights:
            raise NotInForceError(f"{self.one.condition}: {path} quantizes no linear layer")
        left = len(layers.keys() - inspection.weights.keys())
        if left:
            message = "%s: %d of %d linear layers are not quantized there"
            log.warning(message, path, left, len(layers))
        self.distance.require(path, self.source.files.path)
        stored: dict[str, Counter[str]] = {}
        for name, kind in self.kinds.items():
            stored.setdefault(pattern(name), Counter())[kind] += 1
        error = self.distance.relative_error
        facts = describe(model, inspection) | {
            "compared_modules": len(self.kinds),
            "relative_error": error,
            "on_grid": error < ON_GRID,
            "figures": self.distance.figures(),
            "stored": {name: dict(sorted(kinds.items())) for name, kinds in sorted(stored.items())},
        }
        return Proof.model_validate(facts)


def from_gguf(one: Deployed, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Every tensor of the file, unpacked. Raises as ``deployed.load``."""
    assert one.gguf is not None  # noqa: S101 - the caller sees to it
    config = source.config.get_text_config().to_dict()
    names = gguf.require_fit(one.gguf, config, shape_of(source))
    meeting, state = _Meeting(one, source, plan.materials.target), dict[str, Any]()

    def meet(name: str, now: torch.Tensor, grid: Grid | None, kind: str) -> None:
        meeting.meet(name, now, grid, kind)
        state[name] = now

    gguf.read(one.gguf, config, names, meet)
    if source.model().config.tie_word_embeddings and "lm_head.weight" in state:
        raise CheckpointError(
            f"--deployed {one.path} has an output head of its own, and the model's is its "
            "embedding; make the file without output.weight"
        )
    model = source.build(plan.dtype, plan.device, state=state)
    inspection = Inspection()
    for name, layer in text_modules(model).items():
        if f"{name}.weight" not in state:
            continue
        kind = meeting.kinds[f"{name}.weight"].upper()
        now, due = layer.get_parameter("weight"), state[f"{name}.weight"].to(plan.dtype)
        if not bool((now.cpu() == due).all()):
            raise NotInForceError(f"{one.condition}: {name} does not hold the file's weights")
        if kind not in ("F32", "F16", "BF16"):
            block, size = blocks.sizes(kind)
            weight = out_first(layer, now)
            reading = ModuleReading.of(weight, None, weight)
            stored = weight.numel() // block * size
            inspection.add(name, reading._replace(stored_as=kind.lower(), stored_bytes=stored))
    return ModelWithProof(model, meeting.prove(model, inspection))


def from_folder(one: Deployed, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """A folder as transformers loads it, by its own kernels. Raises as ``deployed.load``."""
    assert one.folder is not None  # noqa: S101 - the caller sees to it
    # Its tokenizer was held against the model's, which is asked in its place.
    other = CheckpointSource(one.folder, None, stranger(source.options), keep=False)
    full = find_condition(FULL)
    model, first, _ = file_of(full).load(full, other, plan)
    meeting, inspection = _Meeting(one, source, plan.materials.target), Inspection()
    origin, state = source.model(), source.state_dict()

    def own(name: str) -> torch.Tensor:
        if name in state:  # experts, stacked
            return state[name]
        module = origin.get_submodule(name)
        return out_first(module, module.get_parameter("weight")).detach()

    for name, reading, grid in read_modules(one.scheme, other, model, own):
        inspection.add(name, reading)
        now = reading.weight if reading.own is None else reading.own
        tensor = name if name in state else f"{name}.weight"
        meeting.meet(tensor, now.detach().cpu(), grid, one.scheme.name, own(name))
        meeting.folded |= reading.own is not None
    for name, tensor in model.state_dict().items():
        inside = bool({name, name.rpartition(".")[0]} & inspection.weights.keys())
        if name not in state or (inside and not name.endswith(".bias")):
            continue
        # AWQ's and SmoothQuant's scales stand in norms and biases.
        if not (meeting.folded and tensor.dim() < 2):
            head = other.full.tensors.get(name)
            kind = head.dtype if head is not None else dtype_name(tensor)
            meeting.meet(name, tensor.cpu(), None, kind)
    proof = meeting.prove(model, inspection)
    model.generation_config = origin.generation_config
    return ModelWithProof(model, proof.model_copy(update={"codes": first.codes}))
