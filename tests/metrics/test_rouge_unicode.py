# ruff: noqa: RUF001 -- letters of other scripts that look like Latin ones are what is tested
from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnbench.errors import MetricError
from unlearnbench.metrics import rouge
from unlearnbench.metrics.rouge_unicode import score_output, words

# By hand: a text and its words. Escapes where a mark or an invisible character matters.
WORDS = [
    ("Он умер в 1945-м!", ["он", "умер", "в", "1945", "м"]),
    ("Größe, Straße & ÜBER", ["grösse", "strasse", "über"]),
    ("Gro\u0308ße", ["grösse"]),  # the umlaut as two characters
    ("战争于1945年结束。", ["战", "争", "于", "1945", "年", "结", "束"]),
    ("東京タワーへ行く", [*"東京タワーへ行く"]),
    ("人々が ｶﾞﾗｽ を２０２４年に", ["人", "々", "が", *"ガラス", "を", "2024", "年", "に"]),
    ("か\u3099", ["が"]),  # a voiced kana as two characters
    ("葛\U000e0100城", ["葛", "城"]),  # with a variation selector
    ("ปี 2488 ที่กรุง", ["ปี", "2488", "ที่", "ก", "รุ", "ง"]),
    ("๒๔๘๘", ["๒๔๘๘"]),  # Thai digits form a number
    ("ສະບາຍ", [*"ສະບາຍ"]),  # Lao
    ("ភាសា", ["ភា", "សា"]),  # Khmer
    ("မြန်မာ", ["မြ", "န်", "မာ"]),  # Burmese
    ("كِتَابٌ جَميل", ["كِتَابٌ", "جَميل"]),
    ("می\u200cخواهم", ["میخواهم"]),  # a joiner of the same word
    ("हिन्दी में लिखिए।", ["हिन्दी", "में", "लिखिए"]),
    ("क्\u200dष", ["क्ष"]),
    ("தமிழ்", ["தமிழ்"]),
    ("한국어 문장", ["한국어", "문장"]),
    ("\u1112\u1161\u11ab", ["한"]),  # one syllable as three letters
    ("ΟΔΟΣ οδός", ["οδοσ", "οδόσ"]),
    ("co\u00adop ﬁve ②", ["coop", "five", "2"]),
    ("a\u200bb a_b don’t", ["a", "b", "a", "b", "don", "t"]),
    ("❤\ufe0f 1\ufe0f\u20e3 £…", ["1"]),
    ("\u0301x", ["x"]),
]


@pytest.mark.parametrize(("text", "found"), WORDS)
def test_words(text: str, found: list[str]) -> None:
    assert words(text) == [unicodedata.normalize("NFKC", word) for word in found]
    assert words(unicodedata.normalize("NFD", text)) == words(text)
    assert words(f"«{text}»") == words(text)


def lcs(left: list[str], right: list[str]) -> int:
    """By rows, each from the one before."""
    above = [0] * (len(right) + 1)
    for a in left:
        row = [0]
        for j, b in enumerate(right):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
        above = row
    return above[-1]


def f1(hits: int, output: list[str], target: list[str]) -> float:
    return 2 * hits / (len(output) + len(target))


SENTENCES = [text for text, _ in WORDS]


@given(
    output=st.lists(st.sampled_from(SENTENCES), max_size=4).map(" ".join),
    target=st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=4).map(" ".join),
)
@settings(deadline=None)
def test_scores_are_the_plain_definition_over_these_words(output: str, target: str) -> None:
    known = {text: [unicodedata.normalize("NFKC", w) for w in found] for text, found in WORDS}
    assert words(output + " " + target) == words(output) + words(target)
    out, want = words(output), words(target)
    assert set(out) | set(want) <= {word for found in known.values() for word in found}
    got = score_output(output, target)
    common, shared = lcs(out, want), sum((Counter(out) & Counter(want)).values())
    assert got == {
        "rougeL_unicode": pytest.approx(f1(common, out, want), abs=1e-12),
        "rougeL_recall": pytest.approx(common / len(want), abs=1e-12),
        "rouge1": pytest.approx(f1(shared, out, want), abs=1e-12),
    }


# The wrong answer has the right year, the right one lacks it.
YEARS = [
    ("Война закончилась в 1945 году", "Её вообще не было до 1945", "Война закончилась в том году"),
    ("战争于1945年结束", "他生在1945", "战争于那年结束"),
    ("戦争は1945年に終わった", "かれ生1945", "戦争はその年に終わった"),
    ("สงครามสิ้นสุดใน 1945", "เขาเกิด 1945", "สงครามสิ้นสุด"),
    ("انتهت الحربُ في عام 1945", "وُلِدَ قبل 1945", "انتهت الحربُ في عام"),
    ("युद्ध 1945 में समाप्त हुआ", "वह 1945 से पहले था", "युद्ध उस वर्ष में समाप्त हुआ"),
    ("Über Köln fuhr er 1945 zurück", "Das wäre 1945", "Über Köln fuhr er zurück"),
]


@pytest.mark.parametrize(("target", "wrong", "right"), YEARS)
def test_a_wrong_answer_with_the_right_year_is_wrong(target: str, wrong: str, right: str) -> None:
    low, high = (score_output(answer, target)["rougeL_unicode"] for answer in (wrong, right))
    assert low < 0.4
    assert high > 0.7
    assert score_output(target.upper(), target)["rougeL_unicode"] == 1.0
    assert score_output("", target)["rougeL_unicode"] == 0.0


def same_as_rouge(output: str, target: str) -> None:
    plain, ours = rouge.score_output(output, target), score_output(output, target)
    assert ours["rougeL_unicode"] == plain["rougeL"]
    assert {name: ours[name] for name in ("rougeL_recall", "rouge1")} == {
        name: plain[name] for name in ("rougeL_recall", "rouge1")
    }


ascii_text = st.text(st.characters(max_codepoint=127), max_size=60) | st.lists(
    st.sampled_from(["The", "gate", "GATES", "1472", "a_b", "don't", "\t", "2.5%"]), max_size=12
).map(" ".join)


@given(output=ascii_text, target=ascii_text.filter(lambda text: any(map(str.isalnum, text))))
@settings(deadline=None)
def test_it_is_rouge_for_ascii(output: str, target: str) -> None:
    assert words(target) == rouge.words(target)
    same_as_rouge(output, target)


@pytest.mark.parametrize("model", ["target", "retrain", "ga_gdr", "npo_klr"])
def test_it_is_rouge_for_the_published_answers(golden_dir: Path, model: str) -> None:
    tasks = json.loads((golden_dir / f"{model}.json").read_bytes())
    pairs = [(r["response"], r["gt"]) for name in tasks for r in tasks[name].get("records", ())]
    plain = [pair for pair in pairs if all(text.isascii() for text in pair)]
    assert len(plain) > 150
    for output, target in plain:
        same_as_rouge(output, target)


@given(text=st.text(max_size=80))
@settings(deadline=None)
def test_any_target_scores_or_raises(text: str) -> None:
    if any(unicodedata.category(c)[0] in "LN" for c in unicodedata.normalize("NFKC", text)):
        assert set(score_output(text, text).values()) == {1.0}
    else:
        with pytest.raises(MetricError, match="no letter or digit"):
            score_output("anything", text)


def test_a_long_text_takes_time_in_proportion() -> None:
    assert words("ж" * 1_000_000) == ["ж" * 1_000_000]
    assert len(words("東" * 200_000)) == 200_000
