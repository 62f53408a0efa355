"""A sweep as a graph of jobs: train, evaluate the references, then the rest, compare, board.

A job is plain data, so that any process may do it; what it needs of others it finds in the folder.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unlearnbench.errors import OptionError, one_line
from unlearnbench.evaluation.evaluate import find_tasks
from unlearnbench.evaluation.options import Options
from unlearnbench.results import FULL
from unlearnbench.sweep.home import FolderHome, Home, home_of
from unlearnbench.sweep.models import HUB, Candidate, found, grid
from unlearnbench.sweep.resources import LOADED, PROCESS, TRAINED, Demand, estimate
from unlearnbench.sweep.spec import Sweep
from unlearnbench.sweep.store import is_address
from unlearnbench.tasks.spec import TaskSpec
from unlearnbench.util.validation import YamlFile

_FILES = {"model", "data", "forget", "retain", "auxiliary", "unseen", "alternative", "spans"}
_FILES |= {"options", "data_dir", "include_path"}
MOST = 20_000
"""Checkpoints of a sweep: a few lines of a grid can name any number."""


@dataclass(frozen=True)
class SweepJob:
    """One piece of work that a worker does."""

    id: str
    order: Mapping[str, Any]
    """All that a worker has to know, as JSON has it; ``kind`` and ``name`` among it."""
    demand: Demand
    needs: tuple[str, ...] = ()
    """Jobs without whose success this one cannot be done."""
    after: tuple[str, ...] = ()
    """Jobs that are tried before; this one takes what there is of them."""


@dataclass(frozen=True)
class Plan:
    """All jobs, each behind those that it needs."""

    home: Home
    jobs: tuple[SweepJob, ...]
    tries: int
    cells: int
    """Checkpoints times conditions times tasks."""

    @property
    def output(self) -> Path:
        """The folder that gets everything; of a sweep in a store, nothing is here."""
        return Path(self.home.where)

    @property
    def demands(self) -> list[Demand]:
        """What each job takes."""
        return [job.demand for job in self.jobs]

    def lines(self) -> list[str]:
        """What a dry run says."""
        kinds = Counter((job.order["kind"], str(job.demand)) for job in self.jobs)
        counted = [f"{n:>6} x {kind}: {demand}" for (kind, demand), n in kinds.items()]
        shown = [f"  {job.id}{_behind(job)}" for job in self.jobs[:20]]
        more = [f"  and {len(self.jobs) - 20} more"] if len(self.jobs) > 20 else []
        head = f"{len(self.jobs)} jobs, {self.cells} cells, into {self.home.where}"
        return [head, *counted, *shown, *more]


def _behind(job: SweepJob) -> str:
    return f" after {', '.join(job.needs)}" if job.needs else ""


@dataclass
class _Expansion:
    """A sweep on its way to a plan."""

    sweep: Sweep
    file: YamlFile
    home: Home
    models: dict[str, Candidate] = field(default_factory=dict)

    def add(self, model: Candidate) -> None:
        if (other := self.models.get(model.name)) is not None:
            raise OptionError(
                f"{model.line}: two checkpoints are called {model.name} (the other: {other.line}); "
                "give one of them another name"
            )
        if len(self.models) == MOST:
            raise OptionError(f"{model.line}: with it there are more than {MOST:,} checkpoints")
        self.models[model.name] = model


def expand(sweep: Sweep, file: YamlFile) -> Plan:
    """The jobs of a sweep, those first that others wait for. Reads no weights.

    Raises:
        OptionError: a glob matches nothing, a checkpoint, base or reference is not there, names
            meet, options or a method are unknown, or trainings need each other in a circle; says
            the line.
        TaskError: a task is unknown.
    """
    plan = _Expansion(sweep, file, _home(sweep.output, file))
    for at, item in enumerate(sweep.checkpoints):
        where = file.where("checkpoints", at)
        for model in (
            found(item, where) if item.path is not None else grid(item, where, plan.home.where)
        ):
            plan.add(model)
    references = sweep.references
    for role in ("target", "retrained"):
        name = getattr(references, role)
        if name is not None and name not in plan.models:
            known = ", ".join(sorted(plan.models)[:8])
            raise OptionError(
                f"{file.where('references', role)}: {role}: no checkpoint is called "
                f"{one_line(name, 80)}; there are {known}"
            )
    if references.target is not None and references.target == references.retrained:
        raise OptionError(f"{file.where('references')}: target and retrained are one checkpoint")
    specs, theirs = find_tasks(list(sweep.tasks), Options.of(sweep.options).include_path)
    jobs = [_train_job(model, plan) for model in _in_order(plan) if model.training is not None]
    evaluations = _evaluations(plan, specs)
    jobs += evaluations
    if references.target is not None and references.retrained is not None:
        jobs += _ends(plan, evaluations, specs)
    cells = len(plan.models) * len(sweep.conditions) * (len(specs) + len(theirs))
    if not isinstance(plan.home, FolderHome):  # every node has a folder of its own
        jobs = [replace(job, order=_absolute(job.order)) for job in jobs]
    return Plan(plan.home, tuple(jobs), sweep.resources.tries, cells)


def _home(output: str, file: YamlFile) -> Home:
    try:
        return home_of(output if is_address(output) else os.path.abspath(output))  # noqa: PTH100
    except OptionError as error:
        raise OptionError(f"{file.where('output')}: output: {error}") from None


def _absolute(order: Mapping[str, Any]) -> dict[str, Any]:
    """An order whose local files are named from the root."""
    found = dict(order)
    for key in _FILES & order.keys():
        told = order[key]
        if isinstance(told, Mapping):
            found[key] = _absolute(told)
        elif isinstance(told, list | tuple):
            found[key] = [_placed(each) for each in told]
        else:
            found[key] = _placed(told)
    return found


def _placed(told: Any) -> Any:
    is_here = isinstance(told, str) and os.path.exists(told)  # noqa: PTH110
    return os.path.abspath(told) if is_here else told  # noqa: PTH100 - as typed


def _in_order(plan: _Expansion) -> list[Candidate]:
    """Every model behind the one that it is trained from.

    Raises:
        OptionError: a base is not there, or models are made from each other.
    """
    done: dict[str, Candidate] = {}
    for model in plan.models.values():
        chain: dict[str, Candidate] = {}
        at = model
        while at.name not in done:
            if at.name in chain:
                circle = " <- ".join([*list(chain)[list(chain).index(at.name) :], at.name])
                raise OptionError(f"{at.line}: a circle of trainings: {circle}")
            chain[at.name] = at
            if at.training is None:
                break
            if at.base not in plan.models:
                if not Path(at.base).exists() and not HUB.fullmatch(at.base):
                    where = f"{at.line}: base: {one_line(at.base, 200)}"
                    raise OptionError(f"{where} is no checkpoint here, no path and no hub id")
                break
            at = plan.models[at.base]
        done |= dict(reversed(chain.items()))
    return list(done.values())


def _train_job(model: Candidate, plan: _Expansion) -> SweepJob:
    base = plan.models.get(model.base)
    order = {"kind": "train", "name": model.name, **(model.training or {})}
    order |= {"model": base.path if base else model.base, "out": model.path}
    needs = (f"train-{base.name}",) if base and base.training is not None else ()
    return SweepJob(f"train-{model.name}", order, _demand(model, plan, TRAINED), needs)


def _evaluations(plan: _Expansion, specs: Sequence[TaskSpec]) -> list[SweepJob]:
    """The jobs that evaluate: the references' first."""
    sweep = plan.sweep
    target, retrained = sweep.references.target, sweep.references.retrained
    if retrained is not None and FULL not in sweep.conditions:
        where = plan.file.where("conditions")
        raise OptionError(f"{where}: references need the condition {FULL}, full precision")
    behind = retrained is not None and any(spec.needs_reference for spec in specs)
    size = sweep.resources.conditions_a_job or len(sweep.conditions)
    first = [name for name in (retrained, target) if name is not None]
    names = dict.fromkeys([*first, *plan.models])
    parts = [sweep.conditions[at : at + size] for at in range(0, len(sweep.conditions), size)]
    jobs = []
    for name in names:
        model = plan.models[name]
        own = (f"train-{name}",) if model.training is not None else ()
        refers = behind and name != retrained
        needs = (*own, f"evaluate-{retrained}") if refers else own
        shared: dict[str, Any] = {"kind": "evaluate", "name": name, "model": model.path}
        shared |= {"tasks": list(sweep.tasks), "reference": retrained if refers else None}
        shared["drafts_from"] = first[: first.index(name)] if name in first else first
        # The target's run comes with the retrained one's, for which these wait anyway.
        after = (f"evaluate-{target}",) if refers and target not in (None, name) else ()
        demand = _demand(model, plan, LOADED)
        several = demand.gpus > 1 and "device" not in sweep.options
        shared["options"] = {**sweep.options, **({"device": "auto"} if several else {})}
        for at, conditions in enumerate(parts, start=1):
            id = f"evaluate-{name}" if at == 1 else f"evaluate-{name}.{at}"
            jobs.append(
                SweepJob(id, {**shared, "conditions": list(conditions)}, demand, needs, after)
            )
    return jobs


