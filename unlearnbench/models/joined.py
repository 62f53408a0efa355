"""Two models that answer as one: Who's Harry Potter's logit difference, also while they generate.

Source: arXiv 2310.02238.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


def generic_logits(baseline: torch.Tensor, reinforced: torch.Tensor, alpha: float) -> torch.Tensor:
    """v_b - alpha relu(v_r - v_b), element by element; both of one shape."""
    return baseline - alpha * (reinforced - baseline).relu()


class JoinedModel(PreTrainedModel, GenerationMixin):
    """A model whose logits are v_b - alpha relu(v_r - v_b) of two models of one shape. The second
    model's cache is kept beside the first's.
    """

    main_input_name = "input_ids"
    # Attention is the two models' own affair; the config names whatever they use.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, baseline: Any, reinforced: Any, alpha: float) -> None:
        super().__init__(baseline.config)
        self.baseline, self.reinforced, self.alpha = baseline, reinforced, alpha
        self._beside: tuple[Any, Any] = (None, None)
        self.train(False)

    @property
    def device(self) -> torch.device:
        """Where the baseline is."""
        found: torch.device = self.baseline.device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """What the baseline computes in."""
        found: torch.dtype = self.baseline.dtype
        return found

    def get_input_embeddings(self) -> Any:
        """The baseline's."""
        return self.baseline.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The baseline's."""
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
        """Run both; the names are transformers' own."""
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
        joined: Any = generic_logits(logits[0], logits[1], self.alpha)
        return CausalLMOutputWithPast(
            logits=joined, past_key_values=past_key_values if cached else None
        )

    def _second(self, first: Any) -> Any:
        if self._beside[0] is not first:
            self._beside = (first, DynamicCache(config=self.config))
        return self._beside[1]
