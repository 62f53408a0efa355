from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unlearnbench.errors import MetricError
from unlearnbench.metrics.rouge import score_output, words
from unlearnbench.tasks.kinds.generate import GenerationTask
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import PACKAGE_DATA, DataOptions, load_samples

# Few words, so that random texts have long common subsequences; odd ones, so that tokenization
# matters: digits, capitals, umlauts (a break for rouge-score), "_" (a break too), a Kelvin sign.
WORDS = ["the", "The", "gate", "gates", "1472", "£239bn", "net-worth", "über", "a_b", "\u212a", "…"]
texts = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)
targets = texts.filter(lambda text: losses(text) == "few")


def tokenize(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def share_lost(text: str) -> float:
    """How much of a text's letters and digits are none of a-z and 0-9; NaN where it has none."""
    seen = re.sub(r"[\W_]", "", unicodedata.normalize("NFC", text).lower())
    return len(re.sub("[a-z0-9]", "", seen)) / len(seen) if seen else math.nan


def losses(text: str) -> str:
    share = share_lost(text)
    return "all" if math.isnan(share) else "few" if share <= 0.2 else "many"


REFUSED = {"all": "has no letter or digit", "many": "letters and digits.*rougeL_unicode"}


def lcs(left: list[str], right: list[str]) -> int:
    """Longest common subsequence by the plain recursion over prefixes."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            if a == b:
                table[i + 1][j + 1] = table[i][j] + 1
            else:
                table[i + 1][j + 1] = max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def f1(hits: int, output: list[str], target: list[str]) -> float:
    if not hits:
        return 0.0
    precision, recall = hits / len(output), hits / len(target)
    return 2 * precision * recall / (precision + recall)


def reference(output: str, target: str) -> dict[str, float]:
    out, want = tokenize(output), tokenize(target)
    common = lcs(out, want)
    shared = sum((Counter(out) & Counter(want)).values())
    return {
        "rougeL": f1(common, out, want),
        "rougeL_recall": common / len(want),
        "rouge1": f1(shared, out, want),
    }


@given(output=texts, target=targets)
@example(output="gate the", target="the gate the")
@example(output="", target="the")
@settings(deadline=None)
def test_it_is_the_plain_definition(output: str, target: str) -> None:
    got = score_output(output, target)
    for name, want in reference(output, target).items():
        assert got[name] == pytest.approx(want, abs=1e-12), name


@given(output=st.text(max_size=60), target=st.text(max_size=60))
@settings(deadline=None)
def test_any_text_scores_within_bounds_or_raises(output: str, target: str) -> None:
    assert words(target) == tokenize(target)
    if losses(target) != "few":
        with pytest.raises(MetricError, match=REFUSED[losses(target)]):
            score_output(output, target)
        return
    scores = score_output(output, target)
    assert set(scores) == {"rougeL", "rougeL_recall", "rouge1", "rougeL_stem"}
    assert all(math.isfinite(v) and 0 <= v <= 1 for v in scores.values()), scores


@given(target=targets)
@settings(deadline=None)
def test_a_recited_target_scores_one_and_nothing_scores_zero(target: str) -> None:
    assert set(score_output(target, target).values()) == {1.0}
    assert set(score_output("", target).values()) == {0.0}


@given(output=targets, target=targets)
@settings(deadline=None)
def test_f1_is_symmetric_and_recall_is_over_the_target(output: str, target: str) -> None:
    there, back = score_output(output, target), score_output(target, output)
    assert there["rougeL"] == pytest.approx(back["rougeL"], abs=1e-12)
    common = lcs(tokenize(output), tokenize(target))
    assert there["rougeL_recall"] == pytest.approx(common / len(tokenize(target)))


def test_recall_and_f1_by_hand() -> None:
    # Common: "in 1472"; 2 of 4 output words, 2 of 3 target words.
    scores = score_output("It was in 1472.", "in March 1472")
    assert scores["rougeL_recall"] == pytest.approx(2 / 3)
    assert scores["rougeL"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))


def test_order_counts_for_rouge_l_and_not_for_rouge_1() -> None:
    scores = score_output("c b a", "a b c")
    assert scores["rougeL"] == pytest.approx(1 / 3)
    assert scores["rouge1"] == 1.0


def test_a_word_counts_only_as_often_as_it_stands_in_the_target() -> None:
    # Repeating one word of the target must not pay.
    scores = score_output("gate gate gate gate", "gate one")
    assert scores["rouge1"] == pytest.approx(2 * (1 / 4) * (1 / 2) / (1 / 4 + 1 / 2))
    assert scores["rougeL"] == pytest.approx(scores["rouge1"])


def test_the_headline_is_not_stemmed() -> None:
    scores = score_output("boats asking", "boat asked")
    assert scores["rougeL"] == scores["rouge1"] == scores["rougeL_recall"] == 0.0
    assert scores["rougeL_stem"] == 1.0


def test_case_and_punctuation_do_not_count() -> None:
    assert score_output("$1.2BN (£950m)", "1 2bn 950M")["rougeL"] == 1.0


@pytest.mark.parametrize("target", ["", " ", "...", "£€", "\u0301", "\u2028", "\ud800"])
def test_a_target_without_a_word_is_an_error_and_no_zero(target: str) -> None:
    with pytest.raises(MetricError, match="no letter or digit"):
        score_output("anything", target)


def test_the_length_of_the_output_is_not_limited() -> None:
    # rouge-score recurses nowhere and truncates nothing.
    long = "word " * 3000
    assert score_output(long + "tail", "tail")["rougeL_recall"] == 1.0


RUSSIAN = "Война закончилась в 1945 году"
MANY = [
    ("Привет", "6 of its 6"),
    (RUSSIAN, "21 of its 25"),
    ("战争于1945年结束", "6 of its 10"),
    ("café", "1 of its 4"),
    ("cafe\u0301", "1 of its 4"),  # the accent as a character of its own
    ("\uff12\uff10\uff12\uff14", "4 of its 4"),  # full-width digits
]


@pytest.mark.parametrize(("target", "lost"), MANY)
def test_a_target_that_is_mostly_lost_is_refused_and_not_scored_on_its_rest(
    target: str, lost: str
) -> None:
    with pytest.raises(MetricError) as caught:
        score_output(target, target)
    said = str(caught.value)
    assert said.startswith(f"target {target!r} loses {lost} letters and digits to rougeL")
    assert "use `metric: rougeL_unicode` in the task" in said


def test_a_fifth_may_be_lost_and_a_long_target_is_cut_in_the_message() -> None:
    assert score_output("F rth", "Fürth")["rougeL"] == 1.0
    with pytest.raises(MetricError, match="loses 2 of its 9 "):
        score_output("Fürth", "Fürth Fürt")
    with pytest.raises(MetricError) as caught:
        score_output("", "ж" * 900)
    assert len(str(caught.value)) < 220


def test_no_target_of_the_packages_own_rows_is_refused() -> None:
    specs = [spec for spec in load_registry().tasks.values() if spec.metric == "rougeL"]
    own = [spec for spec in specs if (PACKAGE_DATA / spec.dataset_path).is_dir()]
    assert len(own) >= 3
    for spec in own:
        load_samples(spec, DataOptions())


@pytest.mark.parametrize("name", ["news_verbmem", "news_knowmem_f", "news_knowmem_r"])
def test_no_target_of_muse_news_is_refused(muse_data: Path, name: str) -> None:
    spec = load_registry().tasks[name]
    assert isinstance(spec, GenerationTask)
    samples = load_samples(spec, DataOptions(muse_data)).samples
    assert max(share_lost(sample.target) for sample in samples) < 0.17  # 'Alberto Núñez Feijóo'


def test_what_is_refused_of_other_benchmarks_answers(muse_data: Path) -> None:
    """They are no tasks of the package; three different answers of 10,000 are refused."""
    found: set[str] = set()
    names = ("locuslab/TOFU/*/train.jsonl", "jinzhuoran/RWKU/*/test.jsonl")
    for path in [path for name in names for path in muse_data.glob(name)]:
        for line in path.read_text(encoding="utf-8").split("\n"):
            answer = json.loads(line).get("answer") if line else None
            if isinstance(answer, str) and losses(answer) != "few":
                with pytest.raises(MetricError, match="rougeL_unicode"):
                    score_output("", answer)
                found.add(answer[:22])
    assert found <= {"Ü", "Zoë", 'Besides "Лісова пісня"'}
