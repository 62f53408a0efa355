"""Keep the first checkpoint that knows no more than the retrained model: the benchmark's rule."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from pydantic import TypeAdapter
from transformers import TrainerCallback

from unlearnbench.checkpoints.origin import Evaluated, Selection
from unlearnbench.errors import OptionError, TrainingError, one_line
from unlearnbench.results import FULL, LikelihoodRecord, RunResult, TaskResult
from unlearnbench.runs.folder import RunFolder, read_run
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import limited_count
from unlearnbench.tasks.spec import TaskSpec
from unlearnbench.training.corpus import Encoder
from unlearnbench.training.options import CorpusOptions, SelectOptions
from unlearnbench.training.output import write_file
from unlearnbench.util.process import is_main, process_count

ScoreCheckpoint = Callable[..., Sequence[RunResult]]
"""Of (folder, SelectOptions, folder, *conditions): evaluates the checkpoint in the first at every
condition; the runs go below the second."""

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
    save_tokenizer: Callable[[Path], None]
    score: ScoreCheckpoint
    conditions: Sequence[str] = ()
    """That are to be survived: the rule is to be met there too."""
    epoch: int = 1
    evaluated: list[Evaluated] = field(default_factory=list)
    whole_model: Callable[[], Any] = field(init=False)
    as_saved: Callable[[Any], Any] = field(init=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Take over what was evaluated before an interruption, up to the checkpoint gone on from;
        later steps come again.
        """
        path = self.home / "evaluated.json"
        if is_main() and path.is_file():
            try:
                found = _EVALUATED.validate_json(path.read_bytes())
            except (OSError, ValueError) as error:
                raise TrainingError(
                    f"{path} cannot be read ({one_line(error, 100)}); remove the training's folder "
                    "and start anew"
                ) from None
            self.evaluated = [entry for entry in found if entry.step <= state.global_step]

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Evaluate every so many steps, and after the last one."""
        step = int(state.global_step)
        if step % (self.options.eval_steps or self.epoch) and step != state.max_steps:
            return
        model = self.whole_model()
        met = [self._evaluate(step, model) if is_main() else False]
        if process_count() > 1:
            broadcast_object_list(met)
        if met[0]:
            control.should_training_stop = True
            control.should_save = False  # going on from here would train beyond the chosen step

    def _evaluate(self, step: int, model: Any) -> bool:
        """On an ordinary checkpoint; an adapter goes in merged."""
        folder = self.home / f"step-{step}"
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        self.as_saved(model).save_pretrained(folder)
        self.save_tokenizer(folder)
        results = self.score(folder, self.options, self.home / "runs", FULL, *self.conditions)
        scores, *there = map(_scores, results)
        conditions = dict(zip(self.conditions, there, strict=True)) or None
        self.evaluated.append(Evaluated(step=step, scores=scores, conditions=conditions))
        write_file(self.home / "evaluated.json", _EVALUATED.dump_json(self.evaluated))
        log.info("step %d: %s %.1f, to reach %.1f", step, self.task, self._last, self.threshold)
        shutil.rmtree(folder)  # training stops here, or goes on without it
        return self._last <= self.threshold

    @property
    def _last(self) -> float:
        """The largest of all conditions."""
        last = self.evaluated[-1]
        return max(s[self.task] for s in (last.scores, *(last.conditions or {}).values()))

    def selection(self) -> Selection:
        """What was evaluated and chosen."""
        reached = self._last <= self.threshold
        if not reached:
            says = "no checkpoint brought %s to %.1f or below; the last one is kept"
            log.warning(says, self.task, self.threshold)
        return Selection(
            rule=RULE + "".join(f", at {name} too" for name in self.conditions),
            task=self.task,
            threshold=self.threshold,
            rows=self.options.eval_limit or "all",
            evaluated=tuple(self.evaluated),
            chosen_step=self.evaluated[-1].step,
            reached=reached,
        )


def _scores(result: RunResult) -> dict[str, float]:
    found = {name: t.auc if t.value is None else t.value for name, t in result.tasks.items()}
    return {name: value for name, value in found.items() if value is not None}


def make_selector(
    options: SelectOptions,
    corpus: CorpusOptions,
    home: Path,
    encoder: Encoder,
    score: ScoreCheckpoint | None,
    survive: str | None = None,
) -> Selector:
    """Find the task that decides, and its threshold. ``survive``: the conditions at which the rule
    is to be met too. Raises OptionError where none or several tasks could decide, or the reference
    does not have it.
    """
    if score is None:
        raise OptionError("--eval-tasks needs a way to score checkpoints: Job.score")
    specs = {s.task: s for s in load_registry(corpus.include_path).resolve(options.names)}
    names = list(specs)
    likely = [name for name in names if name.endswith("knowmem_f")]
    task = options.select_task or (likely[0] if len(likely) == 1 else None)
    if task is None or task not in names:
        raise OptionError(
            f"--eval-tasks {options.eval_tasks}: name the task that decides with "
            f"--select-task, one of {', '.join(names)}"
        )
    spec = specs[task]
    if encoder.blank_in_answer:
        spec = spec.without_blank() or spec
    threshold = _threshold(options.retrained or "", spec, options.eval_limit)
    conditions = survive.split(",") if survive else ()
    return Selector(options, task, threshold, home, encoder.save, score, conditions)


def _threshold(reference: str, spec: TaskSpec, limit: int | None) -> float:
    """The retrained model's score on the samples that the models under training are scored on."""
    with contextlib.suppress(ValueError):
        score = float(reference)
        if not math.isfinite(score):
            raise OptionError(f"--retrained {reference}: use a run folder or a score")
        if limit is not None:
            says = "--retrained %s with --eval-limit %d: that score has to be one of the same "
            says += "first %d rows; the retrained model's run folder gives it"
            log.warning(says, reference, limit, limit)
        return score
    folder, task = Path(reference), spec.task
    if not (folder / "run.json").is_file():
        raise OptionError(
            f"--retrained {reference}: no run.json there; give a run folder of the retrained "
            "model, or its score"
        )
    found = read_run(folder).tasks.get(task)
    if found is None or found.value is None:
        raise OptionError(f"--retrained {reference} has no score for {task}; evaluate it first")
    if found.version != spec.version:
        raise OptionError(
            f"--retrained {reference}: {task} is of version {found.version:g} there, and models "
            f"under training are scored on {spec.version:g}; --answer-blank chooses between them"
        )
    return _score_on(folder, task, found, found.value, limit)


def _score_on(folder: Path, task: str, found: TaskResult, whole: float, limit: int | None) -> float:
    """The mean over the first ``limit`` rows, or all; ``whole``: over those that were answered."""
    # An AUC is no mean over rows, and an imported run may not number them.
    file = RunFolder(folder)
    records = file.read_records(task, found.records_sha256) if found.auc is None else ()
    scores = {r.id: r.score for r in records if not isinstance(r, LikelihoodRecord)}
    splits = {name.rpartition("/")[0] for name in scores}
    asked = [part for part in found.data if splits == {part.split}]
    if not asked and limit is not None:
        raise OptionError(
            f"--eval-limit: {task} of {folder} has a score of all its texts only; leave it out"
        )
    if not asked:
        return whole
    wanted = [f"{asked[0].split}/{i}" for i in range(limited_count(asked[0].rows, limit))]
    if missing := [name for name in wanted if name not in scores]:
        raise OptionError(
            f"--retrained {folder}: {task}: {len(missing)} of the {len(wanted)} rows that models "
            "under training are scored on are missing there; evaluate it without --limit, or give "
            "--eval-limit"
        )
    if len(wanted) == len(scores):
        return whole  # to the last digit
    return 100 * sum(scores[name] for name in wanted) / len(wanted)
