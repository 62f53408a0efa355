"""Decoding in place of the tasks' own (``--gen-kwargs``): a setting of a run, so runs with and
without never mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from unlearnbench.errors import OptionError, one_line
from unlearnbench.tasks.kinds.generate import GenerationOptions
from unlearnbench.tasks.rows import TaskSamples


def override_decoding(
    tasks: Sequence[TaskSamples], given: Mapping[str, object]
) -> list[TaskSamples]:
    """Put ``given`` in place of the tasks' own decoding, under every protocol. A task's definition,
    and so its hash, changes with it. Raises OptionError for an option that our decoding has not, or
    a value that makes no sense.
    """
    known = GenerationOptions.model_fields
    for key in given:
        if key not in known:
            raise OptionError(
                f"--gen-kwargs: our tasks' decoding has no {one_line(key, 60)}; it has "
                f"{', '.join(known)}"
            )
    if given.get("temperature") and given.get("do_sample") is not True:
        raise OptionError(
            "--gen-kwargs: temperature needs do_sample=True; without it, it is greedy"
        )
    return [replace(task, spec=task.spec.with_decoding(given)) for task in tasks]