def _ends(
    plan: _Expansion, jobs: Sequence[SweepJob], specs: Sequence[TaskSpec]
) -> Iterator[SweepJob]:
    """Compare and the board, of whatever is complete."""
    sweep, named = plan.sweep, plan.sweep.references
    entries = [name for name in plan.models if name not in (named.target, named.retrained)]
    held = {f"evaluate-{named.target}", f"evaluate-{named.retrained}"}
    after = tuple(job.id for job in jobs if job.id not in held)
    needs = tuple(job.id for job in jobs if job.id in held)
    about = {"target": named.target, "retrained": named.retrained, "entries": entries}
    about["include_path"] = list(sweep.options.get("include_path", ()))
    small = Demand(min(1.0, sweep.resources.cpus), 0, PROCESS)
    if len(sweep.conditions) > 1 and entries:
        floor = {"utility_floor": sweep.board.utility_floor}
        order = {"kind": "compare", "name": "compare", **about, **floor}
        yield SweepJob("compare", order, small, needs, after)
    if not specs:
        return
    rules = sweep.board.model_dump(mode="json")
    low = [spec.task for spec in specs if spec.want != "high"]
    rules["ranking"] = list(sweep.board.ranking) or low or [specs[0].task]
    rules["tasks"] = {spec.task: spec.metadata.version for spec in specs}
    rules["precisions"] = list(sweep.conditions)
    yield SweepJob(
        "board", {"kind": "board", "name": "board", **about, "rules": rules}, small, needs, after
    )


def _demand(model: Candidate, plan: _Expansion, factor: int) -> Demand:
    """What a job takes, by the weights of the checkpoint, or where they are still to be trained, of
    the one that its training begins with.
    """
    seen, at = set[str](), model
    while at.training is not None and at.base in plan.models and at.name not in seen:
        seen.add(at.name)
        at = plan.models[at.base]
    return estimate(plan.sweep.resources, at.path if at.training is None else at.base, factor)


def order_text(order: Mapping[str, Any]) -> str:
    """An order as it travels: JSON, the same for the same order."""
    return json.dumps(order, sort_keys=True, allow_nan=False)
