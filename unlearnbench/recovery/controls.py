"""Which conditions need a control: the same done to the retrained model, which never knew. What it
gains was taught, not brought back.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from unlearnbench.conditions import find_condition
from unlearnbench.errors import OptionError, PrecisionError


@cache
def needs_control(name: str) -> bool:
    """Whether the condition called ``name`` may teach; one that this version lacks is taken not to.
    By the name, because a run's file is anyone's.
    """
    try:
        return find_condition(name).needs_control
    except PrecisionError:
        return False


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
