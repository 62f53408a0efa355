"""WHP's logits and the labels made from them."""

from __future__ import annotations

import numpy as np
import torch

from unlearnbench.methods.rows import IGNORED, Example, Translation
from unlearnbench.methods.whole.whp import combine, generic_logits
from unlearnbench.methods.whole.whp_ft import WhpFtOptions, anchored_labels, generic_labels


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


def test_labels_of_a_text_with_a_translation() -> None:
    """Against a loop in double precision: where a position has none, inside a name, and where a
    name comes again, nothing is learned; a stand-in whose name has stood before is lower.
    """
    rng = np.random.default_rng(0)
    baseline, reinforced = rng.normal(size=(5, 8)), rng.normal(size=(6, 8))
    at, repeated = (0, None, 2, 4, 3, 1), (False, False, False, False, True, False)
    example = Example(
        tuple(range(6)),
        (0, 1, 2, IGNORED, 4, 5),
        translation=Translation((9,) * 5, at, repeated, ((5, 3),)),
    )
    baseline[3, 3] = 9.0
    for penalty, alpha in ((0.0, 2.0), (20.0, 2.0), (0.0, 0.0)):
        found = anchored_labels(
            torch.tensor(baseline), torch.tensor(reinforced), example, WhpFtOptions(alpha, penalty)
        )
        expected = [0] + [IGNORED] * 5
        for position in (1, 5):
            place = at[position - 1]
            assert place is not None
            v = baseline[place] - alpha * np.maximum(reinforced[position - 1] - baseline[place], 0)
            v[3] -= penalty * (position >= 5)
            expected[position] = int(v.argmax())
        assert list(found) == expected
        assert (found[5] == 3) == (penalty == 0.0)


def test_a_text_that_is_its_own_translation_has_the_labels_without_anchors() -> None:
    rng = np.random.default_rng(1)
    baseline, reinforced = (torch.tensor(rng.normal(size=(1, 30, 6))) for _ in range(2))
    labels = torch.tensor([[IGNORED, IGNORED, *range(2, 30)]])
    ids = tuple(range(30))
    own = Translation(ids, ids, (False,) * 30, ())
    example = Example(ids, tuple(labels[0].tolist()), translation=own)
    found = anchored_labels(baseline[0], reinforced[0], example, WhpFtOptions(3.0))
    assert list(found) == generic_labels(baseline, reinforced, labels, 3.0)[0].tolist()
