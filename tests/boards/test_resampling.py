"""Ranges of ranks and mean shares, against loops over the samples of the entries' files."""

from __future__ import annotations

import csv
import io
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.boards.conftest import BOARD
from tests.boards.test_verify import read
from unlearnbench.boards import read_board, resampling
from unlearnbench.boards.entry import EntryRun, read_entry
from unlearnbench.boards.page import page
from unlearnbench.boards.ranking import Place, Ranking, rank_entries
from unlearnbench.boards.resampling import RankRange, mean_shares, rank_ranges
from unlearnbench.boards.tables import csv_text, markdown
from unlearnbench.metrics.intervals import Estimate, Values, draw
from unlearnbench.recovery.compare import Comparison

RANKED = ("sure", "npo", "ga_gdr")
AT = ("none", "rtn-int8", "rtn-int4")
RESAMPLES = 60


def ranking(board: Path) -> Ranking:
    found = read_board(board)
    return rank_entries(found, [read_entry(path) for path in sorted(found.entries.iterdir())])


@cache
def records(board: Path, name: str, precision: str, task: str) -> list[dict[str, Any]]:
    content = read(board / "entries" / f"{name}.json")
    (part,) = (p for p in content["runs"] if p["run"]["condition"]["name"] == precision)
    found: list[dict[str, Any]] = part["samples"][task]
    return found


def changed(made_board: Path, folder: Path, old: str, new: str) -> Path:
    """The board with another line in its definition."""
    board: Path = shutil.copytree(made_board, folder / "made")
    assert old in BOARD
    (board / "board.yaml").write_text(BOARD.replace(old, new), encoding="utf-8")
    return board


def scores(board: Path, name: str, precision: str) -> list[float]:
    return [r["score"] for r in records(board, name, precision, "made_knowmem_f")]


def attack(board: Path, name: str, precision: str, split: str) -> list[float]:
    found = records(board, name, precision, "made_privleak")
    return [r["scores"]["Min-40%"] for r in found if r["split"] == split]


def rows_of(counts: np.ndarray) -> list[int]:
    return [row for row, times in enumerate(counts) for _ in range(times)]


def auc_by_loops(forget: list[float], holdout: list[float]) -> float:
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in forget for b in holdout]
    return sum(won) / len(won)


def test_the_range_of_ranks_by_loops(
    made_board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "RESAMPLES", RESAMPLES)
    ranked_by = "ranking: [made_knowmem_f, made_privleak]"
    board = changed(made_board, tmp_path, "ranking: [made_knowmem_f]", ranked_by)
    places = {place.entry.name: place for place in ranking(board).places}
    n = len(scores(board, "retrained", "none"))
    even = np.full(n, 1 / n)
    questions = np.random.default_rng([0, 0]).multinomial(n, even, RESAMPLES)
    rng = np.random.default_rng([0, 1])
    forget, holdout = (rng.multinomial(n, even, RESAMPLES) for _ in range(2))
    ranks: dict[str, list[int]] = {name: [] for name in RANKED}
    for b in range(RESAMPLES):
        asked, low, high = (rows_of(counts[b]) for counts in (questions, forget, holdout))
        assert len(asked) == len(low) == len(high) == n

        def mean(name: str, at: str, asked: list[int] = asked) -> float:
            own = scores(board, name, at)
            return 100 * sum(own[i] for i in asked) / n

        def leak(name: str, at: str, low: list[int] = low, high: list[int] = high) -> float:
            members, others = (attack(board, name, at, s) for s in ("forget", "holdout"))
            return auc_by_loops([members[i] for i in low], [others[i] for i in high])

        worst = dict[str, float]()
        for name in RANKED:
            above = [mean(name, at) - mean("retrained", "none") for at in AT]
            away = [abs(100 * (leak(name, at) / leak("retrained", "none") - 1)) for at in AT]
            worst[name] = round(max(above + away), 9)
        for name in RANKED:
            ranks[name].append(1 + sum(other < worst[name] for other in worst.values()))
    assert len({tuple(found) for found in ranks.values()}) > 1
    for name, found in ranks.items():
        place, ordered = places[name], sorted(found)
        # Of 60, the first with 2.5% at or below it is the second, with 97.5% the 59th.
        low_rank, high_rank = ordered[1], ordered[58]
        assert place.rank is not None
        assert place.ranks == (min(place.rank, low_rank), max(place.rank, high_rank))
        assert place.first == found.count(1) / RESAMPLES
    assert places["broken"].ranks is None
    assert places["broken"].first is None


