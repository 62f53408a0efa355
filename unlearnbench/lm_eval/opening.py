"""lm-eval's tasks of one command made ready, before any model is loaded. Light to import."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlearnbench.lm_eval.suite import Suite

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class Ask:
    """How lm-eval's tasks are to be asked; the names are the command line's."""

    limit: int | float | None
    chat_template: bool
    gen_kwargs: Mapping[str, object]
    trust: bool
    batch_size: int | None
    progress: bool


@contextmanager
def _data_folder(root: str | Path | None) -> Iterator[None]:
    """Our own tasks under lm-eval look for their rows where the environment says."""
    before = os.environ.get("UNLEARNBENCH_DATA")
    if root is not None:
        os.environ["UNLEARNBENCH_DATA"] = str(root)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("UNLEARNBENCH_DATA", None)
        else:
            os.environ["UNLEARNBENCH_DATA"] = before


def open_suite(
    names: Sequence[str],
    include_path: Sequence[str | Path],
    root: str | Path | None,
    ask: Ask,
    others: bool,
) -> Suite:
    """lm-eval's tasks with their data; one that cannot be loaded does not keep the others.

    others: whether tasks of ours are run too.

    Raises:
        OptionError: lm-eval is not installed.
        TaskError: a name is unknown, or a user's task file would run Python.
        DataError: nothing could be loaded, and there is nothing else to run.
    """
    from unlearnbench.lm_eval.suite import Suite
    from unlearnbench.lm_eval.their_tasks import load_tasks

    with _data_folder(root):
        loaded = load_tasks(names, include_path, ask.trust)
    if loaded.tasks or others:
        for line in loaded.failed.values():
            log.warning("%s; the other tasks are run first", line)
    suite = Suite(
        loaded,
        limit=ask.limit,
        chat_template=ask.chat_template,
        gen_kwargs=ask.gen_kwargs,
        trust=ask.trust,
        batch_size=ask.batch_size,
        progress=ask.progress,
    )
    if not loaded.tasks and not others:
        suite.raise_failed()
    return suite
