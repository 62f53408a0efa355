"""The logs of TOFU's own code (locuslab/tofu): a folder a model, a file a set of rows.

The files do not name the forget set; ``--task-prefix tofu_forget10`` says which it was. They have
the first 300 rows of a larger set, which is what their forget quality is of.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from unlearnbench.errors import OptionError, ResultError
from unlearnbench.importing.base import ModelResults, is_number
from unlearnbench.importing.tofu_eval import loss_of
from unlearnbench.metrics.truth import TruthRatio, probability
from unlearnbench.tasks.kinds.answers import AnswerFacts, AnswersTask
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.spec import TaskSpec

log = logging.getLogger("unlearnbench")
FORGOTTEN = "eval_log_forget.json"
# By file, how our tasks' names begin; that of the forget set is the prefix.
_SETS = {
    FORGOTTEN: "",
    "eval_log.json": "tofu_retain",
    "eval_real_author_wo_options.json": "tofu_real_authors",
    "eval_real_world_wo_options.json": "tofu_world_facts",
}
_ROUGE = {"rougeL_recall": "rougeL_recall_stem", "rouge1_recall": "rouge1_recall_stem"}
_SINGLE = 1e-4
"""Their truth ratios come from losses in single precision."""

Rows = Mapping[str, object]


def read_results(folder: Path, registry: Registry, prefix: str) -> Iterator[ModelResults]:
    """A model for every folder with logs.

    Raises:
        OptionError: the prefix is no forget set.
        ResultError: a file is damaged, or its rows are not those of the task.
    """
    specs = {spec.task: spec for spec in registry.resolve([prefix])}
    for place in sorted({path.parent for name in _SETS for path in folder.rglob(name)}):
        if not prefix.startswith("tofu_forget"):
            raise OptionError(
                f"{place} does not say which rows were to be forgotten; give --task-prefix "
                "tofu_forget01, tofu_forget05 or tofu_forget10"
            )
        inner = place.relative_to(folder)
        found = ModelResults(str(inner) if inner.parts else folder.resolve().name, folder)
        for name, ours in _SETS.items():
            path = place / name
            if path.is_file():
                _take(found, path, specs, ours or prefix)
            else:
                log.warning("%s: no %s, so its tasks are left out", place, name)
        yield found


def _take(found: ModelResults, path: Path, specs: Mapping[str, TaskSpec], which: str) -> None:
    content = found.read(path)
    if not isinstance(content, dict):
        raise ResultError(f"{path}: expected values by name")
    written, answers = (specs.get(f"{which}_{kind}") for kind in ("rouge", "probability"))
    texts = content.get("generated_text")
    if not isinstance(texts, dict):
        raise ResultError(f"{path}: no generated_text by row")
    rows = len(texts)
    for spec in (written, answers):
        if spec is None:
            continue
        wanted = spec.splits[spec.own_split].rows
        if not 0 < rows <= wanted or set(texts) != {str(i) for i in range(rows)}:
            raise ResultError(
                f"{path}: {rows} rows, and {spec.task} has {wanted}; is it of another set?"
            )
        if rows < wanted:
            log.info("%s: the first %d of %d rows of %s", path, rows, wanted, spec.task)
        for number in range(rows):
            where = f"{path}: row {number}"
            text = texts[str(number)]
            if not (isinstance(text, list) and len(text) == 3):
                raise ResultError(f"{where}: generated_text is not a prompt, an output and a truth")
            row = {key: block.get(str(number)) for key, block in content.items() if _is_rows(block)}
            if isinstance(spec, AnswersTask):
                _take_losses(
                    spec, found, where, number, {**row, "prompt": text[0], "answer": text[2]}
                )
            else:
                stated = {ours: row.get(theirs) for theirs, ours in _ROUGE.items()}
                texts_of = {"prompt": text[0], "output": text[1], "target": text[2]}
                found.answer(spec, number, {**stated, **texts_of})


def _is_rows(block: object) -> bool:
    return isinstance(block, dict)


def _take_losses(
    spec: AnswersTask, found: ModelResults, where: str, number: int, row: Rows
) -> None:
    """Losses a token of the answer, of it in other words and of false ones; the first is held
    against its sum and number of tokens, the truth ratio against theirs.
    """
    facts: dict[str, object] = {
        "prompt": row["prompt"],
        "answer": row["answer"],
        "loss": loss_of(row.get("avg_gt_loss"), where),
        "false_losses": loss_of(row.get("average_perturb_loss"), where),
    }
    # Where there are no other words it is the answer's own, of another batch: off by up to 0.1.
    facts["true_loss"] = loss_of(row.get("avg_paraphrased_loss"), where)
    losses = facts["loss"], facts["true_loss"]
    if any(isinstance(loss, list) for loss in losses) or not isinstance(
        facts["false_losses"], list
    ):
        raise ResultError(f"{where}: an answer has one loss, and the false ones a list of them")
    record = spec.of_facts(f"{spec.own_split}/{number}", AnswerFacts.model_validate(facts))
    figures = {**record.scores, spec.metric: record.score}
    total, tokens = row.get("gt_loss"), row.get("num_token_gt")
    if is_number(total) and is_number(tokens) and tokens > 0 and total >= 0:
        found.hold_row(record, "probability", probability(total / tokens), figures)
    if is_number(ratio := row.get("truth_ratio")) and ratio >= 0:
        theirs = TruthRatio(1 - 1e-10, float(ratio))
        stated = {"truth_ratio": theirs.closer_to_one, "truth_better": theirs.true_better}
        for name, value in stated.items():
            found.hold_row(record, name, value, figures, _SINGLE)
    found.records.setdefault(spec.task, []).append(record)