class Made:
    """A comparison of scores that a test draws: what ``rank_ranges`` asks one for."""

    def __init__(self, want: str, retrained: np.ndarray, bounds: tuple[float, float]) -> None:
        full = SimpleNamespace(values=retrained, task=lambda _: SimpleNamespace(want=want))
        self.retrained, self.bounds = SimpleNamespace(full=full), bounds

    def base(self, _: object) -> Any:
        return self.retrained.full

    def scores(self, run: Any, _: str) -> Values:
        return Values(run.values, self.bounds)

    def models(self, entry: Any, precision: int, _: str) -> list[Values]:
        return [Values(each[precision], self.bounds) for each in entry.trainings]

    def ranges(self, *entries: np.ndarray) -> list[RankRange] | None:
        """``entries``: shape (precisions, ...)."""
        return self.of_trainings(*([entry] for entry in entries))

    def of_trainings(self, *entries: list[np.ndarray]) -> list[RankRange] | None:
        made = [SimpleNamespace(trainings=trainings) for trainings in entries]
        return rank_ranges(self, made, ["t"], range(len(entries[0][0])))  # type: ignore[arg-type]


def generated(rng: np.random.Generator, knows: float, n: int = 50) -> np.ndarray:
    """Points of ``n`` questions at three precisions, which mostly agree."""
    u = np.where(rng.random((3, n)) < 0.7, rng.random(n), rng.random((3, n)))
    return np.asarray(100.0 * (u < knows))


def test_equal_entries_are_first_about_equally_often() -> None:
    rng, firsts, whole = np.random.default_rng(5), [], 0
    for _ in range(60):
        made = Made("low", generated(rng, 0.1)[0], (0, 100))
        found = made.ranges(*(generated(rng, 0.3) for _ in range(4)))
        assert found is not None
        firsts.append([entry.first for entry in found])
        whole += sum(entry.ranks[1] - entry.ranks[0] >= 2 for entry in found)
    # Each is first in a quarter of all, or a little more: those of one excess are first together.
    means = np.mean(firsts, axis=0)
    assert means == pytest.approx([0.27] * 4, abs=0.06), means
    assert whole > 0.8 * 4 * 60, "the data do not tell equal entries apart"


@pytest.mark.parametrize("want", ["low", "zero"])
def test_a_clearly_better_entry_is_first_for_certain(want: str) -> None:
    rng = np.random.default_rng(6)
    if want == "low":
        made = Made(want, generated(rng, 0.1)[0], (0, 100))
        entries = [generated(rng, share) for share in (0.8, 0.15, 0.75)]
    else:
        pairs = [rng.random((3, 20, 20)) < auc for auc in (0.1, 0.5, 0.95)]
        made = Made(want, (rng.random((20, 20)) < 0.5).astype(float), (0, 1))
        entries = [pair.astype(float) for pair in pairs]
    found = made.ranges(*entries)
    assert found is not None
    assert found[1] == RankRange((1, 1), 1.0)
    assert [entry.first for entry in found] == [0.0, 1.0, 0.0]


def test_a_lucky_training_among_several_leaves_the_rank_open() -> None:
    rng = np.random.default_rng(8)
    made, sure = Made("low", generated(rng, 0.1)[0], (0, 100)), np.full((3, 50), 50.0)
    one = made.ranges(np.full((3, 50), 40.0), sure)
    both = made.of_trainings([np.full((3, 50), 25.0), np.full((3, 50), 55.0)], [sure])
    assert one is not None
    assert both is not None
    assert one[0] == RankRange((1, 1), 1.0)
    assert both[0].ranks == (1, 2)
    assert both[0].first == pytest.approx(0.75, abs=0.04), "of four draws of two, one has none"


def test_the_same_scores_under_two_names_share_every_rank() -> None:
    rng = np.random.default_rng(7)
    made, one = Made("low", generated(rng, 0.1)[0], (0, 100)), generated(rng, 0.3)
    found = made.ranges(one, one.copy(), one - 200.0)
    assert found == [RankRange((2, 2), 0.0), RankRange((2, 2), 0.0), RankRange((1, 1), 1.0)]


def test_no_range_where_a_resample_has_no_privleak() -> None:
    wins = np.zeros((4, 4))
    wins[0] = 1.0  # a single forget text that is not recognised
    assert Made("zero", wins, (0, 1)).ranges(wins[None], wins[None] * 0) is None
    place = Place("a", (), "ranked", {}, rank=2)
    assert place.position == "2 (not known)"


def test_mean_shares_by_hand(made_board: Path) -> None:
    found = ranking(made_board)
    assert found.cells == (3, 3)
    zero = np.mean(scores(made_board, "retrained", "none"))
    for at in AT:
        target = np.mean(scores(made_board, "target", at))
        ours = [np.mean(scores(made_board, name, at)) for name in RANKED]
        shares = found.shares[at]
        assert shares.retained.value == pytest.approx(np.mean([x / target for x in ours]))
        above = [(x - zero) / (target - zero) for x in ours]
        assert shares.above.value == pytest.approx(np.mean(above))
        for figure in (shares.retained, shares.above):
            assert figure.ci is not None
            assert figure.ci[0] < figure.value < figure.ci[1]
        assert (shares.retrained is not None) is (at == "none")
    own = found.shares["none"].retrained
    assert own is not None
    assert own.value == pytest.approx(zero / np.mean(scores(made_board, "target", "none")))


