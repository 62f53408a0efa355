"""A sweep as a graph of jobs: train, evaluate the references, then the rest, compare, board.

A job is plain data, so that any process may do it; what it needs of others it finds in the folder.
"""

from __future__ import annotations

import glob
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearnbench.errors import OptionError, UnlearnbenchError, one_line
from unlearnbench.evaluation.evaluate import find_tasks
from unlearnbench.evaluation.options import Options
from unlearnbench.methods import Method, find_method
from unlearnbench.results import FULL
from unlearnbench.sweep.spec import Item, Sweep
from unlearnbench.tasks.spec import TaskSpec
from unlearnbench.training.options import CorpusOptions, TrainOptions
from unlearnbench.util.validation import YamlFile

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NAME = re.compile(r"[^A-Za-z0-9._+-]+")
_WEIGHTS = (".safetensors", ".bin", ".gguf")
# Python, torch and transformers, before any weights.
_PROCESS = 2**30
# Weights as loaded beside those stored: bf16 in fp32, and a second copy that a condition makes.
_LOADED, _TRAINED = 3, 10
_EIGHTHS = 8


@dataclass(frozen=True)
class Demand:
    """What a job takes of a node: cores, GPUs, bytes."""

    cpus: float
    gpus: float
    memory: int

    def __str__(self) -> str:
        gpus = f", {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus:g} cores{gpus}, {self.memory / 2**30:.1f} GiB"


@dataclass(frozen=True)
class Job:
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

    output: Path
    jobs: tuple[Job, ...]
    tries: int
    cells: int
    """Checkpoints times conditions times tasks."""

    def lines(self) -> list[str]:
        """What a dry run says."""
        kinds = Counter((job.order["kind"], str(job.demand)) for job in self.jobs)
        counted = [f"{n:>6} x {kind}: {demand}" for (kind, demand), n in kinds.items()]
        shown = [f"  {job.id}{_behind(job)}" for job in self.jobs[:20]]
        more = [f"  and {len(self.jobs) - 20} more"] if len(self.jobs) > 20 else []
        head = f"{len(self.jobs)} jobs, {self.cells} cells, into {self.output}"
        return [head, *counted, *shown, *more]


def _behind(job: Job) -> str:
    return f" after {', '.join(job.needs)}" if job.needs else ""


@dataclass(frozen=True)
class Model:
    """One checkpoint: where it is, or how it is trained."""

    name: str
    path: str
    line: str
    """``file:line`` of what named it."""
    training: Mapping[str, Any] | None = None
    base: str = ""
    """What it is trained from: another one's name or a path."""


@dataclass
class _Expansion:
    """A sweep on its way to a plan."""

    sweep: Sweep
    file: YamlFile
    output: Path
    models: dict[str, Model] = field(default_factory=dict)

    def add(self, model: Model) -> None:
        if (other := self.models.get(model.name)) is not None:
            raise OptionError(
                f"{model.line}: two checkpoints are called {model.name} (the other: {other.line}); "
                "give one of them another name"
            )
        self.models[model.name] = model


def expand(sweep: Sweep, file: YamlFile) -> Plan:
    """The jobs of a sweep, those first that others wait for. Reads no weights.

    Raises:
        OptionError: a glob matches nothing, a checkpoint, base or reference is not there, names
            meet, options or a method are unknown, or trainings need each other in a circle; says
            the line.
        TaskError: a task is unknown.
    """
    plan = _Expansion(sweep, file, Path(os.path.abspath(sweep.output)))  # noqa: PTH100 - as typed
    for at, item in enumerate(sweep.checkpoints):
        where = file.where("checkpoints", at)
        for model in _found(item, where) if item.path is not None else _grid(item, where, plan):
            plan.add(model)
    named = sweep.references
    for role in ("target", "retrained"):
        name = getattr(named, role)
        if name is not None and name not in plan.models:
            known = ", ".join(sorted(plan.models)[:8])
            raise OptionError(
                f"{file.where('references', role)}: {role}: no checkpoint is called "
                f"{one_line(name, 80)}; there are {known}"
            )
    if named.target is not None and named.target == named.retrained:
        raise OptionError(f"{file.where('references')}: target and retrained are one checkpoint")
    specs, theirs = find_tasks(list(sweep.tasks), Options.of(sweep.options).include_path)
    jobs = [_train_job(model, plan) for model in _in_order(plan) if model.training is not None]
    evaluations = _evaluations(plan, specs)
    jobs += evaluations
    if named.target is not None and named.retrained is not None:
        jobs += _ends(plan, evaluations, specs)
    cells = len(plan.models) * len(sweep.conditions) * (len(specs) + len(theirs))
    return Plan(plan.output, tuple(jobs), sweep.resources.tries, cells)


