from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy
from unlearnbench.errors import DataError, TaskError
from unlearnbench.tasks.prompts import fewshot_prefix, first_prompt, render_field
from unlearnbench.tasks.rows import DataOptions, SplitRows, load_splits
from unlearnbench.tasks.samples import make_plan
from unlearnbench.tasks.spec import GenerationTask, LikelihoodTask, load_registry

WHERE = "toy: forget/7"


def render(template: str, **row: object) -> str:
    return render_field(template, row, WHERE)


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        ("{{q}}", {"q": "x"}, "x"),
        ("Question: {{q}}\nAnswer: ", {"q": "x"}, "Question: x\nAnswer: "),
        # Line ends at the end stay, of the template and of the field.
        ("{{q}}\n", {"q": "x\n"}, "x\n\n"),
        ("{{q}}\r\n{{q}}", {"q": " x "}, " x \n x "),
        # A text is no template, and nothing is escaped as in HTML.
        ("{{q}}", {"q": "{{ a }} {% if %} {# #}"}, "{{ a }} {% if %} {# #}"),
        ("{{q}}", {"q": "<b> & 'c' \"d\""}, "<b> & 'c' \"d\""),
        ("{{q}}", {"q": "é\u2028\ud800"}, "é\u2028\ud800"),
        ("{{n}} {{x}} {{b}}", {"n": 3, "x": 1.5, "b": True}, "3 1.5 True"),
        ("{{q|upper}}{% if a %}!{% endif %}", {"q": "x", "a": "y"}, "X!"),
        ("fixed", {"q": "x"}, "fixed"),
    ],
)
def test_a_field(template: str, row: dict[str, Any], text: str) -> None:
    assert render(template, **row) == text


@pytest.mark.parametrize(
    ("template", "row", "says"),
    [
        ("{{a}}", {"q": "x"}, "'a' is undefined"),
        ("{{a}}", {"a": None}, "'a' is undefined"),  # Arrow adds nulls where a row has no field
        ("{{q}} {% if a %}b{% endif %}", {"q": "x"}, "'a' is undefined"),
        ("{{q.a}}", {"q": "x"}, "has no attribute 'a'"),
        ("{{q", {"q": "x"}, "unexpected end of template"),
        ("{% if q %}", {"q": "x"}, "fails"),
        ("{{q|nofilter}}", {"q": "x"}, "No filter named 'nofilter'"),
    ],
)
def test_a_template_that_does_not_fit(template: str, row: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskError) as caught:
        render(template, **row)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: template {template!r} fails: ")
    assert says in message
    assert message.isprintable()