def test_a_task_that_a_condition_leaves_unchanged_counts_nowhere_there(
    made_board: Path, tmp_path: Path
) -> None:
    board = read_board(changed(made_board, tmp_path, "rtn-int8", "prefix-1"))
    at = ("made_knowmem_f", "prefix-1")

    def asked(part: EntryRun, unchanged: bool) -> EntryRun:
        """As a run at prefix-1."""
        run = part.run
        condition = run.condition.model_copy(update={"name": at[1]})
        task = run.tasks[at[0]].model_copy(update={"unchanged": unchanged or None})
        update = {"condition": condition, "tasks": run.tasks | {at[0]: task}}
        return part.model_copy(update={"run": run.model_copy(update=update)})

    def ranked(unchanged: bool) -> Ranking:
        found = []
        for path in sorted(board.entries.iterdir()):
            entry = read_entry(path)
            runs = {part.run.condition.name: part for part in entry.runs}
            runs["rtn-int8"] = asked(runs.get("rtn-int8", runs["none"]), unchanged)
            found.append(entry.model_copy(update={"runs": tuple(runs.values())}))
        return rank_entries(board, found)

    before, after = ranked(unchanged=False), ranked(unchanged=True)
    for old, new in zip(before.shown, after.shown, strict=True):
        assert (set(old.rows) - set(new.rows)) == ({at} if old.rows else set())
        assert at in old.standings
        assert at not in new.standings
    counts = [int(each.held.split()[1]) for each in (before, after)]
    assert counts[0] - counts[1] == len(after.places)
    assert (before.cells, after.cells) == ((3, 3), (0, 3))
    assert after.shares == {}
    rows = csv.DictReader(io.StringIO(csv_text(after)))
    assert at not in {(row["task"], row["precision"]) for row in rows}
    assert at[1] in page(after)
    assert at[1] in markdown(after)


def test_the_target_is_1_and_the_retrained_model_0_above_the_retrained(made_board: Path) -> None:
    board = read_board(made_board)
    entries = {e.role: e.loaded() for e in map(read_entry, board.entries.iterdir())}
    comparison = Comparison([], entries["target"], entries["retrained"])
    for entry, share in ((comparison.target, 1.0), (comparison.retrained, 0.0)):
        above = mean_shares(comparison, [entry], ["made_knowmem_f"], "none").above
        assert above == Estimate(share, (share, share))


def test_a_share_of_what_may_be_nothing_has_no_interval(
    made_board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = read_board(made_board)
    entries = {e.role: e.loaded() for e in map(read_entry, board.entries.iterdir())}
    comparison = Comparison([], entries["target"], entries["retrained"])
    base = Values(np.array([0.0, 0, 100] + [0] * 17), (0.0, 100.0))
    for knows, bounded in ((2, False), (19, True)):
        target = Values(np.array([100.0] * knows + [0.0] * (20 - knows)), (0.0, 100.0))
        columns = {id(entries["target"].full): target}
        monkeypatch.setattr(
            Comparison, "scores", lambda _, run, task, of=columns: of.get(id(run), base)
        )
        monkeypatch.setattr(Comparison, "models", lambda *_, ours=target: [ours])
        zero = SimpleNamespace(draws=draw(20, 1))
        monkeypatch.setattr(Comparison, "scale", lambda *_, zero=zero: zero)
        found = mean_shares(comparison, [entries["target"]], ["made_knowmem_f"], "none").above
        assert found.value == 1
        assert (found.ci is not None) is bounded


@pytest.mark.parametrize(
    ("floor", "name", "said", "certain"),
    [
        (0.5, "sure", "1 (", "true"),
        (0.5, "broken", "collapsed |", "true"),
        (0.15, "broken", "collapsed (not certain) |", "false"),
        (0.75, "sure", ", may be below the floor |", "false"),
    ],
)
def test_where_the_floor_lies_in_the_utilitys_interval(
    made_board: Path, tmp_path: Path, floor: float, name: str, said: str, certain: str
) -> None:
    new = f"utility_floor: {floor}"
    found = ranking(changed(made_board, tmp_path, "utility_floor: 0.5", new))
    (place,) = (p for p in found.places if p.entry.name == name)
    assert place.utility is not None
    assert place.utility.ci is not None
    holds = place.utility.ci[0] < floor <= place.utility.ci[1]
    assert (certain == "false") is holds
    rows = csv.DictReader(io.StringIO(csv_text(found)))
    assert {row["state_certain"] for row in rows if row["entry"] == name} == {certain}
    (line,) = (x for x in markdown(found).splitlines() if f"| {name} |" in x)
    assert said in line
    unsure = ("not certain", "may be below")
    assert any(words in line for words in unsure) is (certain == "false")
    shown = page(found)
    assert place.position in shown
    assert place.utility_said in shown
