"""Several models of one shape that answer as one, also while they generate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class JoinedModel(PreTrainedModel, GenerationMixin):
    """Its logits a rule makes of those of several; their caches are kept beside the first's."""

    main_input_name = "input_ids"
    # Attention is the models' own affair; the config names whatever they use.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self, models: Sequence[Any], combine: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    ) -> None:
        super().__init__(models[0].config)
        self.models, self._combine = torch.nn.ModuleList(models), combine
        self._cache: Any = None  # the first model's, and the others' beside it
        self._others: list[Any] = []
        self.train(False)

    @property
    def _first(self) -> Any:
        return self.models[0]

    @property
    def device(self) -> torch.device:
        return self._first.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype  # type: ignore[no-any-return]

    def get_input_embeddings(self) -> Any:
        return self._first.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self._first.get_output_embeddings()

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
        """Run all; the names are transformers' own."""
        cached = bool(use_cache) and past_key_values is not None
        caches: list[Any] = [None] * len(self.models)
        if cached and self._cache is not past_key_values:
            self._cache = past_key_values
            self._others = [DynamicCache(config=self.config) for _ in self.models[1:]]
        if cached:
            caches = [past_key_values, *self._others]
        logits = [
            model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past,
                use_cache=cached,
                logits_to_keep=logits_to_keep,
            ).logits
            for model, past in zip(self.models, caches, strict=True)
        ]
        joined: Any = self._combine(logits)
        return CausalLMOutputWithPast(
            logits=joined, past_key_values=past_key_values if cached else None
        )
