from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy
from unlearnbench.errors import DataError, MetricError, TaskError
from unlearnbench.requests import Generate, Sampling
from unlearnbench.results import GenerationRecord, Settings
from unlearnbench.tasks.kinds.generate import GenerationTask
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, TaskSamples, load_samples
from unlearnbench.tasks.spec import SplitRows
from unlearnbench.tasks.templates import render_field

# Few-shot prompts.


def generation(toy: Toy, name: str = "toy_knowmem_f") -> GenerationTask:
    spec = load_registry([toy.tasks]).tasks[name]
    assert isinstance(spec, GenerationTask)
    return spec


def prefix(spec: GenerationTask, shots: SplitRows) -> str:
    """What stands before the question."""
    questions = SplitRows("forget_qa", ({"question": "?", "answer": "a"},), "local", "0" * 64)
    (sample,) = spec.make_samples({"forget_qa": questions, "forget_qa_icl": shots}, None)
    return sample.text.removesuffix(render_field(spec.doc_to_text, questions.rows[0], "here"))


SHOTS = SplitRows(
    "shots", tuple({"question": f"q{i}", "answer": f"a{i}"} for i in range(3)), "local", "0" * 64
)


def test_shots_in_file_order(toy: Toy) -> None:
    expected = "Question: q0\nAnswer: a0\n\nQuestion: q1\nAnswer: a1\n\n"
    assert prefix(generation(toy), SHOTS) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_fewshot": 1}, "Question: q0\nAnswer: a0\n\n"),
        ({"num_fewshot": 1, "target_delimiter": "->"}, "Question: q0\nAnswer: ->a0\n\n"),
        ({"num_fewshot": 1, "fewshot_delimiter": ""}, "Question: q0\nAnswer: a0"),
        ({"doc_to_text": "{{question}}", "fewshot_delimiter": ";"}, "q0a0;q1a1;"),
        ({"doc_to_target": "({{answer}})", "doc_to_text": "."}, ".(a0)\n\n.(a1)\n\n"),
    ],
)
def test_delimiters(toy: Toy, changes: dict[str, Any], expected: str) -> None:
    assert prefix(generation(toy).model_copy(update=changes), SHOTS) == expected


def test_blanks_of_a_shot_are_kept(toy: Toy) -> None:
    shots = SplitRows("shots", ({"question": " q ", "answer": " a\n"},) * 2, "local", "0" * 64)
    assert prefix(generation(toy), shots) == "Question:  q \nAnswer:  a\n\n\n" * 2


def test_fewer_shots_than_the_prompt_needs(toy: Toy) -> None:
    shots = SplitRows("shots", ({"question": "q", "answer": "a"},), "local", "0" * 64)
    with pytest.raises(DataError, match="'shots' has 1 rows, and the prompt needs 2"):
        prefix(generation(toy), shots)


def test_no_shots(toy: Toy) -> None:
    spec = generation(toy, "toy_verbmem")
    rows = SplitRows("forget", ({"prompt": "Once", "gt": "upon"},), "local", "0" * 64)
    (sample,) = spec.make_samples({"forget": rows}, None)
    assert (sample.text, sample.target) == ("Once", "upon")


def test_a_shot_without_an_answer_is_named(toy: Toy) -> None:
    rows = ({"question": "q", "answer": "a"}, {"question": "q"})
    shots = SplitRows("shots", rows, "local", "0" * 64)
    with pytest.raises(TaskError, match="^toy_knowmem_f: shots/1: .*'answer' is undefined"):
        prefix(generation(toy), shots)


def test_first_prompts(toy: Toy) -> None:
    def first(name: str) -> str:
        spec = load_registry([toy.tasks]).tasks[name]
        return load_samples(spec, DataOptions(toy.data), 1).samples[0].text

    shots = "".join(f"Question: Which gate is {n}?\nAnswer: gate {n}\n\n" for n in (3, 4))
    assert first("toy_knowmem_f") == f"{shots}Question: Which gate is 0?\nAnswer: "
    base = toy.data / "toy" / "set"
    assert first("toy_verbmem") == read_lines(base / "verbmem" / "forget.jsonl")[0]["prompt"]
    assert first("toy_privleak") == read_lines(base / "privleak" / "forget.jsonl")[0]["text"]


# Requests.


