"""open-unlearning: one ``MUSE_EVAL.json`` or ``TOFU_EVAL.json`` a model, with a value for every
index of a metric.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from unlearnbench.errors import ResultError, one_line
from unlearnbench.importing.base import ModelResults, rows_by_index
from unlearnbench.importing.tofu_eval import ATTACKS, take_texts, take_tofu
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.spec import TaskSpec

log = logging.getLogger("unlearnbench")
METRICS = {
    "forget_verbmem_ROUGE": "verbmem",
    "forget_knowmem_ROUGE": "knowmem_f",
    "retain_knowmem_ROUGE": "knowmem_r",
}
# ROUGE there is stemmed (`use_stemmer=True` in its evals/metrics/utils.py). Our recall is not, so
# `rougeL_recall` and `rouge1_recall` have nothing to be held against.
FIELDS = {"generation": "output", "ground_truth": "target", "rougeL_f1": "rougeL_stem"}


def read_results(folder: Path, registry: Registry, prefix: str) -> Iterator[ModelResults]:
    """A model for every ``MUSE_EVAL.json``, or for a prefix of TOFU's every ``TOFU_EVAL.json``.
    Raises ResultError where one is damaged.
    """
    tofu = prefix.startswith("tofu")
    for path in sorted(folder.rglob("TOFU_EVAL.json" if tofu else "MUSE_EVAL.json")):
        place = path.parent.relative_to(folder)
        found = ModelResults(str(place) if place.parts else folder.resolve().name, folder)
        content = found.read(path)
        if not isinstance(content, dict):
            raise ResultError(f"{path}: expected metrics by name")
        if tofu:
            specs = {spec.task: spec for spec in registry.resolve([prefix])}
            if (leak := f"{prefix}_privleak") in registry.files:
                specs[leak] = registry.tasks[leak]
            used = take_tofu(found, path, content, specs, prefix)
        else:
            used = _take_muse(found, path, content, registry, prefix)
        for name in sorted(set(content) - used):
            log.info("%s: %s is skipped, it has no counterpart here", path, one_line(name, 60))
        yield found


def _take_muse(
    found: ModelResults, path: Path, content: dict[str, object], registry: Registry, prefix: str
) -> set[str]:
    for metric, kind in METRICS.items():
        spec = registry.tasks.get(f"{prefix}_{kind}")
        if metric in content and spec is not None and spec.has_prompts:
            _take_answers(spec, found, path, content[metric])
    spec = registry.tasks.get(f"{prefix}_privleak")
    if spec is not None and spec.needs_reference:
        take_texts(spec, found, path, content)
    return {*METRICS, *ATTACKS}


def _take_answers(spec: TaskSpec, found: ModelResults, path: Path, block: object) -> None:
    rows = rows_by_index(path, block)
    if not rows:
        log.warning("%s: %s states no single answers: left out", path, spec.task)
        return
    for number, row in rows:
        facts = {ours: row.get(theirs) for theirs, ours in FIELDS.items()}
        found.answer(spec, number, {**facts, "prompt": row.get("input", "")})
    if isinstance(block, dict) and "rougeL_f1" in rows[0][1]:
        # MUSE's configurations take the mean of the F1.
        found.state(spec.task, "mean_rougeL_stem", block.get("agg_value"))
