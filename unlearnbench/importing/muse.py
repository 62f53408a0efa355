"""Result folders of the MUSE code, in both layouts in use.

{knowmem,verbmem,privleak}/out/<corpus>/<model>/...     <model>/{knowmem_f,...}/{log,agg}.json
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import OptionError, ResultError, one_line
from unlearnbench.importing.base import Found, Source
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.spec import TaskSpec

log = logging.getLogger("unlearnbench")

CORPORA = {"news": "bbc", "books": "hp"}
SKIPPED = ("scal", "sust", "forget_all")
"""Other experiments than ours: more forget data, or several forgettings one after another."""


@dataclass(frozen=True)
class _Part:
    """One kind of result in the first layout: where it lies and what marks a model's folder."""

    top: str
    inner: str
    task: str
    mark: str


PARTS = (
    _Part("verbmem", "forget", "verbmem", "history.json"),
    _Part("knowmem", "forget", "knowmem_f", "history.json"),
    _Part("knowmem", "retain", "knowmem_r", "history.json"),
    _Part("privleak", "", "privleak", "forget.json"),
)


def read_results(folder: Path, registry: Registry, prefix: str) -> Iterator[Found]:
    """Every model's results of one corpus, in name order.

    Raises:
        OptionError: the prefix is no corpus of MUSE.
        ResultError: a file is damaged.
    """
    if prefix not in CORPORA:
        raise OptionError(f"--task-prefix {one_line(prefix)}: MUSE has {' and '.join(CORPORA)}")
    found: dict[str, Found] = {}
    reader = _Reader(folder, registry, prefix, found)
    for part in PARTS:
        reader.first_layout(part)
    reader.second_layout()
    yield from (found[name] for name in sorted(found))


@dataclass
class _Reader:
    root: Path
    registry: Registry
    prefix: str
    found: dict[str, Found]

    def _model(self, name: str) -> Found:
        return self.found.setdefault(name, Found(name, Source(self.root)))

    def first_layout(self, part: _Part) -> None:
        top = self.root / part.top / "out" / CORPORA[self.prefix]
        for mark in sorted(top.rglob("*.json")):
            place = mark.parent.relative_to(top)
            skipped = [name for name in SKIPPED if name in place.parts]
            if skipped:
                log.info("%s: skipped, %s is another experiment", mark.parent, skipped[0])
            elif mark.name == part.mark and (not part.inner or place.name == part.inner):
                model = self._model(str(place.parent if part.inner else place))
                self._take(part.task, model, mark.parent)
            elif mark.name == "out.json" and place.name == part.inner:
                self._without_history(mark, part)

    def _without_history(self, mark: Path, part: _Part) -> None:
        if not (mark.parent / part.mark).is_file():
            log.warning("%s states a result without outputs: left out", mark)

    def _take(self, kind: str, model: Found, folder: Path) -> None:
        spec = self.registry.tasks[f"{self.prefix}_{kind}"]
        if spec.has_prompts:
            _take_answers(spec, model, folder / "history.json", folder / "out.json")
            return
        splits = {name: folder / f"{name}.json" for name in spec.asked_splits}
        missing = [path.name for path in splits.values() if not path.is_file()]
        if missing:
            log.warning("%s: no %s, so PrivLeak is left out", folder, ", ".join(missing))
            return
        texts = {name: model.source.read(path) for name, path in splits.items()}
        _take_texts(spec, model, texts, folder / "auc.json")

    def second_layout(self) -> None:
        for kind in ("verbmem", "knowmem_f", "knowmem_r", "privleak"):
            folders = {kind, "verbmem_f"} if kind == "verbmem" else {kind}
            for log_file in sorted(self.root.rglob("log.json")):
                if log_file.parent.name in folders:
                    place = log_file.parent.parent.relative_to(self.root)
                    name = str(place) if place.parts else self.root.resolve().name
                    self._take_log(kind, self._model(name), log_file)

    def _take_log(self, kind: str, model: Found, log_file: Path) -> None:
        spec = self.registry.tasks[f"{self.prefix}_{kind}"]
        if spec.has_prompts:
            _take_answers(spec, model, log_file, log_file.with_name("agg.json"))
            return
        texts = model.source.read(log_file)
        if not isinstance(texts, dict):
            raise ResultError(f"{log_file}: expected texts by split")
        _take_texts(spec, model, texts, log_file.with_name("auc.json"))


def _take_answers(spec: TaskSpec, model: Found, history: Path, agg: Path) -> None:
    rows = model.source.read(history)
    if not isinstance(rows, list) or not rows:
        raise ResultError(f"{history}: expected a list of answers")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ResultError(f"{history}: answer {number} is no object")
        row = {**row, "output": row.get("response"), "target": row.get("gt")}
        model.answer(spec, number, row)
    stated = model.source.read(agg) if agg.is_file() else {}
    for figure, value in stated.items() if isinstance(stated, dict) else ():
        if figure.startswith("mean_"):
            model.state(spec.task, figure, value)


def _take_texts(spec: TaskSpec, model: Found, texts: dict[str, object], auc_file: Path) -> None:
    for split in spec.asked_splits:
        rows = texts.get(split)
        if not isinstance(rows, list) or not rows:
            raise ResultError(f"{auc_file.parent}: {model.model}: no texts of {split}")
        for number, row in enumerate(rows):
            scores = row.get("ppl") if isinstance(row, dict) else None
            model.text(spec, split, number, scores)
    stated = model.source.read(auc_file) if auc_file.is_file() else {}
    pair = "_".join(spec.asked_splits)
    for key, value in stated.items() if isinstance(stated, dict) else ():
        if key == pair and isinstance(value, dict):
            for attack, auc in value.items():
                model.state(spec.task, f"auc_{attack}", auc)
        elif key.startswith(f"{pair}_"):
            model.state(spec.task, f"auc_{key[len(pair) + 1 :]}", value)
