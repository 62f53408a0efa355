"""From rows to prompts and targets, by the templates of a task file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from jinja2 import StrictUndefined, Template
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unlearnbench.data import Row, SplitRows
from unlearnbench.errors import DataError, TaskError, one_line
from unlearnbench.tasks import GenerationTask, LikelihoodTask

__all__ = ["first_prompt", "fewshot_prefix", "render_field"]

# keep_trailing_newline and StrictUndefined as in lm-eval: a template means the same in both.
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


@lru_cache(maxsize=256)
def _compile(template: str) -> tuple[Template, frozenset[str]]:
    """The template, and the names of the fields that it uses."""
    used = find_undeclared_variables(_ENVIRONMENT.parse(template))
    return _ENVIRONMENT.from_string(template), frozenset(used)


def render_field(template: str, row: Row, where: str) -> str:
    """Fill one template from one row.

    Raises:
        TaskError: the template is wrong, or names a field that the row does not have.
        DataError: a field that the template uses is not text, a number or a truth value.
    """
    try:
        compiled, used = _compile(template)
        return compiled.render(_plain(row, used, where))
    except DataError:
        raise
    except Exception as error:  # a template is a stranger's program and can fail in any way
        raise TaskError(f"{where}: template {template!r} fails: {one_line(error, 200)}") from None


def _plain(row: Row, used: frozenset[str], where: str) -> Mapping[str, object]:
    fields = {key: row[key] for key in used if row.get(key) is not None}
    for key, value in fields.items():
        if not isinstance(value, (str, int, float)):
            raise DataError(f"{where}: field {key!r} holds {type(value).__name__}, not text")
    return fields


def fewshot_prefix(spec: GenerationTask, shots: SplitRows | None) -> str:
    """The text before every question: the first ``num_fewshot`` rows, answered, in file order."""
    if shots is None:
        return ""
    if len(shots.rows) < spec.num_fewshot:
        raise DataError(
            f"{spec.task}: split {shots.split!r} has {len(shots.rows)} rows, and the prompt needs "
            f"{spec.num_fewshot} shots"
        )
    parts = []
    for index, row in enumerate(shots.rows[: spec.num_fewshot]):
        where = f"{spec.task}: {shots.split}/{index}"
        question = render_field(spec.doc_to_text, row, where)
        answer = render_field(spec.doc_to_target, row, where)
        parts.append(f"{question}{spec.target_delimiter}{answer}{spec.fewshot_delimiter}")
    return "".join(parts)


def first_prompt(spec: GenerationTask | LikelihoodTask, splits: Mapping[str, SplitRows]) -> str:
    """The first prompt (or text to score) of a task, as a model would get it."""
    split = spec.test_split if isinstance(spec, GenerationTask) else spec.member_split
    prefix = ""
    if isinstance(spec, GenerationTask):
        prefix = fewshot_prefix(spec, splits.get(spec.fewshot_split or ""))
    return prefix + render_field(spec.doc_to_text, splits[split].rows[0], f"{spec.task}: {split}/0")