def _found(item: Item, where: str) -> Iterator[Model]:
    """The checkpoints of a path: a hub id, one folder or file, or those that a glob matches."""
    path = str(item.path)
    if not any(c in path for c in "*?["):
        if not Path(path).exists() and not _HUB.fullmatch(path):
            raise OptionError(f"{where}: {one_line(path, 200)} is not there, and no hub id")
        yield Model(item.name or _last(path), path, where)
        return
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 - also absolute ones
    folders = [each for each in found if (Path(each) / "config.json").is_file()]
    folders += [each for each in found if each.endswith(".gguf")]
    folders += [each for each in found if (Path(each) / "adapter_config.json").is_file()]
    if not folders:
        met = f" among {len(found)} matches" if found else ""
        raise OptionError(f"{where}: {one_line(path, 200)} matches no checkpoint{met}")
    for each in dict.fromkeys(folders):
        yield Model(f"{item.name or ''}{_last(each)}", each, where)


def _last(path: str) -> str:
    """A name that a folder and a board's entry may have."""
    return _NAME.sub("_", Path(path).name).strip("._-+")[:60] or "model"


def _grid(item: Item, where: str, plan: _Expansion) -> Iterator[Model]:
    """A training for each combination of methods, bases, options and seeds."""
    axes: dict[str, Sequence[Any]] = {"method": item.method, "base": item.base}
    axes |= {k: v if isinstance(v, list) else [v] for k, v in item.options.items()}
    axes |= {"seed": item.seeds}
    if "seed" in item.options or any(not values for values in axes.values()):
        raise OptionError(f"{where}: an option has no value, or seed stands beside seeds")
    moving = [key for key, values in axes.items() if len(values) > 1]
    texts = item.model_dump(include={"data", "forget", "retain", "auxiliary", "unseen"})
    texts |= {"alternative": item.alternative, "spans": item.spans}
    known = {name: _method(name, where) for name in item.method}
    for values in itertools.product(*axes.values()):
        at = dict(zip(axes, values, strict=True))
        marks = [str(at[k]) if k == "method" else f"{k}{_last(str(at[k]))}" for k in moving]
        name = "-".join([item.name or item.method[0], *marks])
        if item.name is None and "method" in moving:
            name = "-".join(marks)
        method, base = at.pop("method"), str(at.pop("base"))
        options, knobs = _told(known[method], at, where)
        training = {"method": method, **texts, "options": options, "knobs": knobs}
        out = plan.output / "models" / name
        yield Model(_NAME.sub("_", name)[:60], str(out), where, training, base)


def _method(name: str, where: str) -> Method | None:
    """The method of that name; None for finetune."""
    try:
        return None if name == "finetune" else find_method(name)
    except UnlearnbenchError as error:
        raise OptionError(f"{where}: {one_line(error)}") from None


