"""Relearning on the demo's models, three seeds: what GA_GDR hides comes back in a few steps, and
the retrained model, which never knew, is not taught it by them.

``UNLEARNBENCH_DEMOS=DIR`` takes finished demos, ``DIR/seed0`` to ``seed2``; else they are made.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.demo.finished import finished_demo
from unlearnbench import evaluate
from unlearnbench.recovery.compare import compare, open_comparison
from unlearnbench.runs.folder import model_folder_name

RATE = 1e-4  # of so small a model; that of a large one moves nothing in so few steps
STEPS = 20


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_hidden_comes_back_and_what_is_not_known_does_not(
    seed: int, tmp_path: Path
) -> None:
    demo = finished_demo(seed, ("ga_gdr",), tmp_path)
    folders = {}
    for name in ("ga_gdr", "retrained", "target"):
        results = evaluate(
            demo.model(name),
            "demo_knowmem_f,demo_knowmem_r",
            f"none,relearn-{STEPS}",
            relearn_lr=RATE,
            dtype="fp32",
            answer_blank="prompt",
            output=tmp_path / "runs",
        )
        folders[name] = tmp_path / "runs" / model_folder_name(results[0].checkpoint)
    opened = open_comparison([folders["ga_gdr"]], folders["target"], folders["retrained"])
    (row,) = (each for each in compare(opened) if each.task == "demo_knowmem_f")
    print(row)
    assert row.verdict == "recovers"
    assert row.recovered is not None
    assert row.recovered >= 0.2
    assert row.net_ci is not None
    assert row.net_ci[0] > 0
    assert row.taught is not None
    assert row.taught < row.change / 4