def plan_of(toy: Toy, name: str, limit: int | None = None) -> TaskSamples:
    return load_samples(load_registry([toy.tasks]).tasks[name], DataOptions(toy.data), limit)


def requests_of(plan: TaskSamples, protocol: str, seed: int = 0) -> list[Any]:
    settings = Settings(protocol=protocol, dtype="fp32", device="cpu", seed=seed, ppl_lower=False)
    found = [plan.spec.requests(sample, settings) for sample in plan.samples]
    return [request for ((request,),) in found]


def test_generate_requests_under_muse_are_greedy(toy: Toy) -> None:
    plan = plan_of(toy, "toy_knowmem_f", 2)
    assert requests_of(plan, "muse", 5) == [
        Generate(f"toy_knowmem_f:forget_qa/{i}", plan.samples[i].text, 8, ("\n\n", "Question:"))
        for i in range(2)
    ]


def test_zhang2025_samples_verbmem_and_leaves_the_rest(toy: Toy) -> None:
    verbmem = plan_of(toy, "toy_verbmem")
    greedy, sampled = requests_of(verbmem, "muse", 7), requests_of(verbmem, "zhang2025", 7)
    assert {r.sampling for r in greedy} == {None}
    assert {r.sampling for r in sampled} == {Sampling(temperature=0.9, top_k=50, seed=7)}
    assert [(r.id, r.prompt, r.max_new_tokens) for r in sampled] == [
        (r.id, r.prompt, r.max_new_tokens) for r in greedy
    ]
    knowmem = plan_of(toy, "toy_knowmem_f")
    assert requests_of(knowmem, "zhang2025", 7) == requests_of(knowmem, "muse", 7)


# The benchmark's own prompts, from real rows, built here by hand.


def read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().decode("utf-8").rstrip("\n").split("\n")
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "side"), [("news_knowmem_f", "forget"), ("news_knowmem_r", "retain")]
)
def test_knowmem_prompts(muse_data: Path, name: str, side: str) -> None:
    base = muse_data / "muse-bench" / "MUSE-News" / "knowmem"
    shots = read_lines(base / f"{side}_qa_icl.jsonl")
    rows = read_lines(base / f"{side}_qa.jsonl")
    assert (len(shots), len(rows)) == (10, 100)
    prefix = ""
    for shot in shots:
        prefix += "Question: " + shot["question"] + "\nAnswer: " + shot["answer"] + "\n\n"
    expected = [prefix + "Question: " + row["question"] + "\nAnswer: " for row in rows]

    spec = load_registry().tasks[name]
    plan = load_samples(spec, DataOptions(muse_data), None)
    assert [sample.text for sample in plan.samples] == expected
    assert [sample.target for sample in plan.samples] == [row["answer"] for row in rows]
    assert expected[0].count("Question: ") == 11
    assert expected[0].endswith("\nAnswer: ")


def test_verbmem_prompts(muse_data: Path) -> None:
    rows = read_lines(muse_data / "muse-bench" / "MUSE-News" / "verbmem" / "forget.jsonl")
    plan = load_samples(load_registry().tasks["news_verbmem"], DataOptions(muse_data), None)
    assert [sample.text for sample in plan.samples] == [row["prompt"] for row in rows]
    assert [sample.target for sample in plan.samples] == [row["gt"] for row in rows]


# Scores again.


@pytest.mark.parametrize(
    ("metric", "text", "found"),
    [
        ("rougeL", "a-" * 5000, 5000),
        ("rougeL", "aé" * 5000, 5000),  # one word of Unicode
        ("rougeL_unicode", "東" * 5000, 5000),  # no word of ASCII
        ("rougeL_unicode", "㍿" * 2000, 8000),  # four characters each
        ("rougeL_recall_sets", "! " * 5000, 5000),  # signs are compared too
    ],
)
def test_a_record_of_more_words_than_a_run_has_is_not_compared(
    toy: Toy, metric: str, text: str, found: int
) -> None:
    spec = generation(toy).model_copy(update={"metric": metric})
    record = GenerationRecord(
        task=spec.task, id="a/0", prompt="", output=text, target="a", n_tokens=1, score=0, scores={}
    )
    with pytest.raises(MetricError, match=f"^{found} words, which no run of this task has"):
        spec.rescore(record)
