"""Two checkpoints in one folder that answer together: WHP's logit difference.

``whp.json`` beside the folders ``baseline`` and ``reinforced``; both load at the same precision.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import PAIR_FILE, PARTS, read_json
from unlearnbench.checkpoints.folder import check_folder
from unlearnbench.checkpoints.source import LoadOptions, open_source
from unlearnbench.errors import CheckpointError, OptionError
from unlearnbench.util.files import content_sha256

if TYPE_CHECKING:
    import torch

    from unlearnbench.conditions.base import How, PrecisionSpec
    from unlearnbench.models.hf import HFModel
    from unlearnbench.results import Condition, Proof

# How two proofs become one, by field.
_COUNTED = ("module_types", "covered_modules", "uncovered", "weights_by_dtype")
_SUMMED = ("covered_weights", "total_weights", "weight_bytes", "compared_modules")
_AVERAGED = ("changed_share", "mean_relative_error")
_LARGEST = ("relative_error", "max_relative_error", "codes")


def is_pair(model: str) -> bool:
    """Whether ``model`` names a folder of two checkpoints."""
    try:
        return (Path(model).expanduser() / PAIR_FILE).is_file()
    except (OSError, RuntimeError, ValueError):
        return False


class PairSource:
    """As ``Source``, for two checkpoints of one shape and one tokenizer.

    Raises:
        CheckpointError: the folder is damaged, or the two do not fit together.
        OptionError: an option for another kind of checkpoint.
    """

    def __init__(self, model: str, options: LoadOptions, keep: bool = True) -> None:
        if options.base is not None or options.revision is not None:
            raise OptionError(
                f"{model} holds two local checkpoints; leave --base and --revision out"
            )
        folder = Path(model).expanduser()
        check_folder(folder)
        self.alpha = _alpha(folder)
        self.baseline, self.reinforced = (
            open_source(str(folder / part), options, keep) for part in PARTS
        )
        first, second = self.baseline.checkpoint, self.reinforced.checkpoint
        for what in ("tokenizer_sha256", "config_sha256"):
            if getattr(first, what) != getattr(second, what):
                raise CheckpointError(
                    f"{model}: its two checkpoints differ in {what.removesuffix('_sha256')}; their "
                    "logits cannot be combined"
                )
        facts = [first.weights_sha256, second.weights_sha256, self.alpha]
        self.checkpoint = first.model_copy(
            update={"path": model, "weights_sha256": content_sha256(facts)}
        )
        self.config, self.tokenizer = self.baseline.config, self.baseline.tokenizer
        self.known_ids = self.baseline.known_ids
        # One config for both, so what it says of packed weights holds for both.
        self.files, self.stored = self.baseline.files, self.baseline.stored

    @property
    def own_dtype(self) -> str:
        """The baseline's."""
        return self.baseline.own_dtype

    @property
    def truncate_left(self) -> bool:
        """The baseline's."""
        return self.baseline.truncate_left

    def require_precision(self, spec: PrecisionSpec) -> None:
        """Refuse to quantize a second time. Raises: as ``Source.require_precision``."""
        self.baseline.require_precision(spec)

    def release(self) -> None:
        """Drop both models' weights unless they are kept."""
        self.baseline.release()
        self.reinforced.release()


def _alpha(folder: Path) -> float:
    content = read_json(folder / PAIR_FILE)
    alpha = content.get("alpha")
    if content.get("format_version") != 1 or set(content) != {"format_version", "alpha"}:
        raise CheckpointError(f"{folder / PAIR_FILE} is of an unknown format")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise CheckpointError(f"{folder / PAIR_FILE}: alpha is no finite number")
    if alpha < 0:
        raise CheckpointError(f"{folder / PAIR_FILE}: alpha {alpha:g} is negative")
    return float(alpha)


def load_pair(source: PairSource, spec: PrecisionSpec, how: How, batch_size: int | None) -> HFModel:
    """Load both at ``spec``, each with its proof, and join them.

    Raises: as ``loading.load_model``.
    """
    from unlearnbench.conditions.load import load_model
    from unlearnbench.models.hf import HFModel

    first, second = (
        load_model(part, spec, how, batch_size) for part in (source.baseline, source.reinforced)
    )
    joined: Any = join_models(first._model, second._model, source.alpha)
    condition = _both(first.condition, second.condition)
    given: Any = source
    return HFModel(joined, given, condition, first.dtype, how.device, batch_size)


