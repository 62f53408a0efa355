"""From rows to prompts and targets, by the templates of a task file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from unlearnbench.errors import DataError, TaskError, one_line
from unlearnbench.tasks.rows import Row, SplitRows
from unlearnbench.tasks.spec import GenerationTask, LikelihoodTask
from unlearnbench.tasks.templates import compile_template, fill_template


def render_field(template: str, row: Row, where: str) -> str:
    """Fill one template from one row.

    Raises:
        TaskError: the template is wrong, or names a field that the row does not have.
        DataError: a field that the template uses is not text, a number or a truth value.
    """
    try:
        _, used = compile_template(template)
        return fill_template(template, _plain(row, used, where))
    except DataError:
        raise
    except Exception as error:  # a template is a stranger's program and can fail in any way
        raise TaskError(
            f"{where}: template {_quoted(template)} fails: {one_line(error, 200)}"
        ) from None


def _quoted(template: str) -> str:
    return repr(template if len(template) <= 300 else f"{template[:297]}...")


def _plain(row: Row, used: Iterable[str], where: str) -> Mapping[str, object]:
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
