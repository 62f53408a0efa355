from __future__ import annotations

from pathlib import Path

from tests.conftest import Toy
from tests.tasks.kinds.test_generate import plan_of, read_lines
from unlearnbench.requests import Score
from unlearnbench.results import Settings
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, load_samples


def settings(ppl_lower: bool) -> Settings:
    return Settings(protocol="muse", dtype="fp32", device="cpu", seed=0, ppl_lower=ppl_lower)


def test_a_text_is_asked_and_its_lower_cased_form_in_a_second_round(toy: Toy) -> None:
    plan = plan_of(toy, "toy_privleak", 1)
    for sample, split in zip(plan.samples, ("forget", "holdout"), strict=True):
        text = Score(f"toy_privleak:{split}/0", sample.text)
        lowered = Score(f"toy_privleak:{split}/0:lower", sample.text.lower())
        assert plan.spec.requests(sample, settings(False)) == [[text]]
        assert plan.spec.requests(sample, settings(True)) == [[text], [lowered]]


def test_privleak_texts(muse_data: Path) -> None:
    base = muse_data / "muse-bench" / "MUSE-News" / "privleak"
    spec = load_registry().tasks["news_privleak"]
    plan = load_samples(spec, DataOptions(muse_data), None)
    rows = [*read_lines(base / "forget.jsonl"), *read_lines(base / "holdout.jsonl")]
    assert [sample.text for sample in plan.samples] == [row["text"] for row in rows]
    assert [sample.split for sample in plan.samples] == ["forget"] * 100 + ["holdout"] * 100