def _both(first: Condition, second: Condition) -> Condition:
    if first.proof is None or second.proof is None:
        return first
    return first.model_copy(update={"proof": _sum(first.proof, second.proof)})


def _sum(first: Proof, second: Proof) -> Proof:
    """One proof for two models: counts add up, and the larger error and most codes count."""

    def added(name: str) -> dict[str, int]:
        a, b = getattr(first, name), getattr(second, name)
        return {key: a.get(key, 0) + b.get(key, 0) for key in sorted({*a, *b})}

    def among(name: str) -> list[Any]:
        return [v for v in (getattr(first, name), getattr(second, name)) if v is not None]

    update: dict[str, object] = {name: added(name) for name in _COUNTED}
    update |= {name: sum(among(name)) for name in _SUMMED}
    # Both halves have one shape, so as many weights and modules of each were compared.
    update |= {name: fmean(among(name)) for name in _AVERAGED if among(name)}
    update |= {name: max(among(name), default=None) for name in _LARGEST}
    update["on_grid"] = first.on_grid and second.on_grid
    worst = max(
        zip(PARTS, (first, second), strict=True), key=lambda p: p[1].max_relative_error or 0
    )
    if worst[1].max_error_module is not None:
        update["max_error_module"] = f"{worst[0]}: {worst[1].max_error_module}"
    return first.model_copy(update=update)


def join_models(baseline: Any, reinforced: Any, alpha: float) -> Any:
    """A model whose logits are v_b - alpha relu(v_r - v_b) of the two, also while it generates.

    Source: arXiv 2310.02238.
    """
    from transformers import DynamicCache, GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast

    from unlearnbench.methods.whp import generic_logits

    class Joined(PreTrainedModel, GenerationMixin):
        """Keeps the second model's cache beside the first's."""

        config_class = type(baseline.config)
        main_input_name = "input_ids"
        # Attention is the two models' own affair; the config names whatever they use.
        _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
        _supports_attention_backend = True

        def __init__(self) -> None:
            super().__init__(baseline.config)
            self.baseline, self.reinforced = baseline, reinforced
            self._beside: tuple[Any, Any] = (None, None)

        @property
        def device(self) -> torch.device:
            found: torch.device = self.baseline.device
            return found

        @property
        def dtype(self) -> torch.dtype:
            found: torch.dtype = self.baseline.dtype
            return found

        def get_input_embeddings(self) -> Any:
            return self.baseline.get_input_embeddings()

        def get_output_embeddings(self) -> Any:
            return self.baseline.get_output_embeddings()

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
            position_ids: torch.Tensor | None = None,
            past_key_values: Any = None,
            use_cache: bool | None = None,
            logits_to_keep: int = 0,
            return_dict: bool = True,
        ) -> CausalLMOutputWithPast:
            cached = bool(use_cache) and past_key_values is not None
            logits = []
            for model, past in (
                (self.baseline, past_key_values if cached else None),
                (self.reinforced, self._second(past_key_values) if cached else None),
            ):
                output = model(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    past_key_values=past,
                    use_cache=cached,
                    logits_to_keep=logits_to_keep,
                )
                logits.append(output.logits)
            joined: Any = generic_logits(logits[0], logits[1], alpha)
            return CausalLMOutputWithPast(
                logits=joined, past_key_values=past_key_values if cached else None
            )

        def _second(self, first: Any) -> Any:
            if self._beside[0] is not first:
                self._beside = (first, DynamicCache(config=self.config))
            return self._beside[1]

    joined: Any = Joined()
    return joined.eval()


def write_pair(folder: Path, alpha: float) -> None:
    """Mark a folder that holds both parts as a pair."""
    content = json.dumps({"format_version": 1, "alpha": alpha})
    (folder / PAIR_FILE).write_text(content + "\n", encoding="utf-8")
