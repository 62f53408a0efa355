"""Our models as lm-eval's: the loaded network and its tokenizer in lm-eval's own adapter for
transformers, so that full-precision scores are those of its ``hf`` model.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from unlearnbench.errors import ModelOutputError, OptionError, one_line
from unlearnbench.tasks.chat import require_no_thought, template_arguments

log = logging.getLogger("unlearnbench")

if TYPE_CHECKING:
    import torch

    from unlearnbench.models.hf import HFModel


class LoadedLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """A model that is loaded, quantized and proven already. Unlike ``hf``, it refuses logits that
    are not finite: their argmax is some token, and a broken model would score as one that forgot.

    batch_size: a number, or ``auto`` for lm-eval's own search, which needs a GPU to be of use.
    chat: what a chat template is told, by its own names. How texts become tokens is the model's.
    """

    def __init__(
        self,
        model: HFModel,
        batch_size: int | str = 1,
        progress: bool = True,
        chat: Mapping[str, object] | None = None,
        **options: Any,
    ) -> None:
        model.quicken()
        # lm-eval's own bars, which would fill a log.
        self._ours, self._progress = model, progress and sys.stderr.isatty()
        # A copy: lm-eval gives the tokenizer a pad token and turns its padding side.
        self._told = told = {"enable_thinking": False, **(chat or {})}
        super().__init__(
            pretrained=model.network,
            tokenizer=copy.deepcopy(model.tokenizer),
            batch_size=batch_size,
            add_bos_token=model.options.add_bos_token,
            max_length=model.options.max_length,
            think_end_token=model.tokens.thought_end,
            enable_thinking=bool(told["enable_thinking"]),
            chat_template_args=told,
            **options,
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """See lm-eval's ``LM``. CheckpointError where the answer would begin inside a thought."""
        self.chat_template_args = template_arguments(self.tokenizer, self._told)
        text = super().apply_chat_template(chat_history, add_generation_prompt)
        return require_no_thought(text, bool(self.enable_thinking))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """See lm-eval's ``LM``."""
        return super().loglikelihood(requests, disable_tqdm or not self._progress)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """See lm-eval's ``LM``."""
        return super().loglikelihood_rolling(requests, disable_tqdm or not self._progress)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """See lm-eval's ``LM``."""
        return super().generate_until(requests, disable_tqdm or not self._progress)

    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        logits = super()._model_call(inps, attn_mask, labels)
        self._require_finite(logits)
        return logits

    def _model_generate(
        self, context: Any, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Any:
        from transformers import LogitsProcessorList

        def check(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self._require_finite(scores)
            return scores

        return super()._model_generate(
            context,
            max_length,
            stop,
            logits_processor=LogitsProcessorList([check]),
            **generation_kwargs,
        )

    def _require_finite(self, logits: torch.Tensor) -> None:
        if not bool(logits.isfinite().all()):
            raise ModelOutputError(
                f"lm-eval at {self._ours.condition.name}: the model's logits are NaN or infinite; "
                "no score can be given. Try --dtype fp32; if that fails too, the checkpoint is "
                "broken"
            )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes of the model: ours, with the proof of the precision."""
        checkpoint = self._ours.checkpoint
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self._ours.dtype,
            "model_revision": checkpoint.revision or "",
            "model_sha": checkpoint.weights_sha256,
            "precision": self._ours.condition.model_dump(mode="json", exclude_none=True),
        }


@register_model("unlearnbench")
class UnlearnbenchLM(LoadedLM):
    """``--model unlearnbench`` under ``python -m unlearnbench.lm_eval``: loads a checkpoint at any
    of our precisions. Arguments are those of ``unlearnbench.lm_eval.arguments``.
    """

    def __init__(
        self,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **model_args: Any,
    ) -> None:
        from unlearnbench.lm_eval.arguments import load_from_arguments

        options = {k: model_args.pop(k) for k in _THEIRS if k in model_args}
        chat = dict(model_args.pop("chat_template_args", None) or {})
        if "enable_thinking" in model_args:
            chat["enable_thinking"] = model_args.pop("enable_thinking")
        if device is not None:
            model_args.setdefault("device", _usable(device))
        asked = str(batch_size or 1)
        if not asked.isdigit() and not asked.startswith("auto"):
            raise OptionError(f"batch_size {one_line(asked, 60)}: use auto or a number")
        if not asked.isdigit():
            options["max_batch_size"] = max_batch_size or 64
        rows = int(asked) if asked.isdigit() else asked
        super().__init__(load_from_arguments(model_args), rows, chat=chat, **options)


def _usable(device: str) -> str:
    """``--device``, which lm-eval's command sets to cuda:0 by itself: cpu where there is no GPU."""
    import torch

    if not device.startswith("cuda") or torch.cuda.is_available():
        return device
    log.warning("no GPU here: --device cpu instead of %s", one_line(device, 60))
    return "cpu"


# What lm-eval's adapter itself understands, whatever the model.
_THEIRS = ("logits_cache", "prefix_token_id", "softmax_dtype", "truncation")