@pytest.mark.parametrize(
    "template",
    [
        "{{ q + 1 }}",
        "{{ 1 // 0 }}",
        "{{ q() }}",
        "{{ q | round }}",
        "{{ '%d' % q }}",
        "{{ q.encode('ascii') }}",
        "{{ range(10 ** 9) }}",
        "{% include 'x' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_that_fails_as_it_runs(template: str) -> None:
    with pytest.raises(TaskError) as caught:
        render(template, q="é")
    assert str(caught.value).startswith(f"{WHERE}: template {template!r} fails: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ q['__class__'] }}",
        "{{ q|attr('__class__') }}",
        "{{ '{0.__class__}'.format(q) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__.os.getcwd() }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
    ],
)
def test_the_sandbox(template: str) -> None:
    with pytest.raises(TaskError, match="is unsafe") as caught:
        render(template, q="x")
    assert str(caught.value).startswith(f"{WHERE}: template ")


@pytest.mark.parametrize("value", [["x"], {"a": "x"}, []])
def test_a_field_that_is_no_text(value: object) -> None:
    with pytest.raises(DataError) as caught:
        render("{{q}} {{a}}", q="x", a=value)
    message = str(caught.value)
    assert message == f"{WHERE}: field 'a' holds {type(value).__name__}, not text"


def test_a_field_that_no_template_uses_may_be_anything() -> None:
    assert render("{{q}}", q="x", choices=["y", "z"], source={"id": 3}) == "x"


# Few-shot prompts.


def generation(toy: Toy, name: str = "toy_knowmem_f") -> GenerationTask:
    spec = load_registry([toy.tasks]).tasks[name]
    assert isinstance(spec, GenerationTask)
    return spec


SHOTS = SplitRows(
    "shots", tuple({"question": f"q{i}", "answer": f"a{i}"} for i in range(3)), "local", "0" * 64
)


def test_shots_in_file_order(toy: Toy) -> None:
    expected = "Question: q0\nAnswer: a0\n\nQuestion: q1\nAnswer: a1\n\n"
    assert fewshot_prefix(generation(toy), SHOTS) == expected


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
    assert fewshot_prefix(generation(toy).model_copy(update=changes), SHOTS) == expected


def test_blanks_of_a_shot_are_kept(toy: Toy) -> None:
    shots = SplitRows("shots", ({"question": " q ", "answer": " a\n"},) * 2, "local", "0" * 64)
    assert fewshot_prefix(generation(toy), shots) == "Question:  q \nAnswer:  a\n\n\n" * 2


def test_fewer_shots_than_the_prompt_needs(toy: Toy) -> None:
    shots = SplitRows("shots", ({"question": "q", "answer": "a"},), "local", "0" * 64)
    with pytest.raises(DataError, match="'shots' has 1 rows, and the prompt needs 2"):
        fewshot_prefix(generation(toy), shots)


def test_no_shots(toy: Toy) -> None:
    assert fewshot_prefix(generation(toy, "toy_verbmem"), None) == ""


def test_a_shot_without_an_answer_is_named(toy: Toy) -> None:
    rows = ({"question": "q", "answer": "a"}, {"question": "q"})
    shots = SplitRows("shots", rows, "local", "0" * 64)
    with pytest.raises(TaskError, match="^toy_knowmem_f: shots/1: .*'answer' is undefined"):
        fewshot_prefix(generation(toy), shots)


def test_first_prompts(toy: Toy) -> None:
    def first(name: str) -> str:
        spec = load_registry([toy.tasks]).tasks[name]
        return first_prompt(spec, load_splits(spec, DataOptions(toy.data)))

    shots = "".join(f"Question: Which gate is {n}?\nAnswer: gate {n}\n\n" for n in (3, 4))
    assert first("toy_knowmem_f") == f"{shots}Question: Which gate is 0?\nAnswer: "
    base = toy.data / "toy" / "set"
    assert first("toy_verbmem") == read_lines(base / "verbmem" / "forget.jsonl")[0]["prompt"]
    assert first("toy_privleak") == read_lines(base / "privleak" / "forget.jsonl")[0]["text"]


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
    plan = make_plan(spec, DataOptions(muse_data), None)
    assert [sample.text for sample in plan.samples] == expected
    assert [sample.target for sample in plan.samples] == [row["answer"] for row in rows]
    assert first_prompt(spec, plan.splits) == expected[0]
    assert expected[0].count("Question: ") == 11
    assert expected[0].endswith("\nAnswer: ")


def test_verbmem_prompts(muse_data: Path) -> None:
    rows = read_lines(muse_data / "muse-bench" / "MUSE-News" / "verbmem" / "forget.jsonl")
    plan = make_plan(load_registry().tasks["news_verbmem"], DataOptions(muse_data), None)
    assert [sample.text for sample in plan.samples] == [row["prompt"] for row in rows]
    assert [sample.target for sample in plan.samples] == [row["gt"] for row in rows]


def test_privleak_texts(muse_data: Path) -> None:
    base = muse_data / "muse-bench" / "MUSE-News" / "privleak"
    spec = load_registry().tasks["news_privleak"]
    assert isinstance(spec, LikelihoodTask)
    plan = make_plan(spec, DataOptions(muse_data), None)
    rows = [*read_lines(base / "forget.jsonl"), *read_lines(base / "holdout.jsonl")]
    assert [sample.text for sample in plan.samples] == [row["text"] for row in rows]
    assert [sample.split for sample in plan.samples] == ["forget"] * 100 + ["holdout"] * 100
