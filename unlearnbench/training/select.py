"""Keep the first checkpoint that knows no more than the retrained model: the benchmark's rule."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from transformers import TrainerCallback

from unlearnbench.checkpoints.origin import Evaluated, Selection
from unlearnbench.errors import OptionError, TrainingError, one_line
from unlearnbench.results import LikelihoodRecord, RunResult, TaskResult
from unlearnbench.runs.folder import RunFolder, read_run
from unlearnbench.tasks.rows import limited_count
from unlearnbench.training.options import SelectOptions
from unlearnbench.training.output import write_text
from unlearnbench.util.process import is_main, process_count

ScoreCheckpoint = Callable[[Path, SelectOptions, Path], RunResult]
"""Evaluates the checkpoint in a folder as the options say; its run goes below the second folder."""

log = logging.getLogger("unlearnbench")

_EVALUATED = TypeAdapter(list[Evaluated])
RULE = "the first evaluated checkpoint whose score is at or below the retrained model's"


@dataclass
class Selector(TrainerCallback):
    """Evaluates during training, as any checkpoint is, and stops at the first one that meets the
    rule.
    """

    options: SelectOptions
    task: str
    threshold: float
    home: Path
    tokenizer: Any
    score: ScoreCheckpoint
    epoch: int = 1
    evaluated: list[Evaluated] = field(default_factory=list)
    whole_model: Callable[[], Any] = field(init=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Take over what was evaluated before an interruption, up to the checkpoint gone on from;
        later steps come again.
        """
        if is_main() and self._kept.is_file():
            found = _read_evaluated(self._kept)
            self.evaluated = [entry for entry in found if entry.step <= state.global_step]

    @property
    def _kept(self) -> Path:
        return self.home / "evaluated.json"

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Evaluate every so many steps, and after the last one."""
        step = int(state.global_step)
        every = self.options.eval_steps or self.epoch
        if step % every and step != state.max_steps:
            return
        model = self.whole_model()
        if _on_main(lambda: self._evaluate(step, model)):
            control.should_training_stop = True
            control.should_save = False  # going on from here would train beyond the chosen step

    def _evaluate(self, step: int, model: Any) -> bool:
        folder = self.home / f"step-{step}"
        save_merged(model, folder)
        self.tokenizer.save_pretrained(folder)
        result = self.score(folder, self.options, self.home / "runs")
        self.evaluated.append(Evaluated(step=step, scores=_scores(result)))
        write_text(self._kept, _EVALUATED.dump_json(self.evaluated).decode())
        score = self.evaluated[-1].scores[self.task]
        met = score <= self.threshold
        log.info("step %d: %s %.1f, to reach %.1f", step, self.task, score, self.threshold)
        shutil.rmtree(folder)  # training stops here, or goes on without it
        return met

    def selection(self) -> Selection:
        """What was evaluated and chosen."""
        reached = self.evaluated[-1].scores[self.task] <= self.threshold
        if not reached:
            log.warning(
                "no checkpoint brought %s to %.1f or below; the last one is kept",
                self.task,
                self.threshold,
            )
        return Selection(
            rule=RULE,
            task=self.task,
            threshold=self.threshold,
            evaluated=tuple(self.evaluated),
            chosen_step=self.evaluated[-1].step,
            reached=reached,
        )


def save_merged(model: Any, folder: Path) -> None:
    """Save a model under training as an ordinary checkpoint; an adapter goes in merged."""
    import copy

    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(folder)


def _read_evaluated(path: Path) -> list[Evaluated]:
    try:
        return _EVALUATED.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path} cannot be read ({one_line(error, 100)}); remove the training's folder and "
            "start anew"
        ) from None


def _on_main(run: Any) -> bool:
    """Run on the main process and tell the others the answer."""
    answer = [run() if is_main() else False]
    if process_count() > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(answer)
    return bool(answer[0])


def _scores(result: RunResult) -> dict[str, float]:
    found = {name: t.value if t.value is not None else t.auc for name, t in result.tasks.items()}
    return {name: value for name, value in found.items() if value is not None}


def make_selector(
    options: SelectOptions,
    names: Sequence[str],
    home: Path,
    tokenizer: Any,
    score: ScoreCheckpoint,
) -> Selector:
    """Find the task that decides, and its threshold.

    names: the tasks that ``options.eval_tasks`` stands for.

    Raises:
        OptionError: no or several tasks could decide, or the reference does not have it.
        ResultError: the reference run is damaged.
    """
    likely = [name for name in names if name.endswith("knowmem_f")]
    task = options.select_task or (likely[0] if len(likely) == 1 else None)
    if task is None or task not in names:
        raise OptionError(
            f"--eval-tasks {options.eval_tasks}: name the task that decides with "
            f"--select-task, one of {', '.join(names)}"
        )
    threshold = _threshold(options.retrained or "", task, options.eval_limit)
    return Selector(options, task, threshold, home, tokenizer, score)


def _threshold(reference: str, task: str, limit: int | None) -> float:
    """The retrained model's score on the samples that the models under training are scored on."""
    with contextlib.suppress(ValueError):
        score = float(reference)
        if not math.isfinite(score):
            raise OptionError(f"--retrained {reference}: use a run folder or a score")
        if limit is not None:
            log.warning(
                "--retrained %s with --eval-limit %d: that score has to be one of the same first "
                "%d rows; the retrained model's run folder gives it",
                reference,
                limit,
                limit,
            )
        return score
    folder = Path(reference)
    if not (folder / "run.json").is_file():
        raise OptionError(
            f"--retrained {reference}: no run.json there; give a run folder of the retrained "
            "model, or its score"
        )
    found = read_run(folder).tasks.get(task)
    if found is None or found.value is None:
        raise OptionError(f"--retrained {reference} has no score for {task}; evaluate it first")
    rows = _rows_of(folder, task, found)
    if rows is not None:
        return _score_on(folder, task, rows, limit, found.value)
    if limit is not None:
        raise OptionError(
            f"--eval-limit: {task} of {folder} has a score of all its texts only; leave it out"
        )
    return found.value


@dataclass(frozen=True)
class _Rows:
    """Scores by the row of the split that the task asks, 0 to 1, and how many rows that has."""

    split: str
    total: int
    scores: dict[str, float]


def _rows_of(folder: Path, task: str, found: TaskResult) -> _Rows | None:
    """None where the score is no mean over rows, or an imported run does not number them."""
    if found.auc is not None:
        return None
    records = RunFolder(folder).read_records(task, found.records_sha256)
    scores = {r.id: r.score for r in records if not isinstance(r, LikelihoodRecord)}
    splits = {name.rpartition("/")[0] for name in scores}
    asked = [part for part in found.data if splits == {part.split}]
    return _Rows(asked[0].split, asked[0].rows, scores) if asked else None


def _score_on(folder: Path, task: str, rows: _Rows, limit: int | None, whole: float) -> float:
    """The mean over the first ``limit`` rows, or all; ``whole``: over those that were answered."""
    wanted = [f"{rows.split}/{i}" for i in range(limited_count(rows.total, limit))]
    missing = [name for name in wanted if name not in rows.scores]
    if missing:
        raise OptionError(
            f"--retrained {folder}: {task}: {len(missing)} of the {len(wanted)} rows that models "
            "under training are scored on are missing there; evaluate it without --limit, or give "
            "--eval-limit"
        )
    if len(wanted) == len(rows.scores):
        return whole  # to the last digit
    return 100 * sum(rows.scores[name] for name in wanted) / len(wanted)
