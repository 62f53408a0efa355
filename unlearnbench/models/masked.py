"""``--mask-pad-id``: the mask of open-unlearning, which hides an id wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unlearnbench.errors import ModelOutputError


def hidden(
    masked: int, ids: torch.Tensor, mask: torch.Tensor, rows: Sequence[list[int]]
) -> torch.Tensor:
    """The mask without the id ``masked``; ModelOutputError where a row begins with it."""
    if any(row[0] == masked for row in rows):
        raise ModelOutputError(
            f"--mask-pad-id: a text begins with the padding token, id {masked}, so that nothing "
            "would be left for it to see; leave the option out"
        )
    return mask & (ids != masked)
