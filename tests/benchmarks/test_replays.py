"""What an early check asks of the board's checkpoints: the table of docs/check.md, and what harder
policies take.
"""

from __future__ import annotations

import statistics

import pytest

from tests.benchmarks.replays import replay
from tests.recovery.test_early import BOARD, STRICT
from unlearnbench.boards.entry import read_board
from unlearnbench.boards.verify import sound_entries
from unlearnbench.recovery.compare import Comparison

pytestmark = pytest.mark.bench

LAX = {"max_recovered": 0.3, "max_excess": 15.0, "max_privleak": 60.0, "min_utility": 0.5}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("three conditions", {}),
        ("seven conditions", {"precisions": read_board(BOARD).rules.precisions}),
        ("laxer", LAX),
        ("knowledge alone", LAX | {"max_recovered": None, "max_privleak": None}),
    ],
)
def test_share_of_samples(name: str, changes: dict[str, object]) -> None:
    policy = STRICT.model_copy(update=changes)
    entries = {entry.name: entry.loaded() for entry in sound_entries(read_board(BOARD))}
    found = []
    for entry in entries.values():
        comparison = Comparison([entry], entries["target"], entries["retrained"])
        found += [replay(comparison, entry, policy, seed) for seed in range(3)]
    share = statistics.median(each.share for each in found)
    alike = sum(each.early == each.whole for each in found)
    loads = sorted(each.loads for each in found)
    print(
        f"\n{name}: a median of {share:.0%} of the samples, models loaded {loads[0]} to "
        f"{loads[-1]} times, outcomes as with all samples {alike} of {len(found)}"
    )
