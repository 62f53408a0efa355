"""open-unlearning's ``TOFU_EVAL.json``: losses of answers and what was written, a value a row.

The file does not name its forget set; ``--task-prefix tofu_forget10`` says which it was.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from unlearnbench.errors import OptionError, ResultError
from unlearnbench.importing.base import ModelResults, is_number, rows_by_index
from unlearnbench.metrics.truth import TruthRatio
from unlearnbench.requests import GRADNORM
from unlearnbench.tasks.kinds.answers import AnswerFacts, AnswersTask
from unlearnbench.tasks.kinds.likelihood import LikelihoodTask
from unlearnbench.tasks.spec import TaskSpec

log = logging.getLogger("unlearnbench")
Blocks = Mapping[str, object]
# Where our tasks' names begin otherwise than with the prefix, by the beginning of their metrics'.
_SETS = {"forget": "", "retain": "tofu_retain", "ra": "tofu_real_authors", "wf": "tofu_world_facts"}
_WRITTEN = {
    "generation": "output",
    "ground_truth": "target",
    "rougeL_recall": "rougeL_recall_stem",
    "rouge1_recall": "rouge1_recall_stem",
    "rougeL_f1": "rougeL_stem",
}
_TOKENS = ("extraction_strength", "exact_memorization")
_DERIVED = ("model_utility", "forget_quality", "privleak")
ATTACKS = {
    "mia_min_k": "Min-40%",
    "mia_min_k_plus_plus": "Min-40%++",
    "mia_loss": "PPL",
    "mia_zlib": "PPL/zlib",
    "mia_gradnorm": GRADNORM,
}
"""Their attacks of single texts by name, the headline first, and what ours are called."""


def take_tofu(
    found: ModelResults, path: Path, content: Blocks, specs: Mapping[str, TaskSpec], prefix: str
) -> set[str]:
    """Take over what a file says of the tasks ``specs``; returns the names of what was read.

    Raises:
        OptionError: the prefix is no forget set.
        ResultError: a value of a part that is taken is missing or no finite number, or the rows are
            not as many as the task has.
    """
    if not prefix.startswith("tofu_forget"):
        raise OptionError(
            f"{path} does not say which rows were to be forgotten; give --task-prefix "
            "tofu_forget01, tofu_forget05 or tofu_forget10"
        )
    used = {*_DERIVED, *ATTACKS}
    leak = specs.get(f"{prefix}_privleak")
    if isinstance(leak, LikelihoodTask) and any(name in content for name in ATTACKS):
        take_texts(leak, found, path, content)
    for their, ours in _SETS.items():
        written = f"{their}_Q_A_ROUGE"
        rouge, answers = (
            specs.get(f"{ours or prefix}_{kind}") for kind in ("rouge", "probability")
        )
        if rouge is not None and written in content:
            _take_written(rouge, found, path, content, written)
            used.add(written)
        if isinstance(answers, AnswersTask) and f"{their}_Q_A_Prob" in content:
            used |= _take_losses(answers, found, path, content, their)
    for name in _DERIVED:
        found.state("tofu", name, _mean(content.get(name)))
    return used


def take_texts(spec: TaskSpec, found: ModelResults, path: Path, content: Blocks) -> None:
    """Scores of single texts by every attack that has them all; their sign is ours. The AUC is
    turned: there it is the share of pairs in which the forget text has the lower score, 1 minus
    ours.
    """
    kept: dict[tuple[str, int], dict[str, object]] = {}
    for name, ours in ATTACKS.items():
        block = content.get(name)
        groups = block if isinstance(block, dict) else {}
        rows = {split: rows_by_index(path, groups.get(split)) for split in spec.asked_splits}
        scores = {(s, n): row.get("score") for s, each in rows.items() for n, row in each}
        if ours == spec.headline:
            kept = {place: {} for place in scores}
            if not all(rows.values()):
                log.warning("%s: no %s of single texts, so PrivLeak is left out", path, ours)
                return
        elif scores.keys() != kept.keys() or not all(map(is_number, scores.values())):
            if name in content:
                log.warning("%s: %s is not of every text, and left out", path, name)
            continue
        for place, score in scores.items():
            kept[place][ours] = score
        stated = groups.get("auc", groups.get("agg_value"))
        found.state(spec.task, f"auc_{ours}", stated, turned=True)
    for (split, number), given in kept.items():
        found.text(spec, split, number, given)


def _mean(block: object) -> object:
    return block.get("agg_value") if isinstance(block, dict) else None


def _rows(spec: TaskSpec, path: Path, content: Blocks, name: str) -> dict[int, dict[str, object]]:
    rows = dict(rows_by_index(path, content.get(name)))
    wanted = spec.splits[spec.own_split].rows
    if list(rows) != list(range(wanted)):
        raise ResultError(
            f"{path}: {name} has {len(rows)} rows, and {spec.task} has {wanted}; is it of another "
            "set?"
        )
    return rows


def _take_written(
    spec: TaskSpec, found: ModelResults, path: Path, content: Blocks, name: str
) -> None:
    for number, row in _rows(spec, path, content, name).items():
        facts = {ours: row.get(theirs) for theirs, ours in _WRITTEN.items()}
        found.answer(spec, number, {**facts, "prompt": row.get("input", "")})
    found.state(spec.task, f"mean_{spec.metric}", _mean(content[name]))


def _take_losses(
    spec: AnswersTask, found: ModelResults, path: Path, content: Blocks, their: str
) -> set[str]:
    """Losses of the answer, of the true answer in other words, and of false ones."""
    names = {"loss": f"{their}_Q_A_Prob", "false_losses": f"{their}_Q_A_PERT_Prob"}
    if spec.true_answer is not None:
        names["true_loss"] = f"{their}_Q_A_PARA_Prob"
    blocks = {key: _rows(spec, path, content, name) for key, name in names.items()}
    known = [name for name in _TOKENS if name in content and their == "forget"]
    tokens = {name: _rows(spec, path, content, name) for name in known}
    ratio = next((n for n in (f"{their}_truth_ratio", f"{their}_Truth_Ratio") if n in content), "")
    ratios = _rows(spec, path, content, ratio) if ratio else {}
    mean = "truth_ratio" if their == "forget" else "truth_better"
    texts = dict(rows_by_index(path, content.get(f"{their}_Q_A_ROUGE")))
    for number in blocks["loss"]:
        where = f"{path}: {spec.task}: row {number}"
        losses = {key: _losses(blocks[key], number, name, where) for key, name in names.items()}
        text = texts.get(number, {})
        prompt, answer = (str(text.get(key, "")) for key in ("input", "ground_truth"))
        facts = AnswerFacts.model_validate({"prompt": prompt, "answer": answer, **losses})
        stated = {name: _share(rows[number].get("score"), where) for name, rows in tokens.items()}
        record = spec.of_facts(f"{spec.own_split}/{number}", facts, stated)
        figures = {**record.scores, spec.metric: record.score}
        found.hold_row(record, "probability", blocks["loss"][number].get("prob"), figures)
        if is_number(s := ratios.get(number, {}).get("score")):
            theirs = TruthRatio(1 - 1e-10, s)
            held = theirs.closer_to_one if their == "forget" else theirs.true_better
            found.hold_row(record, mean, held, figures)
        found.records.setdefault(spec.task, []).append(record)
    means = {names["loss"]: "probability", f"{names['loss']}_normalised": "probability_normalised"}
    means |= {ratio: mean} | {name: name for name in tokens}
    for name, figure in means.items():
        found.state(spec.task, f"mean_{figure}", _mean(content.get(name)))
    return {*names.values(), *means}


def _losses(rows: Mapping[int, Mapping[str, object]], at: int, name: str, where: str) -> object:
    """A row's loss, or of false answers a list of them, as many as in the first row."""
    value, first = (loss_of(rows[n].get("avg_loss"), where) for n in (at, 0))
    given, found = (len(x) if isinstance(x, list) else 0 for x in (first, value))
    if bool(found) is not name.endswith("_PERT_Prob"):
        raise ResultError(f"{where}: {name}: avg_loss is {'a list' if found else 'no list'}")
    if found != given:
        raise ResultError(f"{where}: {name}: {found} losses, and row 0 has {given}")
    return value


def loss_of(value: object, where: str) -> object:
    """A loss or a list of them, as numbers; ResultError where one is none."""
    given = value if isinstance(value, list) else [value]
    losses = [float(each) for each in given if is_number(each) and each >= 0]
    if not losses or len(losses) != len(given):
        raise ResultError(f"{where}: a loss is no finite number from 0 up")
    return losses if isinstance(value, list) else losses[0]


def _share(value: object, where: str) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise ResultError(f"{where}: a share is no number from 0 to 1")
    return float(value)
