"""Where and with what runs were measured: what moves a figure a little, and forbids nothing."""

from __future__ import annotations

from collections.abc import Mapping

from unlearnbench.results import Environment
from unlearnbench.runs.entries import Entry, LoadedRun, samples_answers
from unlearnbench.runs.fingerprint import (
    Fingerprint,
    differences,
    environments,
    first_few,
    mixed_versions,
    versions,
)


def machine_notes(entry: Entry, anchors: Mapping[str, Entry]) -> list[str]:
    """A line for each thing that moves figures though they may be compared: packages that differ
    between a run's tasks, and what differs between an entry's runs, and between them and those of
    ``anchors``, by role; of several pairs of runs the first.
    """
    first, *rest = runs = list(entry.runs.values())
    lines = [f"{run.where}: {mixed}" for run in runs if (mixed := mixed_versions(run.result))]
    pairs = {"": [(first, run) for run in rest]}
    for role, anchor in anchors.items():
        shared = [run for run in runs if run.condition in anchor.runs]
        pairs[f"the {role}'s "] = [(anchor.runs[run.condition], run) for run in shared]
    for whose, both in pairs.items():
        found = [(base, run, moved) for base, run in both if (moved := _moved(base, run))]
        if found:
            base, run, moved = found[0]
            more = f" ({len(found) - 1} more of its runs differ too)" if len(found) > 1 else ""
            what = f"{first_few(moved)}{more}"
            lines.append(f"{run.where} was measured otherwise than {whose}{base.where}: {what}")
    return lines


def _moved(base: LoadedRun, run: LoadedRun) -> list[str]:
    """How what the common tasks of two runs were measured with differs; a fact that only one has
    is none. What an imported run was measured with is not known.
    """
    if base.result.imported or run.result.imported:
        return []
    found, theirs = dict[str, None](), environments(base.result)
    for task, environment in environments(run.result).items():
        if task in theirs:
            there, here = _machine(base, theirs[task]), _machine(run, environment)
            shared = [name for name in here if name in there]
            sides = (Fingerprint({name: side[name] for name in shared}) for side in (there, here))
            found |= dict.fromkeys(differences(*sides))
    return list(found)


def _machine(run: LoadedRun, environment: Environment) -> Mapping[str, object]:
    settings, at = run.result.settings, run.condition
    facts: dict[str, object] = {
        f"compute dtype at {at}": settings.dtype,
        f"a weight at {at}": run.bits and f"{run.bits:g} bits",
        "device": settings.device,
        "seed": settings.seed if samples_answers(run.result) else None,
    }
    return Fingerprint.of(facts | versions(environment)).facts
