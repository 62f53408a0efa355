"""Verdicts on hand-made scores, and how often they are wrong under no effect."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.metrics.test_intervals_coverage import three
from unlearnbench.metrics.intervals import Estimate, Values, draw
from unlearnbench.metrics.membership import auc
from unlearnbench.recovery.statistics import Cell, Scale, generation_scores, leak_scores, measure
from unlearnbench.recovery.verdicts import RecoveryRow, Want, mark_significant

Array = NDArray[np.float64]
N = 100


def noisy(mean: float, n: int = N, seed: int = 0, spread: float = 10.0) -> Array:
    """Scores of exactly that mean, in points."""
    noise = np.random.default_rng(seed).normal(0, spread, n)
    return np.asarray(mean + noise - noise.mean())


def cell(
    full: float | Array,
    quantized: float | Array,
    target: float | Array,
    target_full: float = 90.0,
    n: int = N,
    want: Want = "low",
) -> Cell:
    """A cell of given means, or given scores; the retrained model's mean is 20."""

    def column(scores: float | Array, seed: int) -> Values:
        values = noisy(scores, n, seed) if isinstance(scores, (int, float)) else scores
        return Values(values, (-20.0, 120.0))

    return Cell(
        Scale(want, draw(n, 0)),
        full=[column(full, 1)],
        quantized=[column(quantized, 2)],
        target=column(target, 3),
        target_full=column(target_full, 4),
        retrained=column(20.0, 5),
    )


def row_of(given: Cell, floor: float = 0.5) -> RecoveryRow:
    return measure(given, "e", "t", "q", floor)


def judge(given: Cell, utility: float | None = 1.0) -> str:
    figure = None if utility is None else Estimate(utility)
    return row_of(replace(given, utility=figure)).verdict


def test_figures_are_protocols_formulas() -> None:
    found = row_of(cell(full=10, quantized=50, target=60, target_full=80))
    assert found.full == pytest.approx(10)
    assert found.change == pytest.approx(40)
    assert found.recovered == pytest.approx(40 / 50)
    assert found.retained == pytest.approx(50 / 60)
    assert found.retained_full == pytest.approx(50 / 80)
    assert found.excess == pytest.approx(30)


@pytest.mark.parametrize(
    ("full", "quantized", "target", "target_full", "verdict"),
    [
        (10, 50, 60, 90, "recovers"),
        (10, 10, 60, 90, "forgets"),
        (10, 14, 60, 90, "forgets"),  # it moved, by 8% of the way
        (10, 20.2, 60, 90, "recovers"),  # a little over a fifth, and clear of 0
        (58, 60, 60, 62, "had not forgotten"),
        (10, 12, 14, 90, "target forgets"),
        (5, 12, 15, 100, "target forgets"),  # 10 points of room, and 85 lost by the target alone
        (5, 40, 49.9, 100, "target forgets"),
        (5, 40, 50.1, 100, "recovers"),
        (98, 12, 15, 100, "had not forgotten"),
        (16.6, 34.1, 34.2, 58.4, "recovers"),  # MUSE-News, NPO_KLR's published means
        (10, 0, 60, 90, "forgets"),
    ],
)
def test_verdicts(
    full: float, quantized: float, target: float, target_full: float, verdict: str
) -> None:
    assert judge(cell(full, quantized, target, target_full)) == verdict


def test_collapse_goes_before_every_other_verdict() -> None:
    assert judge(cell(10, 50, 60), utility=0.49) == "collapsed"
    assert judge(cell(10, 50, 60), utility=0.51) == "recovers"
    assert judge(cell(10, 50, 60, want="high"), utility=0.49) == "collapsed"
    assert judge(cell(10, 50, 60, want="high"), utility=0.9) == "holds"
    assert row_of(replace(cell(10, 50, 60), utility=Estimate(0.4)), floor=0.3).verdict == "recovers"


def test_nothing_forgets_for_certain_where_utility_is_not_known() -> None:
    assert judge(cell(10, 10, 60), utility=None) == "forgets (utility not measured)"
    assert judge(cell(10, 50, 60), utility=None) == "recovers", "a broken model recovers nothing"


def test_recovery_needs_a_gap_and_a_share_that_are_clear_of_0() -> None:
    """The points alone say that half of the gap came back; the samples do not."""
    rng = np.random.default_rng(5)
    full, quantized, target = (rng.normal(mean, 30, 40) for mean in (10, 16, 22))
    quantized += full.mean() + 6 - quantized.mean()
    target += full.mean() + 12 - target.mean()
    found = row_of(cell(full, quantized, target, target_full=22, n=40))
    assert found.recovered == pytest.approx(0.5)
    assert found.gap_ci is not None
    assert found.gap_ci[0] < 0
    assert found.verdict == "not decided"


