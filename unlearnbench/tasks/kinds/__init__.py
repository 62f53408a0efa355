"""Kinds of tasks: one file each, found by listing this folder.

A kind's file has ``NAME`` (what a task file's ``output_type`` says) and ``TASK`` (its subclass of
``TaskSpec``). See docs/add-a-kind.md.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from unlearnbench.tasks.spec import TaskSpec


def task_kinds() -> dict[str, type[TaskSpec]]:
    """Every kind of task by its name."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return {module.NAME: module.TASK for module in modules}
