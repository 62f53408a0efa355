"""What conditions are made with beside the checkpoint, gathered before one is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unlearnbench.conditions.base import Calibration, ConditionSpec, Materials
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.conditions.quantize.calibration import pick_calibration
from unlearnbench.conditions.texts import pick_relearning
from unlearnbench.errors import OptionError, one_line
from unlearnbench.tasks.rows import TaskSamples


def gather(
    specs: Sequence[ConditionSpec],
    options: KernelOptions,
    tasks: Sequence[TaskSamples],
    seed: int,
    answer_blank: str = "auto",
) -> Materials:
    """The texts that ``specs`` need; ``tasks``: those that are run, whose rows may serve.
    ``answer_blank``: as the evaluation places it.

    Raises:
        OptionError, DataError: there are no such texts.
    """
    calibration = None
    if any(spec.calibrated for spec in specs):
        calibration = _calibration(specs, options, tasks, seed)
    if not any(spec.learns for spec in specs):
        return Materials(calibration)
    found = pick_relearning(options, tasks, seed)
    facts = {**found.facts, "answer_blank": answer_blank}
    relearning = replace(found, answer_blank=answer_blank, facts=facts)
    return Materials(calibration, relearning=relearning)


def _calibration(
    specs: Sequence[ConditionSpec], options: KernelOptions, tasks: Sequence[TaskSamples], seed: int
) -> Calibration:
    name = options.calibration
    if not name.endswith(".gguf"):
        return pick_calibration(name, tasks, options.calibration_samples, seed)
    odd = [spec.name for spec in specs if spec.calibrated and not spec.by_matrix]
    if odd:
        raise OptionError(
            f"--calibration {one_line(name, 120)} is an importance matrix, and {odd[0]} needs "
            "texts; run it apart"
        )
    from unlearnbench.conditions.quantize.imatrix import read_calibration

    return read_calibration(Path(name).expanduser())