def test_a_change_that_does_not_hold_beside_all_others_is_no_recovery() -> None:
    back = row(0.03).model_copy(update={"verdict": "recovers"})
    assert [r.verdict for r in mark_significant([back])] == ["recovers"]
    marked = mark_significant([back, row(0.9)])
    assert (marked[0].verdict, marked[0].significant) == ("not decided", False)


@pytest.mark.parametrize(("full", "gone"), [(3.2, False), (1.5, True), (-1.0, True)])
def test_privleak_must_have_gone_a_fifth_of_the_way_to_the_retrained_model(
    full: float, gone: bool
) -> None:
    made, aucs = leak_cell(full=full, quantized=4, target=4)
    found = row_of(made)
    want = (aucs["full"] - aucs["target"]) / (aucs["retrained"] - aucs["target"])
    assert found.gone == pytest.approx(want)
    assert (want > 0.2) is gone
    assert found.had_forgotten is gone
    assert (found.recovered is not None) is gone


def test_a_privleak_that_had_gone_too_far_and_comes_back_to_0_is_no_recovery() -> None:
    made, _ = leak_cell(full=-4, quantized=0.1, target=4)
    found = row_of(replace(made, utility=Estimate(1.0)))
    assert found.full > 50
    assert found.recovered is not None
    assert found.recovered > 0.2
    assert found.change_ci is not None
    assert found.change_ci[1] < 0
    assert found.verdict == "not decided"


def test_several_trainings_make_one_row() -> None:
    one, two = cell(10, 50, 60), cell(20, 40, 60)
    both = replace(one, full=[*one.full, *two.full], quantized=[*one.quantized, *two.quantized])
    found, first = row_of(both), row_of(one)
    assert (found.seeds, first.seeds) == (2, 1)
    assert found.full == pytest.approx(15)
    assert found.change == pytest.approx(30)
    assert found.recovered == pytest.approx(30 / 45)
    for name in ("full", "change", "recovered", "excess"):
        wide, narrow = getattr(found, f"{name}_ci"), getattr(first, f"{name}_ci")
        assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0]), "two seeds differ by 10 points"


def test_no_share_where_the_denominator_is_below_5_points() -> None:
    assert row_of(cell(10, 12, 14.99, target_full=25)).recovered is None
    assert row_of(cell(10, 12, 15.01, target_full=25)).recovered is not None


def test_no_share_of_either_kind_where_the_target_keeps_less_than_half_of_its_own_score() -> None:
    less, more = (row_of(cell(5, 12, target, 100)) for target in (49.9, 50.1))
    for name in ("recovered", "recovered_ci", "retained", "retained_ci"):
        assert getattr(less, name) is None
        assert getattr(more, name) is not None
    assert less.retained_full == pytest.approx(0.12), "of what it knew in full precision"
    retain = row_of(cell(5, 12, 15, 100, want="high"))
    assert retain.retained == pytest.approx(12 / 15), "a rule for tasks where low is good"
    share = row_of(leak_cell(full=-2, quantized=0.6, target=0.6)[0]).recovered
    assert share is not None, "PrivLeak's own zero is no score that could be halved"


def test_retain_tasks_have_no_recovered_share() -> None:
    assert row_of(cell(10, 50, 60, want="high")).recovered is None


def test_not_decided_says_how_many_samples_would_settle_it() -> None:
    """A sample of that many times the size, made of the same scores, does settle it."""
    rng = np.random.default_rng(4)
    full, quantized = rng.normal(10, 30, 30), rng.normal(17, 30, 30)
    quantized += 17 - quantized.mean() + full.mean() - 10
    given = cell(full, quantized, 60, n=30)
    row = row_of(given)
    assert row.verdict == "not decided"
    needed = row.samples_needed
    assert needed is not None
    times = math.ceil(1.15 * needed / 30)
    n = 30 * times

    def tiled(part: Values) -> Values:
        return Values(np.tile(part.values, times), part.scale)

    more = Cell(
        Scale("low", draw(n, 0)),
        [tiled(part) for part in given.full],
        [tiled(part) for part in given.quantized],
        tiled(given.target),
        tiled(given.target_full),
        tiled(given.retrained),
    )
    assert row_of(more).verdict != "not decided"


def test_no_number_of_samples_settles_a_single_sample() -> None:
    one = cell(10, 50, 60, n=1)
    assert judge(one) == "not decided"
    assert row_of(one).samples_needed is None


def leak_cell(full: float, quantized: float, target: float) -> tuple[Cell, dict[str, float]]:
    """Forget texts around 0; holdout texts ``gap`` higher, so the forget texts look like members
    where the gap is large.
    """
    rng = np.random.default_rng(0)
    forget, holdout = rng.normal(size=60), rng.normal(size=60)
    gaps = {"full": full, "quantized": quantized, "target": target, "retrained": 0.1}
    pairs = {name: leak_scores(list(forget), list(holdout + gap)) for name, gap in gaps.items()}
    aucs = {name: auc(list(forget), list(holdout + gap)) for name, gap in gaps.items()}
    zero = pairs["retrained"]
    scale = Scale("zero", draw(60, 0, 60), zero)
    goal = pairs["target"]
    return Cell(scale, [pairs["full"]], [pairs["quantized"]], goal, goal, zero), aucs


