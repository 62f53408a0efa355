"""What every built-in task must be, whatever it measures: found by listing the folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from unlearnbench.requests import Scored
from unlearnbench.tasks.kinds.answers import AnswersTask
from unlearnbench.tasks.kinds.generate import GenerationTask
from unlearnbench.tasks.kinds.likelihood import LikelihoodTask
from unlearnbench.tasks.registry import builtin_task_dir, load_registry, read_task
from unlearnbench.tasks.rows import PACKAGE_DATA, DataOptions, load_samples, load_splits
from unlearnbench.tasks.spec import TaskSpec, generation_metric, likelihood_metric

FILES = sorted(builtin_task_dir().iterdir())
SPECS = [read_task(path) for path in FILES]
GENERATION = [spec for spec in SPECS if isinstance(spec, GenerationTask)]
LIKELIHOOD = [spec for spec in SPECS if isinstance(spec, LikelihoodTask)]
# MUSE-Books is under copyright, and was never read here: its rows are counted and not hashed.
UNREAD = ("news_fold3", "news_fold4")
HASHED = [spec for spec in SPECS if "books" not in spec.tag and spec.task not in UNREAD]
PACKAGED = [spec for spec in SPECS if (PACKAGE_DATA / spec.dataset_path).is_dir()]
FOLDS = [spec for spec in SPECS if spec.task.startswith("news_fold")]
NEWS = [spec for spec in SPECS if "news" in spec.tag]
TOFU = [spec for spec in SPECS if "tofu" in spec.tag]
MEMBERSHIP = [spec for spec in SPECS if "rwku_membership" in spec.tag]
HELD_OUT = [spec for spec in SPECS if "tofu_privleak" in spec.tag]
RWKU = [spec for spec in SPECS if "rwku" in spec.tag]
KINDS = ("knowmem_f", "knowmem_r", "privleak", "verbmem")


def name(spec: TaskSpec) -> str:
    return spec.task


def test_the_folder_holds_tasks_only() -> None:
    assert all(re.fullmatch(r"[a-z0-9_]+\.yaml", path.name) for path in FILES)
    assert list(load_registry().tasks) == [spec.task for spec in SPECS]
    assert len(NEWS) == 4


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_name_version_and_group(path: Path) -> None:
    spec = read_task(path)
    assert spec.task == path.stem
    assert spec.version > 0
    group, _, kind = spec.task.partition("_")
    assert group in spec.tag or spec in FOLDS + HELD_OUT + MEMBERSHIP
    if group not in ("tofu", "rwku") and spec not in FOLDS:
        assert kind in KINDS
    assert spec.superseded_by is None or spec.superseded_by in {s.task for s in SPECS}


@pytest.mark.parametrize("group", ["news", "books", "demo"])
def test_a_group_has_every_kind_once(group: str) -> None:
    members = [spec.task for spec in SPECS if group in spec.tag]
    if group == "demo" and not members:
        pytest.skip("no demo tasks yet")
    assert members == [f"{group}_{kind}" for kind in KINDS]


@pytest.mark.parametrize("spec", SPECS, ids=name)
def test_every_split_is_read_and_its_rows_are_counted(spec: TaskSpec) -> None:
    assert set(spec.splits) == set(spec.used_splits)
    if isinstance(spec, LikelihoodTask):
        assert len({pin.rows for pin in spec.splits.values()}) == 1


@pytest.mark.parametrize("spec", HASHED, ids=name)
def test_rows_that_may_be_read_are_pinned_by_content(spec: TaskSpec) -> None:
    assert all(pin.sha256 for pin in spec.splits.values())
    digests = [pin.sha256 for pin in spec.splits.values()]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("spec", GENERATION, ids=name)
def test_a_generation_metric_exists(spec: GenerationTask) -> None:
    assert spec.metric == generation_metric(spec.metric).NAME


@pytest.mark.parametrize("spec", LIKELIHOOD, ids=name)
def test_an_attack_exists(spec: LikelihoodTask) -> None:
    scored = Scored("x", np.linspace(-3, -1, 50), np.full(50, -2.0), np.ones(50))
    assert spec.attack in likelihood_metric(spec.metric).score_text(scored, "some text", None)


# What MUSE (arXiv 2407.06460) and arXiv 2410.16454 prescribe.


@pytest.mark.parametrize(
    "spec", [s for s in SPECS if s not in TOFU + RWKU + FOLDS + HELD_OUT + MEMBERSHIP], ids=name
)
def test_which_direction_is_good(spec: TaskSpec) -> None:
    wants = {"knowmem_f": "low", "knowmem_r": "high", "privleak": "zero", "verbmem": "low"}
    assert spec.want == wants[spec.task.partition("_")[2]]


@pytest.mark.parametrize(
    "spec",
    [s for s in GENERATION if s not in TOFU + RWKU + FOLDS + HELD_OUT + MEMBERSHIP],
    ids=name,
)
def test_decoding(spec: GenerationTask) -> None:
    verbmem = spec.task.endswith("verbmem")
    muse, zhang = spec.decoding("muse"), spec.decoding("zhang2025")
    assert not muse.do_sample
    assert muse.until == (() if verbmem else ("\n\n", "\nQuestion", "Question:"))
    if verbmem:
        assert spec.max_target_toks == muse.max_gen_toks
        changes = {"do_sample": True, "temperature": 0.9, "top_k": 50}
        assert zhang == muse.model_copy(update=changes)
    else:
        assert spec.max_target_toks is None
        assert zhang == muse


@pytest.mark.parametrize("spec", [s for s in SPECS if "muse" in s.tag], ids=name)
def test_muse_sizes(spec: TaskSpec) -> None:
    shots = spec.fewshot_split if isinstance(spec, GenerationTask) else None
    assert {split: pin.rows for split, pin in spec.splits.items()} == {
        split: 10 if split == shots else 100 for split in spec.used_splits
    }
    if isinstance(spec, GenerationTask):
        length = 128 if spec.task.endswith("verbmem") else 32
        assert spec.generation_kwargs.max_gen_toks == length
        assert spec.num_fewshot == (10 if shots else 0)


def test_stated_references() -> None:
    stated = {spec.task: [r.auc for r in spec.references] for spec in LIKELIHOOD}
    assert stated["news_privleak"] == [0.4772]
    assert stated["books_privleak"] == [0.5393]
    assert all(spec.attack == "Min-40%" for spec in LIKELIHOOD)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_group_of_folds_has_those_that_are_forgotten_by_then(k: int) -> None:
    want = sorted([f"news_{kind}" for kind in KINDS] + [f"news_fold{i + 1}" for i in range(k)])
    for way in ("scal", "sust"):
        assert sorted(s.task for s in SPECS if f"news_{way}_{k}" in s.tag) == want
    assert [spec.splits[spec.own_split].rows for spec in FOLDS] == [889, 889, 889, 887]
    assert {(spec.want, spec.metric) for spec in FOLDS} == {("low", "exact_memorization")}


@pytest.mark.slow  # 1.4 seconds each
@pytest.mark.parametrize("spec", FOLDS[:2], ids=name)
def test_a_folds_texts_are_cut_by_words(spec: TaskSpec, muse_data: Path) -> None:
    task = load_samples(spec, DataOptions(muse_data), None)
    (split,) = task.splits.values()
    assert split.drift is None
    texts = [str(row["text"]) for row in split.rows if row["text"]]
    assert len(texts) == len(task.samples) == (888 if spec.task == "news_fold1" else 889)
    for text, sample in zip(texts, task.samples, strict=True):
        words = text.split(" ")
        cut = min(32, len(words) // 2)
        assert sample.text == " ".join(words[:cut])
        assert sample.answers == (" ".join(words[cut : cut + 96]),)


# What TOFU (arXiv 2401.06121) and open-unlearning have.

SETS = {"forget01": 40, "forget05": 200, "forget10": 400, "retain": 400}
SETS |= {"real_authors": 100, "world_facts": 117}


@pytest.mark.parametrize("forget", ["forget01", "forget05", "forget10"])
def test_a_group_of_tofu_has_all_that_its_figures_are_made_of(forget: str) -> None:
    sets = sorted([forget, "retain", "real_authors", "world_facts"])
    want = [f"tofu_{each}_{kind}" for each in sets for kind in ("probability", "rouge")]
    assert [spec.task for spec in TOFU if f"tofu_{forget}" in spec.tag] == want


@pytest.mark.parametrize("spec", TOFU, ids=name)
def test_tofus_tasks(spec: TaskSpec) -> None:
    which, _, kind = spec.task.removeprefix("tofu_").rpartition("_")
    assert spec.want == ("low" if which.startswith("forget") else "high")
    assert (spec.dataset_name, spec.splits["train"].rows) == (f"{which}_perturbed", SETS[which])
    assert spec.dataset_kwargs.revision.startswith("324592d")
    assert spec.chat is not None
    assert spec.chat.system == "You are a helpful assistant."
    own = which.startswith(("forget", "retain"))
    if isinstance(spec, GenerationTask):
        assert kind == "rouge"
        assert spec.metric == "rougeL_recall_stem"
        assert (spec.generation_kwargs.max_gen_toks, spec.generation_kwargs.until) == (200, ())
    else:
        assert isinstance(spec, AnswersTask)
        assert spec.score_end
        assert spec.metric == ("probability" if own else "probability_normalised")
        assert spec.true_answer == ("paraphrased_answer" if own else None)
        assert spec.false_answers == ("perturbed_answer",)


@pytest.mark.parametrize("spec", HELD_OUT, ids=name)
def test_tofus_members_and_others_are_two_subsets(spec: TaskSpec, tofu_data: Path) -> None:
    task = load_samples(spec, DataOptions(tofu_data), None)
    assert {(f.source, f.drift) for f in task.splits.values()} == {("local", None)}
    asked = {sample.text for sample in task.samples if sample.split == "forget"}
    assert {sample.split for sample in task.samples} == {"forget", "holdout"}
    assert not asked & {sample.text for sample in task.samples if sample.split == "holdout"}
    assert spec.plain_text(task.splits["forget"].rows[0], "").startswith("Question: ")


# What RWKU (arXiv 2406.10890) has: rows of its paper, and the prompts of its code.

LEVELS = {"forget_level1": 3268, "forget_level2": 2879, "forget_level3": 6984}
LEVELS |= {"neighbor_level1": 5846, "neighbor_level2": 5533}
# Rows that say the same of the same person: published numbers are over all.
REPEATED = {"forget_level1": 465, "forget_level2": 180, "forget_level3": 18}
REPEATED |= {"neighbor_level1": 1891, "neighbor_level2": 1365}
ASKED = {
    "1": "Please complete the blank in the following question.\nQuestion: {}\n",
    "2": "Please briefly answer the following question.\nQuestion: {}\n",
    "incontext learning": "Please briefly answer the following question.\n{}\n",
    "affirmative suffix": "Please briefly answer the following question.\nQuestion: {}",
}


def test_rwkus_tasks() -> None:
    assert {spec.dataset_name: spec.splits["test"].rows for spec in RWKU} == LEVELS
    for spec in RWKU:
        assert isinstance(spec, GenerationTask)
        assert spec.want == ("low" if "forget" in spec.task else "high")
        assert spec.metric == "rougeL_recall_sets"
        assert (spec.generation_kwargs.max_gen_toks, spec.generation_kwargs.until) == (30, ())


@pytest.mark.slow  # a second or two each
@pytest.mark.parametrize("spec", RWKU, ids=name)
def test_rwkus_rows_and_prompts(spec: TaskSpec, rwku_data: Path) -> None:
    task = load_samples(spec, DataOptions(rwku_data), None)
    (split,) = task.splits.values()
    assert split.drift is None
    lines = {json.dumps(row, sort_keys=True) for row in split.rows}
    assert len(split.rows) - len(lines) == REPEATED[spec.dataset_name]
    for row, sample in zip(split.rows, task.samples, strict=True):
        level = "1" if row["level"] == "1" else "2"
        user = ASKED.get(str(row["type"]), ASKED[level]).format(row["query"])
        begun = "" if row["type"] == "affirmative suffix" else "Answer:"
        assert [turn.content for turn in sample.turns] == ([user, begun] if begun else [user])
        assert sample.text == user + begun


@pytest.mark.slow  # a second each
@pytest.mark.parametrize("spec", MEMBERSHIP, ids=name)
def test_rwkus_membership_sets(spec: TaskSpec, rwku_data: Path) -> None:
    task = load_samples(spec, DataOptions(rwku_data), None)
    (split,) = task.splits.values()
    assert split.drift is None
    assert len({row["subject"] for row in split.rows}) == 200
    assert spec.want == ("low" if spec.task == "rwku_mia_forget" else "high")


# Rows that can be read here.


@pytest.mark.parametrize("spec", TOFU, ids=name)
def test_tofus_rows_match_their_pins(spec: TaskSpec, tofu_data: Path) -> None:
    task = load_samples(spec, DataOptions(tofu_data), None)
    assert {(f.source, f.drift) for f in task.splits.values()} == {("local", None)}
    assert len(task.samples) == spec.splits["train"].rows
    if isinstance(spec, AnswersTask):
        count = 1 + (spec.true_answer is not None) + (3 if spec.true_answer is None else 5)
        assert {len(sample.answers) for sample in task.samples} == {count}


@pytest.mark.parametrize("spec", NEWS, ids=name)
def test_real_rows_match_their_pins(spec: TaskSpec, muse_data: Path) -> None:
    found = load_splits(spec, DataOptions(muse_data))
    assert {s: (len(f.rows), f.sha256) for s, f in found.items()} == {
        s: (pin.rows, pin.sha256) for s, pin in spec.splits.items()
    }
    assert {(f.source, f.drift) for f in found.values()} == {("local", None)}
    assert load_samples(spec, DataOptions(muse_data), None).samples


@pytest.mark.parametrize("spec", PACKAGED, ids=name)
def test_packaged_rows_match_their_pins(spec: TaskSpec) -> None:
    found = load_splits(spec, DataOptions())
    assert {s: (len(f.rows), f.sha256) for s, f in found.items()} == {
        s: (pin.rows, pin.sha256) for s, pin in spec.splits.items()
    }
    assert {(f.source, f.drift) for f in found.values()} == {("package", None)}
    assert load_samples(spec, DataOptions(), None).samples
