from __future__ import annotations

from typing import Any

import pytest

from unlearnbench.errors import DataError, TaskError
from unlearnbench.tasks.templates import render_field

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


@pytest.mark.parametrize(
    "template",
    [
        *("{{c}}", "{{c + c}}", "{{[c]}}", "{{(c,)}}", "{{[c] ~ ''}}", "{{(c + c) ~ ''}}"),
        *(
            "{{c ~ c}}",
            "{{([1] + [c])|string}}",
            "{{((1,) + c)|trim}}",
            "{{c[:1]}}",
            "{{c|string}}",
        ),
        "{{q.split()}}",
    ],
)
def test_a_list_is_no_text_however_it_is_written(template: str) -> None:
    with pytest.raises(DataError, match=f"^{WHERE}: "):
        render(template, c=["y", "z"], q="a b")


def test_parts_of_lists_are_texts_and_what_they_are_made_of_is_hidden() -> None:
    assert render("{{(c + c)|join('-')}} {{c[0]}} {{c|length}}", c=["y", "z"]) == "y-z-y-z y 2"
    for template in ("{{c.said}}", "{{c._said}}", "{{c['_said']}}"):
        with pytest.raises(TaskError):
            render(template, c=["y"])


def test_a_field_that_no_template_uses_may_be_anything() -> None:
    assert render("{{q}}", q="x", choices=["y", "z"], source={"id": 3}) == "x"