def test_privleak_that_comes_back_recovers_although_its_number_falls() -> None:
    made, aucs = leak_cell(full=-2, quantized=3, target=4)
    found = row_of(made)
    zero = aucs["retrained"]
    assert found.full == pytest.approx((aucs["full"] - zero) / zero * 100)
    assert found.quantized == pytest.approx((aucs["quantized"] - zero) / zero * 100)
    share = (aucs["quantized"] - aucs["full"]) / (aucs["target"] - aucs["full"])
    assert found.recovered == pytest.approx(share)
    assert found.change < 0
    assert found.verdict == "recovers"
    assert found.p is not None
    assert found.p < 1e-3, "PrivLeak's changes are tested beside the others"


def test_privleak_that_stays_forgets_and_that_never_left_had_not_forgotten() -> None:
    assert judge(leak_cell(full=0, quantized=0.02, target=4)[0]) == "forgets"
    assert judge(leak_cell(full=4, quantized=4, target=4)[0]) == "had not forgotten"


def test_the_retrained_model_itself_has_no_excess_and_no_doubt_about_it() -> None:
    made = cell(20, 20, 60)
    found = row_of(replace(made, quantized=[made.retrained], same_as_retrained=True))
    assert (found.excess, found.excess_ci) == (0.0, (0.0, 0.0))


@pytest.mark.slow
def test_false_recovery_and_false_significance_without_effect() -> None:
    """The quantized model is another draw of the unlearned one: at most 2.5% may "recover"."""
    rng, sets, n = np.random.default_rng(11), 2000, 24
    draws = draw(n, 0)
    wrong = marked = 0
    for _ in range(sets):
        text = 0.7 * rng.normal(size=n)

        def scores(level: float, text: Array = text) -> Values:
            x = 1 / (1 + np.exp(-1.5 * (text + level + 0.7 * rng.normal(size=n))))
            return generation_scores(list(np.where(x < 0.45, 0.0, np.where(x > 0.75, 1.0, x))))

        made = Cell(
            Scale("low", draws), [scores(-1)], [scores(-1)], scores(0.8), scores(0.8), scores(-1)
        )
        row = row_of(made)
        wrong += row.verdict == "recovers"
        marked += row.p is not None and row.p < 0.05
    assert wrong <= 0.025 * sets, wrong
    assert marked <= 0.05 * sets, marked


@pytest.mark.slow
def test_false_recovery_on_a_board_without_effect() -> None:
    """24 cells of sparse changes each: at most 5% of boards may show one that "recovers"."""
    rng, boards, n = np.random.default_rng(13), 150, 50
    draws, wrong = draw(n, 0), 0
    for _ in range(boards):
        rows = []
        for _ in range(24):
            usual = np.asarray(rng.random(n) < 0.1, dtype=np.float64)
            target = generation_scores(list(rng.choice([0.6, 1.0], n)))

            def answers(usual: Array = usual) -> Values:
                moved = rng.random(n) < 0.1
                return generation_scores(list(1.0 * np.where(moved, rng.random(n) < 0.1, usual)))

            full, quantized = answers(), answers()
            made = Cell(Scale("low", draws), [full], [quantized], target, target, full)
            rows.append(row_of(replace(made, utility=Estimate(1.0))))
        wrong += any(row.verdict == "recovers" for row in mark_significant(rows))
    assert wrong <= 0.05 * boards, wrong


def test_a_real_recovery_is_found() -> None:
    rng, draws = np.random.default_rng(12), draw(50, 0)
    found = 0
    for _ in range(100):
        full, quantized, target = (Values(x, (0, 100)) for x in three(rng, 50, heap=True))
        made = Cell(Scale("low", draws), [full], [quantized], target, target, full)
        found += row_of(made).verdict == "recovers"
    assert found >= 99


def row(p: float | None, want: Want = "low") -> RecoveryRow:
    figures = dict.fromkeys(
        ["full", "quantized", "target", "target_full", "retrained", "excess", "change"], 1.0
    )
    return RecoveryRow.model_validate(
        {
            "entry": "e",
            "task": "t",
            "precision": "q",
            "want": want,
            "n": 3,
            "verdict": "holds",
            **figures,
            **({} if p is None else {"p": p}),
        }
    )


def test_holm_counts_forget_tasks_only_and_single_samples_not_at_all() -> None:
    rows = [row(0.02), row(0.04), row(0.0001, "high"), row(None)]
    assert [r.significant for r in mark_significant(rows)] == [True, True, False, False]
    rows = [row(0.03), row(0.04)]
    assert [r.significant for r in mark_significant(rows)] == [False, False]