def _told(
    method: Method | None, given: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the training, and numbers of the method; each is known."""
    given = {key.replace("-", "_"): value for key, value in given.items()}
    known = {*TrainOptions.model_fields, *CorpusOptions.model_fields}
    options = {key: value for key, value in given.items() if key in known}
    knobs = {key: value for key, value in given.items() if key not in known}
    try:
        TrainOptions.of({k: v for k, v in options.items() if k in TrainOptions.model_fields})
        CorpusOptions.of({k: v for k, v in options.items() if k in CorpusOptions.model_fields})
        if method is not None:
            method.with_options(knobs)
        elif knobs:
            raise OptionError(f"no option is called {one_line(min(knobs), 80)!r}")
    except UnlearnbenchError as error:
        raise OptionError(f"{where}: {one_line(error)}") from None
    return options, knobs


def _in_order(plan: _Expansion) -> list[Model]:
    """Every model behind the one that it is trained from.

    Raises:
        OptionError: a base is not there, or models are made from each other.
    """
    done: dict[str, Model] = {}
    for model in plan.models.values():
        chain: dict[str, Model] = {}
        at = model
        while at.name not in done:
            if at.name in chain:
                circle = " <- ".join([*list(chain)[list(chain).index(at.name) :], at.name])
                raise OptionError(f"{at.line}: a circle of trainings: {circle}")
            chain[at.name] = at
            if at.training is None:
                break
            if at.base not in plan.models:
                if not Path(at.base).exists() and not _HUB.fullmatch(at.base):
                    where = f"{at.line}: base: {one_line(at.base, 200)}"
                    raise OptionError(f"{where} is no checkpoint here, no path and no hub id")
                break
            at = plan.models[at.base]
        done |= dict(reversed(chain.items()))
    return list(done.values())


def _train_job(model: Model, plan: _Expansion) -> Job:
    base = plan.models.get(model.base)
    order = {"kind": "train", "name": model.name, **(model.training or {})}
    order |= {"model": base.path if base else model.base, "out": model.path}
    needs = (f"train-{base.name}",) if base and base.training is not None else ()
    return Job(f"train-{model.name}", order, _demand(model, plan, _TRAINED), needs)


def _evaluations(plan: _Expansion, specs: Sequence[TaskSpec]) -> list[Job]:
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
        demand = _demand(model, plan, _LOADED)
        several = demand.gpus > 1 and "device" not in sweep.options
        shared["options"] = {**sweep.options, **({"device": "auto"} if several else {})}
        for at, conditions in enumerate(parts, start=1):
            id = f"evaluate-{name}" if at == 1 else f"evaluate-{name}.{at}"
            jobs.append(Job(id, {**shared, "conditions": list(conditions)}, demand, needs))
    return jobs


def _ends(plan: _Expansion, jobs: Sequence[Job], specs: Sequence[TaskSpec]) -> Iterator[Job]:
    """Compare and the board, of whatever is complete."""
    sweep, named = plan.sweep, plan.sweep.references
    entries = [name for name in plan.models if name not in (named.target, named.retrained)]
    held = {f"evaluate-{named.target}", f"evaluate-{named.retrained}"}
    after = tuple(job.id for job in jobs if job.id not in held)
    needs = tuple(job.id for job in jobs if job.id in held)
    about = {"target": named.target, "retrained": named.retrained, "entries": entries}
    about["include_path"] = list(sweep.options.get("include_path", ()))
    small = Demand(min(1.0, sweep.resources.cpus), 0, _PROCESS)
    if len(sweep.conditions) > 1 and entries:
        floor = {"utility_floor": sweep.board.utility_floor}
        order = {"kind": "compare", "name": "compare", **about, **floor}
        yield Job("compare", order, small, needs, after)
    if not specs:
        return
    rules = sweep.board.model_dump(mode="json")
    low = [spec.task for spec in specs if spec.want != "high"]
    rules["ranking"] = list(sweep.board.ranking) or low or [specs[0].task]
    rules["tasks"] = {spec.task: spec.metadata.version for spec in specs}
    rules["precisions"] = list(sweep.conditions)
    yield Job(
        "board", {"kind": "board", "name": "board", **about, "rules": rules}, small, needs, after
    )


def _demand(model: Model, plan: _Expansion, factor: int) -> Demand:
    """As the file says; what it leaves out follows from the size of the weights, of the base's
    where they are still to be trained. A hub's are not asked for.
    """
    asked, seen, at = plan.sweep.resources, set[str](), model
    while at.training is not None and at.base in plan.models and at.name not in seen:
        seen.add(at.name)
        at = plan.models[at.base]
    need = factor * _weights(at.base if at.training is not None else at.path) + _PROCESS
    gpus = asked.gpus
    if gpus is None:
        share = need / asked.gpu_memory if asked.gpu_memory else 0.0
        gpus = math.ceil(share) if share > 1 else math.ceil(share * _EIGHTHS) / _EIGHTHS
    return Demand(asked.cpus, gpus, asked.memory or need)


def _weights(path: str) -> int:
    """Bytes of the weight files of a folder, or of a file; 0 where none is here."""
    place = Path(path)
    files = [place] if place.is_file() else list(place.glob("*")) if place.is_dir() else []
    return sum(file.stat().st_size for file in files if file.suffix in _WEIGHTS)


def order_text(order: Mapping[str, Any]) -> str:
    """An order as it travels: JSON, the same for the same order."""
    return json.dumps(order, sort_keys=True, allow_nan=False)


def require_room(plan: Plan, nodes: Sequence[Mapping[str, float]], file: YamlFile) -> None:
    """Raise OptionError where a job asks for more than any of ``nodes`` has: their ``CPU``,
    ``GPU`` and ``memory``.
    """
    for demand in dict.fromkeys(job.demand for job in plan.jobs):
        if not any(fits(demand, node) for node in nodes):
            have = "; ".join(dict.fromkeys(str(node_demand(node)) for node in nodes)) or "no node"
            raise OptionError(
                f"{file.where('resources')}: a job takes {demand}, and no node has that (there: "
                f"{have}); ask for less in resources"
            )


def node_demand(node: Mapping[str, float]) -> Demand:
    """What a node has."""
    return Demand(node.get("CPU", 0), node.get("GPU", 0), int(node.get("memory", 0)))


def fits(demand: Demand, node: Mapping[str, float]) -> bool:
    """Whether a node with nothing else to do can do a job."""
    have = node_demand(node)
    return demand.cpus <= have.cpus and demand.gpus <= have.gpus and demand.memory <= have.memory
