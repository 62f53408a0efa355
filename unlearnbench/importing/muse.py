"""Result folders of the MUSE code, in both layouts in use.

{knowmem,verbmem,privleak}/out/<corpus>/<model>/...     <model>/{knowmem_f,...}/{log,agg}.json
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from unlearnbench.errors import OptionError, ResultError, one_line
from unlearnbench.importing.base import ModelResults
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.spec import TaskSpec

log = logging.getLogger("unlearnbench")

CORPORA = {"news": "bbc", "books": "hp"}
SKIPPED = ("scal", "sust", "forget_all")
"""Other experiments than ours: more forget data, or several forgettings one after another."""


# Kinds of results, and where the first layout has them: the folder at the top, and that inside a
# model's, which PrivLeak has not.
KINDS = {
    "verbmem": ("verbmem", "forget"),
    "knowmem_f": ("knowmem", "forget"),
    "knowmem_r": ("knowmem", "retain"),
    "privleak": ("privleak", ""),
}


def read_results(folder: Path, registry: Registry, prefix: str) -> Iterator[ModelResults]:
    """Every model's results of one corpus, in name order. Raises OptionError where the prefix is no
    corpus of MUSE, ResultError where a file is damaged.
    """
    if prefix not in CORPORA:
        raise OptionError(f"--task-prefix {one_line(prefix)}: MUSE has {' and '.join(CORPORA)}")
    models: dict[str, ModelResults] = {}

    def model(name: str) -> ModelResults:
        return models.setdefault(name, ModelResults(name, folder))

    for kind, (top, inner) in KINDS.items():
        spec = registry.tasks[f"{prefix}_{kind}"]
        for name, place in _first_layout(folder / top / "out" / CORPORA[prefix], inner):
            if spec.has_prompts:
                _take_answers(spec, model(name), place / "history.json", place / "out.json")
            else:
                files = {split: place / f"{split}.json" for split in spec.asked_splits}
                missing = [path.name for path in files.values() if not path.is_file()]
                if missing:
                    log.warning("%s: no %s, so PrivLeak is left out", place, ", ".join(missing))
                else:
                    texts = {split: model(name).read(path) for split, path in files.items()}
                    _take_texts(spec, model(name), texts, place / "auc.json")
    for kind in KINDS:
        spec = registry.tasks[f"{prefix}_{kind}"]
        for name, file in _second_layout(folder, kind):
            if spec.has_prompts:
                _take_answers(spec, model(name), file, file.with_name("agg.json"))
            else:
                _take_texts(spec, model(name), model(name).read(file), file.with_name("auc.json"))
    yield from (models[name] for name in sorted(models))


def _first_layout(top: Path, inner: str) -> Iterator[tuple[str, Path]]:
    """Models and their folders of one kind of result, known by a file in it."""
    mark = "history.json" if inner else "forget.json"
    for file in sorted(top.rglob("*.json")):
        place = file.parent.relative_to(top)
        skipped = [name for name in SKIPPED if name in place.parts]
        if skipped:
            log.info("%s: skipped, %s is another experiment", file.parent, skipped[0])
        elif file.name == mark and (not inner or place.name == inner):
            yield str(place.parent if inner else place), file.parent
        elif (file.name, place.name) == ("out.json", inner) and not (file.parent / mark).is_file():
            log.warning("%s states a result without outputs: left out", file)


def _second_layout(root: Path, kind: str) -> Iterator[tuple[str, Path]]:
    folders = {kind, "verbmem_f"} if kind == "verbmem" else {kind}
    for file in sorted(root.rglob("log.json")):
        if file.parent.name in folders:
            place = file.parent.parent.relative_to(root)
            yield str(place) if place.parts else root.resolve().name, file


def _take_answers(spec: TaskSpec, model: ModelResults, history: Path, agg: Path) -> None:
    rows = model.read(history)
    if not isinstance(rows, list) or not rows:
        raise ResultError(f"{history}: expected a list of answers")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ResultError(f"{history}: answer {number} is no object")
        row = {**row, "output": row.get("response"), "target": row.get("gt")}
        model.answer(spec, number, row)
    stated = model.read(agg) if agg.is_file() else {}
    for figure, value in stated.items() if isinstance(stated, dict) else ():
        if figure.startswith("mean_"):
            model.state(spec.task, figure, value)


def _take_texts(spec: TaskSpec, model: ModelResults, texts: object, auc_file: Path) -> None:
    if not isinstance(texts, dict):
        raise ResultError(f"{auc_file.with_name('log.json')}: expected texts by split")
    for split in spec.asked_splits:
        rows = texts.get(split)
        if not isinstance(rows, list) or not rows:
            raise ResultError(f"{auc_file.parent}: {model.model}: no texts of {split}")
        for number, row in enumerate(rows):
            row = row if isinstance(row, dict) else {}
            flat = {key: row[key] for key in row if key.startswith(("PPL", "Min-"))}
            model.text(spec, split, number, row.get("ppl", flat))
    stated = model.read(auc_file) if auc_file.is_file() else {}
    pair = "_".join(spec.asked_splits)
    for key, value in stated.items() if isinstance(stated, dict) else ():
        if key == pair and isinstance(value, dict):
            for attack, auc in value.items():
                model.state(spec.task, f"auc_{attack}", auc)
        elif key.startswith(f"{pair}_"):
            model.state(spec.task, f"auc_{key[len(pair) + 1 :]}", value)
