"""Everything that may move a model's answers to a task: what an interrupted task must have in
common with the command that goes on with it.
"""

from __future__ import annotations

import contextlib
import sys
from importlib.metadata import PackageNotFoundError, version

from unlearnbench.results import Checkpoint, Condition, Settings
from unlearnbench.runs.folder import describe_configuration
from unlearnbench.runs.provenance import describe_environment
from unlearnbench.tasks.samples import Plan


def describe_task(
    plan: Plan,
    checkpoint: Checkpoint,
    settings: Settings,
    condition: Condition,
    batch_size: int | None,
) -> dict[str, str]:
    """Fact by name, in words that a message can show.

    More than what makes two runs comparable: the batch size, the libraries, the number of threads
    and the processor move the last bits of a sum, and one task's answers are to be of one piece.
    """
    facts = describe_configuration(checkpoint, settings, condition)
    facts |= {
        "task": plan.spec.task,
        "task version": plan.spec.version,
        "task definition": plan.task_sha256[:12],
        "samples": len(plan.samples),
    }
    facts |= {f"data of split {part.split!r}": part.sha256[:12] for part in plan.data}
    environment = describe_environment(settings.device, settings.dtype, batch_size)
    facts |= {
        "batch size": environment.batch_size,
        "unlearnbench's source": environment.source_sha256[:12],
        "device name": environment.device,
        "threads": environment.threads,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["processor"] = torch.backends.cpu.get_cpu_capability()
    packages = dict(environment.packages)
    with contextlib.suppress(PackageNotFoundError):  # our own backends have no package
        packages[condition.options.backend] = version(condition.options.backend)
    facts |= {f"package {name}": found for name, found in packages.items()}
    return {name: str(fact) for name, fact in facts.items()}
