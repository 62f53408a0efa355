"""Every figure of TOFU that was published with its per-sample values, reproduced to 1e-12.

Needs the published logs beside the data; skips without them.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import pytest

from tests.golden.published import B1, FULL, L2, LOGS, RETAINED, Published, losses, rows
from unlearnbench.metrics.membership import auc
from unlearnbench.metrics.rouge_recall import score_output
from unlearnbench.metrics.truth import (
    ForgetQuality,
    Mean,
    TruthRatio,
    forget_quality,
    harmonic_mean,
    probability,
    probability_normalised,
    truth_ratio,
)

EXACT = 1e-12
ANSWERS = {  # the true answer and the false ones of each set
    "forget": ("forget_Q_A_PARA", "forget_Q_A_PERT"),
    "retain": ("retain_Q_A_PARA", "retain_Q_A_PERT"),
    "ra": ("ra_Q_A", "ra_Q_A_PERT"),
    "wf": ("wf_Q_A", "wf_Q_A_PERT"),
}
RATIOS = {"forget": "forget_truth_ratio", "retain": "retain_Truth_Ratio"}
RATIOS |= {"ra": "ra_Truth_Ratio", "wf": "wf_Truth_Ratio"}


def ratios(log: dict[str, Any], which: str, mean: Mean = "geometric") -> list[TruthRatio]:
    true, false = (losses(log, name) for name in ANSWERS[which])
    return [truth_ratio(*pair, mean=mean) for pair in zip(true, false, strict=True)]


def quality(published: Published, model: str, n: int, mean: Mean = "geometric") -> ForgetQuality:
    full, retained = FULL.format(model, f"{n:02}"), RETAINED.format(model, 100 - n)
    pair = [ratios(published.log(name), "forget", mean) for name in (full, retained)]
    return forget_quality(*([row.ratio for row in each] for each in pair))


SLOW = [pytest.mark.slow, pytest.mark.ci]  # half a second to two each


@pytest.mark.parametrize("name", [LOGS[0], *(pytest.param(name, marks=SLOW) for name in LOGS[1:])])
def test_every_rouge_and_its_mean(published: Published, name: str) -> None:
    log, count = published.log(name), 0
    theirs = {"rougeL_recall_stem": "rougeL_recall", "rouge1_recall_stem": "rouge1_recall"}
    theirs["rougeL_stem"] = "rougeL_f1"
    for block in (log[f"{which}_Q_A_ROUGE"] for which in ANSWERS):
        found = [score_output(r["generation"], r["ground_truth"]) for r in rows(block)]
        for ours, row in zip(found, rows(block), strict=True):
            assert ours == {k: pytest.approx(row[v], abs=EXACT) for k, v in theirs.items()}
        mean = fmean(ours["rougeL_recall_stem"] for ours in found)
        assert mean == pytest.approx(block["agg_value"], abs=EXACT)
        count += len(found)
    assert count in (657, 817, 1017)


@pytest.mark.parametrize("name", LOGS)
def test_every_probability(published: Published, name: str) -> None:
    """Theirs is exp in single precision of what the log states in double."""
    log = published.log(name)
    for block in ("forget_Q_A", "forget_Q_A_PARA", "retain_Q_A", "ra_Q_A", "wf_Q_A"):
        stated = rows(log[f"{block}_Prob"])
        assert [probability(row["avg_loss"]) for row in stated] == pytest.approx(
            [row["prob"] for row in stated], rel=1e-6
        )
    for which in ("ra", "wf"):
        right, wrong = (rows(log[f"{name}_Prob"]) for name in ANSWERS[which])
        stated = rows(log[f"{which}_Q_A_Prob_normalised"])
        for one, others, row in zip(right, wrong, stated, strict=True):
            # From the stated probabilities to 1e-12, from the losses to single precision.
            p, rest = one["prob"], sum(others["prob"])
            assert p / (p + rest + 1e-10) == pytest.approx(row["prob"], abs=EXACT)
            ours = probability_normalised(one["avg_loss"], others["avg_loss"])
            assert ours == pytest.approx(row["prob"], rel=1e-5)


@pytest.mark.parametrize("name", LOGS)
def test_every_truth_ratio_and_its_means(published: Published, name: str) -> None:
    log = published.log(name)
    for which, block in RATIOS.items():
        found = ratios(log, which)
        stated = [row["score"] for row in rows(log[block])]
        assert [row.ratio for row in found] == pytest.approx(stated, rel=EXACT)
        ours = [row.closer_to_one if which == "forget" else row.true_better for row in found]
        assert fmean(ours) == pytest.approx(log[block]["agg_value"], abs=EXACT)


def test_the_three_means_of_the_truth_ratio(published: Published) -> None:
    want = {
        FULL.format(B1, 10): (0.475564, 0.684984),
        RETAINED.format(B1, 90): (0.627460, 0.567348),
    }
    for name, values in want.items():
        found = ratios(published.log(name), "forget")
        means = fmean(r.closer_to_one for r in found), fmean(r.share for r in found)
        assert means == pytest.approx(values, abs=5e-7)


@pytest.mark.parametrize(
    ("model", "n", "mean", "want"),
    [
        (B1, 1, "geometric", 0.00676),
        (B1, 5, "geometric", 1.43e-12),
        (B1, 10, "geometric", 3.91e-22),
        (B1, 10, "arithmetic", 1.40e-20),
        (L2, 10, "geometric", 4.35e-25),
        (L2, 10, "arithmetic", 1.82e-26),
    ],
)
def test_forget_quality(published: Published, model: str, n: int, mean: Mean, want: float) -> None:
    found = quality(published, model, n, mean)
    assert found.n == 40 * n
    assert found.p == pytest.approx(want, rel=0.005)
    assert found.log10_p == pytest.approx(math.log10(found.p), abs=EXACT)
    stated = published.log(FULL.format(model, f"{n:02}"))["forget_quality"]["agg_value"]
    if mean == "geometric":
        assert found.p == pytest.approx(stated, rel=1e-9)


@pytest.mark.parametrize("name", LOGS)
def test_model_utility(published: Published, name: str) -> None:
    log = published.log(name)
    parts = ["retain_Q_A_Prob", "ra_Q_A_Prob_normalised", "wf_Q_A_Prob_normalised"]
    parts += [f"{which}_Q_A_ROUGE" for which in ("retain", "ra", "wf")]
    parts += [RATIOS[which] for which in ("retain", "ra", "wf")]
    ours = harmonic_mean([log[part]["agg_value"] for part in parts])
    assert ours == pytest.approx(log["model_utility"]["agg_value"], abs=EXACT)
    known = {FULL.format(B1, 10): 0.5992, RETAINED.format(B1, 90): 0.5911}
    known |= {FULL.format(L2, 10): 0.6276, RETAINED.format(L2, 90): 0.6130}
    assert ours == pytest.approx(known.get(name, ours), abs=5e-5)


def test_most_extraction_strengths_of_a_retrained_model_are_on_their_floor(
    published: Published,
) -> None:
    """1 / N for a whole N; the mean of .059 is mostly that."""
    block = published.log(RETAINED.format(B1, 90))["extraction_strength"]
    inverse = [1 / row["score"] for row in rows(block)]
    whole = sum(abs(value - round(value)) < 1e-9 for value in inverse)
    assert whole == 303


def leaks(log: dict[str, Any], attack: str = "mia_min_k") -> tuple[float, float]:
    """Ours, and theirs: the AUC of a forget row being the likelier in the training data."""
    sides = [[r["score"] for r in rows(log[attack][side])] for side in ("forget", "holdout")]
    return auc(*sides), log[attack]["auc"]


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize(
    "attack", ["mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm"]
)
def test_every_auc_is_one_minus_ours(published: Published, name: str, attack: str) -> None:
    ours, theirs = leaks(published.log(name), attack)
    assert 1 - ours == pytest.approx(theirs, abs=EXACT)


@pytest.mark.parametrize(("base", "forgotten"), [(B1, 10), (B1, 5), (B1, 1), (L2, 10)])
def test_the_attack_against_the_retrained_model(
    published: Published, base: str, forgotten: int
) -> None:
    """Theirs ran the reference within the attack, in another batch: losses differ a little."""
    full = published.log(FULL.format(base, f"{forgotten:02}"))
    retained = published.log(RETAINED.format(base, 100 - forgotten))
    less = [
        [
            own["score"] - other["score"]
            for own, other in zip(
                rows(full["mia_loss"][side]), rows(retained["mia_loss"][side]), strict=True
            )
        ]
        for side in ("forget", "holdout")
    ]
    assert 1 - auc(*less) == pytest.approx(full["mia_reference"]["auc"], abs=1e-3)


def test_privleak_and_how_it_is_turned(published: Published) -> None:
    """100 ((1 - A) - (1 - A_ret)) / (1 - A_ret + 1e-10), with 1 - A our AUC."""
    full, retained = (
        published.log(name) for name in (FULL.format(B1, 10), RETAINED.format(B1, 90))
    )
    ours, zero = leaks(full)[0], leaks(retained)[0]
    assert 100 * (ours - zero) / (zero + 1e-10) == pytest.approx(
        full["privleak"]["agg_value"], abs=EXACT
    )
    assert full["privleak"]["agg_value"] == pytest.approx(-99.457, abs=5e-4)
    assert 100 * (zero - 0.5) / (0.5 + 1e-10) == pytest.approx(
        retained["privleak"]["agg_value"], abs=EXACT
    )
    assert retained["forget_quality"]["agg_value"] is None, "without a retrained run there is none"


# The paper's own logs: the only ones with counts of tokens.

LEGACY = "tofu-legacy/ft_epoch5_lr1e-05_llama2-7b_{}_wd0.01/eval_log_aggregated.json"
PARTS = ["eval_log.json", "eval_real_author_wo_options.json", "eval_real_world_wo_options.json"]
FORGET = "eval_log_forget.json"
UTILITY = {"full": (0.622677, 0.585886), "retain90": (0.613745, 0.575240)}


def legacy_ratios(part: dict[str, Any], mean: Mean) -> list[float]:
    true, false = part["avg_paraphrased_loss"].values(), part["average_perturb_loss"].values()
    return [truth_ratio(*pair, mean=mean).ratio for pair in zip(true, false, strict=True)]


@pytest.mark.parametrize("model", UTILITY)
def test_probabilities_are_normalised_by_the_answers_tokens(
    published: Published, model: str
) -> None:
    log = published.json(LEGACY.format(model))
    for name in [*PARTS, FORGET]:
        part, count = log[name], 0
        for row, loss in part["avg_gt_loss"].items():
            tokens = part["num_token_gt"][row]
            per_token = probability(part["gt_loss"][row] / tokens)
            assert per_token == pytest.approx(probability(loss), rel=1e-6)
            count += tokens
        assert count > len(part["avg_gt_loss"])
        ours = legacy_ratios(part, "geometric")
        # Theirs is computed in single precision from losses of the texts.
        assert ours == pytest.approx(list(part["truth_ratio"].values()), rel=5e-5)
        for row, (_, said, truth) in part["generated_text"].items():
            found = score_output(said, truth)
            assert found["rougeL_recall_stem"] == pytest.approx(
                part["rougeL_recall"][row], abs=EXACT
            )
            assert found["rouge1_recall_stem"] == pytest.approx(
                part["rouge1_recall"][row], abs=EXACT
            )


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("model", UTILITY)
def test_both_model_utilities_of_the_papers_code(
    published: Published, model: str, mean: Mean
) -> None:
    log, parts = published.json(LEGACY.format(model)), []
    for name in PARTS:
        part = log[name]
        right = part["avg_gt_loss"].values()
        if name == "eval_log.json":
            parts.append(fmean(map(probability, right)))
        else:
            wrong = part["average_perturb_loss"].values()
            pairs = zip(right, wrong, strict=True)
            parts.append(fmean(probability_normalised(*pair) for pair in pairs))
        parts.append(fmean(part["rougeL_recall"].values()))
        parts.append(fmean(max(0.0, 1 - s) for s in legacy_ratios(part, mean)))
    want = UTILITY[model][mean == "arithmetic"]
    assert harmonic_mean(parts) == pytest.approx(want, abs=6e-7)


@pytest.mark.parametrize(
    ("mean", "d", "p"),
    [("geometric", 0.396667, 1.834066e-21), ("arithmetic", None, 6.031912e-23)],
)
def test_forget_quality_of_300_rows(
    published: Published, mean: Mean, d: float | None, p: float
) -> None:
    full, retained = (published.json(LEGACY.format(name))[FORGET] for name in UTILITY)
    found = forget_quality(legacy_ratios(full, mean), legacy_ratios(retained, mean))
    assert found.n == 300
    assert found.p == pytest.approx(p, rel=1e-6)
    assert d is None or found.statistic == pytest.approx(d, abs=5e-7)


# UDS's table of 152 models.


def test_harmonic_means_of_152_models(published: Published) -> None:
    models = published.json("uds/method_results.json")["models"]
    assert len(models) == 152
    sets, kinds = ("retain", "ra", "wf"), ("q_prob", "q_rouge", "truth_ratio")
    for model in models:
        # Their utilities keep from dividing by 0 with 1e-12, their memorization does not.
        nine = [model[f"{which}_{kind}"] + 1e-12 for which in sets for kind in kinds]
        assert harmonic_mean(nine) == pytest.approx(model["model_utility"], abs=EXACT)
        both = [model["model_utility"] + 1e-12, model["fluency"] + 1e-12]
        assert harmonic_mean(both) == pytest.approx(model["utility"], abs=EXACT)
        four = [model[f"one_minus_{kind}"] for kind in ("es", "em", "paraprob", "truth")]
        assert harmonic_mean(four) == pytest.approx(model["mem"], abs=EXACT)


def test_robustness_is_the_harmonic_mean_of_both_attacks(published: Published) -> None:
    found = published.json("uds/meta_eval.json")["robustness"]
    checked = 0
    for row in found.values():
        pair = [row["relearning"], row["quantization"]]
        if row["agg"] is not None and None not in pair:
            assert harmonic_mean(pair) == pytest.approx(row["agg"], abs=2e-4)  # four decimals
            checked += 1
    assert checked > 10
