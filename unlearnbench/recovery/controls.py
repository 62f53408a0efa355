"""Which conditions need a control: the same done to the retrained model, which never knew. What it
gains was taught, not brought back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache

from unlearnbench.conditions import find_condition
from unlearnbench.conditions.base import ConditionSpec, file_of
from unlearnbench.errors import OptionError, PrecisionError, ResultError, one_line
from unlearnbench.results import DEPLOYED, FULL
from unlearnbench.runs.entries import LoadedRun
from unlearnbench.tasks.spec import TaskSpec


@cache
def needs_control(name: str) -> bool:
    """Whether the condition called ``name`` may teach; one that this version lacks is taken not to.
    By the name, because a run's file is anyone's.
    """
    return _known(name).needs_control


def leaves(name: str, task: TaskSpec) -> bool:
    """Whether the condition called ``name`` changes what is asked, and does not fit a task."""
    found = _known(name).asking
    return found is not None and not file_of(found).fits(task)


def _known(name: str) -> ConditionSpec:
    try:
        return find_condition(name)
    except PrecisionError:
        return find_condition(FULL)


def leaves_alone(run: LoadedRun, task: str) -> bool:
    """Whether a run's condition is put to other tasks and leaves this one as it is. Raises
    ResultError where the run says so of a condition that is put to all.
    """
    if not run.task(task).unchanged:
        return False
    if not _known(run.condition).asks:
        raise ResultError(
            f"{run.path} says that {one_line(run.condition, 80)} leaves {one_line(task, 80)} as it "
            "is, which it cannot; evaluate it again"
        )
    return True


def stand_in(name: str, target: Collection[str]) -> str:
    """Which of the target's conditions its row at ``name`` is of: the same one; of what another
    tool deployed the target may have no like, and then our own precision of that name, or full
    precision.
    """
    if not name.startswith(DEPLOYED) or name in target:
        return name
    own = name.removeprefix(DEPLOYED)
    return own if own in target else FULL


def lacking(stand_ins: Mapping[str, str]) -> Iterator[str]:
    """Notes on what stands for the target's run at deployed conditions, by condition."""
    for name, other in sorted(stand_ins.items()):
        if name.startswith(DEPLOYED) and name != other:
            yield (
                f"the target has no run at {name}; its run at {other} stands for what it knows "
                "there"
            )


def require_control(name: str, retrained: Collection[str]) -> None:
    """Raise OptionError where ``name`` needs a control and is not among the retrained model's
    conditions.
    """
    if needs_control(name) and name not in retrained:
        raise OptionError(
            f"{name} needs a control, since it may teach what it seems to bring back: evaluate the "
            f"retrained model under --conditions {name} too, and give --retrained the folder of "
            "its runs"
        )
