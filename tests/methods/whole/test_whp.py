"""WHP's logits and the labels made from them."""

from __future__ import annotations

import numpy as np
import torch

from unlearnbench.methods.rows import IGNORED
from unlearnbench.methods.whole.whp import combine, generic_logits
from unlearnbench.methods.whole.whp_ft import generic_labels


def test_whp_holds_back_what_the_reinforced_model_prefers() -> None:
    rng = np.random.default_rng(0)
    baseline, reinforced = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    expected = [
        [b - 1.5 * max(r - b, 0.0) for b, r in zip(*pair, strict=True)]
        for pair in zip(baseline, reinforced, strict=True)
    ]
    found = generic_logits(torch.tensor(baseline), torch.tensor(reinforced), 1.5)
    assert np.abs(found.numpy() - np.array(expected)).max() < 1e-12
    logits = [torch.tensor(baseline), torch.tensor(reinforced)]
    assert torch.equal(combine(logits, {"alpha": 1.5}), found), "what the output folder's two say"


def test_generic_labels_are_predictions_one_position_earlier() -> None:
    rng = np.random.default_rng(0)
    baseline, reinforced = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4, 6))
    labels = torch.tensor([[0, 1, 2, 3], [IGNORED, IGNORED, 5, IGNORED]])
    found = generic_labels(torch.tensor(baseline), torch.tensor(reinforced), labels, 2.0)
    generic = baseline - 2.0 * np.maximum(reinforced - baseline, 0)
    best = generic.argmax(axis=-1)
    assert found.tolist() == [
        [0, *best[0, :3].tolist()],
        [IGNORED, IGNORED, int(best[1, 1]), IGNORED],
    ]
