"""Ensembles of shards: what is to be trained of them, and what a deletion trains again."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.find import ENSEMBLE_FILE, TEMPLATES, check_folder
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE, Training, read_record
from unlearnbench.checkpoints.shard_plan import (
    PLAN,
    ShardPlan,
    read_plan,
    require_states,
    shard_name,
)
from unlearnbench.checkpoints.source import EnsembleSource, read_ensemble
from unlearnbench.errors import OptionError, TrainingError, one_line
from unlearnbench.methods import Method, find_method
from unlearnbench.methods.base import PreTrainedModel
from unlearnbench.methods.rows import Example, Shard
from unlearnbench.methods.whole.sisa import ABOUT
from unlearnbench.runs.fingerprint import Fingerprint
from unlearnbench.training.dtypes import cast_model
from unlearnbench.training.options import TrainOptions
from unlearnbench.training.output import KEPT, write_file
from unlearnbench.training.plan import make_plan
from unlearnbench.util.files import content_sha256, link, writing
from unlearnbench.util.process import is_main

if TYPE_CHECKING:
    from unlearnbench.training.context import TrainerContext
    from unlearnbench.training.corpus import Encoder, TextDocument

log = logging.getLogger("unlearnbench")

Known: TypeAlias = Mapping[str, tuple[Example, ...]]
"""The sequences of each row, by its hash."""


def rows_of(
    documents: Sequence[TextDocument], encoder: Encoder
) -> list[tuple[str, tuple[Example, ...]]]:
    """The sequences of each document, behind their hash."""
    rows = [tuple(encoder.encode_one(document)) for document in documents]
    return [(content_sha256([[e.ids, e.labels] for e in row]), row) for row in rows]


@dataclass(frozen=True)
class Sharding:
    """What is to be done of an ensemble."""

    plan: ShardPlan
    """Of what comes out."""
    train: tuple[Shard, ...]
    taken: Mapping[str, Path]
    """Folders that come out as they are, by name."""

    @property
    def members(self) -> list[str]:
        """The names of all its models."""
        return [shard_name(number) for number in range(len(self.plan.shards))]


def begin(context: TrainerContext, sharding: Sharding | None) -> None:
    """Tell a training what to train, and put the plan, and what is taken over, where it keeps its
    states.
    """
    if sharding is None:
        return
    context.members, context.shards = sharding.members, sharding.train
    kept = context.home / KEPT
    if is_main():
        kept.mkdir(exist_ok=True)
        write_file(kept / PLAN, (sharding.plan.model_dump_json() + "\n").encode())
        with writing(kept, TrainingError, "free some space and add --resume"):
            for name, folder in sharding.taken.items():
                shutil.rmtree(kept / name, ignore_errors=True)
                _take(folder, kept / name)


def _take(folder: Path, place: Path) -> None:
    """Have a checkpoint's files in another folder too; only those that ``check_folder`` saw."""
    check_folder(folder)
    for path in (*folder.iterdir(), *folder.glob(f"{TEMPLATES}/*")):
        if path.is_file():
            there = place / path.relative_to(folder)
            there.parent.mkdir(parents=True, exist_ok=True)
            link(path, there)


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def plan_training(
    rows: Sequence[tuple[str, tuple[Example, ...]]],
    options: TrainOptions,
    base: str,
    given: str | None,
) -> Sharding:
    """All shards, from the start, of weights with the hash ``base``: of a new plan, or of the rows
    that are there of another ensemble's. Raises OptionError where that has not all of the rows.
    """
    known = dict(rows)
    if given is None:
        plan = make_plan([row for row, _ in rows], options, base)
    else:
        whole = read_plan(given)
        _require_known(set(known), whole, "--data", given)
        left = whole.without(whole.rows - set(known))
        plan = left.model_copy(update={"base": base})
    shards = range(len(plan.shards))
    return Sharding(plan, tuple(_shard(plan, number, known) for number in shards), {})


def _shard(plan: ShardPlan, number: int, known: Known, **more: Any) -> Shard:
    slices = tuple(
        tuple(example for row in part for example in known[row]) for part in plan.shards[number]
    )
    if not any(slices):
        log.warning("%s has no row left, and so learns nothing", shard_name(number))
    return Shard(shard_name(number), plan.seeds[number], slices, **more)


def _require_known(rows: set[str], plan: ShardPlan, what: str, where: str) -> None:
    if strange := rows - plan.rows:
        raise OptionError(
            f"{len(strange)} of {len(rows)} rows of {what} are not in the shard plan of "
            f"{one_line(where, 120)}: it is of other data, or they were read otherwise "
            "(--text-field, --answer-blank, the tokenizer)"
        )


@dataclass(frozen=True)
class Before:
    """An ensemble that rows are to be deleted from."""

    folder: Path
    load: LoadOptions
    weights_dtype: str

    def model(self, name: str) -> PreTrainedModel:
        """A state of it, ready for training: an adapter on its base, or a whole model."""
        folder, alone = self.folder / name, self.load.model_copy(update={"base": None})
        if not _is_adapter(folder):
            model = open_checkpoint(str(folder), alone, keep=False).model()
            return cast_model(model, self.weights_dtype)  # type: ignore[no-any-return]
        from peft import PeftModel

        open_checkpoint(str(folder), self.load, keep=False)  # which checks it
        base = open_checkpoint(str(self.load.base), alone, keep=False)
        started = cast_model(base.model(), self.weights_dtype)
        begun: Any = PeftModel.from_pretrained(
            started, str(folder), is_trainable=True, autocast_adapter_dtype=False
        )
        return begun  # type: ignore[no-any-return]

    def deletion(self, forget: Known, retain: Known) -> Sharding:
        """What is to be trained again without the rows to forget. Raises OptionError where rows
        are not in the plan, or a touched shard's others are not given.
        """
        plan, gone = read_plan(str(self.folder)), set(forget)
        _require_known(gone, plan, "--forget", str(self.folder))
        _require_known(set(retain), plan, "--retain", str(self.folder))
        after, train, taken = plan.without(gone), [], dict[str, Path]()
        for number, slices in enumerate(after.shards):
            touched, whole = (
                plan.first_touched(number, gone),
                Shard(shard_name(number), 0, [()] * len(slices)),
            )
            first = len(slices) if touched is None else touched
            while 0 < first < len(slices) and not (self.folder / whole.state(first - 1)).is_dir():
                first -= 1  # its state was removed
            for name in map(whole.state, range(first)):
                if (self.folder / name).is_dir():
                    taken[name] = self.folder / name
            if touched is None:
                continue
            if lost := {row for part in slices for row in part} - set(retain):
                raise OptionError(
                    f"--retain lacks {len(lost)} rows of {shard_name(number)}, which has a row to "
                    "forget; give all that the ensemble learned"
                )
            begin = self._begin(whole.state(first - 1)) if first else None
            train.append(_shard(after, number, retain, first=first, begin=begin))
            log.info("%s is trained again from slice %d of %d", train[-1].name, first, len(slices))
        require_states(self.folder, read_ensemble(self.folder / ENSEMBLE_FILE).states, taken)
        log.info("%d of %d shards are trained again", len(train), len(plan.shards))
        return Sharding(after, tuple(train), taken)

    def _begin(self, name: str) -> Callable[[], PreTrainedModel]:
        return lambda: self.model(name)


def recorded(folder: str) -> Training:
    """How an ensemble was trained. Raises OptionError where it is none of shards."""
    read_plan(folder)
    record = read_record(Path(folder).expanduser() / FILE)
    if not isinstance(record, Training) or record.method != ABOUT.name:
        raise OptionError(f"{one_line(folder, 120)}: its {FILE} is not that of `finetune --shards`")
    return record


def finetuning(options: TrainOptions) -> Method:
    """As which method a model, or an ensemble of shards, is made."""
    return Method("finetune", ()) if options.shards is None else find_method(ABOUT.name)


def as_recorded(folder: str, method: Method, given: TrainOptions) -> TrainOptions:
    """The options that an ensemble was trained with, where rows are to be deleted from one. Raises
    OptionError where others are given: its shards would be of two recipes.
    """
    if method.name.removesuffix("_lora") != ABOUT.name:
        return given
    own = given.model_dump(exclude_defaults=True).keys() - {"save_steps"}
    if own:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(own))
        raise OptionError(f"sisa trains shards again as they were trained; leave {named} out")
    known = recorded(folder).options.model_dump()
    kept = {name: value for name, value in known.items() if name in TrainOptions.model_fields}
    return TrainOptions.of(kept | {"save_steps": given.save_steps})


def as_planned(folder: str | None, given: TrainOptions) -> TrainOptions:
    """The options with the shards and slices of an ensemble's plan, where one is to be followed."""
    if folder is None:
        return given
    if given.shards is not None:
        raise OptionError("--shard-plan says which shards there are; leave --shards out")
    plan = read_plan(folder)
    sizes = {"shards": len(plan.shards), "slices": len(plan.shards[0])}
    return TrainOptions.of(given.model_dump() | sizes)


class AskedShards(Protocol):
    """What of a job is read here."""

    @property
    def model(self) -> str: ...
    @property
    def base(self) -> str | None: ...
    @property
    def shard_plan(self) -> str | None: ...
    @property
    def options(self) -> TrainOptions: ...
    @property
    def load(self) -> LoadOptions: ...


def open_target(job: AskedShards, kind: str, method: Method) -> CheckpointSource:
    """What a training begins with. Of an ensemble that rows are to be deleted from it is the first
    shard, known by the hashes of all.
    """
    if kind != "unlearn" or method.name != ABOUT.name:
        return open_checkpoint(job.model, job.load)
    path = Path(job.model).expanduser()
    adapters = _is_adapter(path / shard_name(0))
    if adapters and job.base is None:
        raise OptionError(f"{one_line(job.model, 120)} holds adapters; give their --base")
    load = job.load.model_copy(update={"base": job.base if adapters else None})
    whole = EnsembleSource(job.model, path / ENSEMBLE_FILE, load, keep=False)
    first = copy.copy(whole.parts[0])
    first.checkpoint = whole.checkpoint
    return first


def known_by(sharding: Sharding | None) -> Fingerprint:
    """What an interrupted training must share with the one that goes on with it."""
    plan = sharding and sharding.plan.model_dump(mode="json")
    return Fingerprint.of({"plan": plan and content_sha256(plan)})


def make_sharding(
    job: AskedShards,
    method: Method,
    texts: Mapping[Any, tuple[Sequence[TextDocument], Any]],
    encoder: Encoder,
    models: tuple[CheckpointSource, CheckpointSource | None],
) -> Sharding | None:
    """Which shards are to be trained, on what; ``texts`` by role, ``models``: the target and its
    base. None where there are none. Raises OptionError where texts or base are not the ensemble's.
    """
    if method.name != ABOUT.name:
        return None
    rows = {role: rows_of(documents, encoder) for role, (documents, _) in texts.items()}
    source, base = models
    if "data" in rows:
        began = source.checkpoint.weights_sha256
        sharding = plan_training(rows["data"], job.options, began, job.shard_plan)
    else:
        load = job.load.model_copy(update={"base": job.base})
        before = Before(Path(job.model).expanduser(), load, job.options.weights_dtype)
        sharding = before.deletion(dict(rows["forget"]), dict(rows["retain"]))
        if base is not None and base.checkpoint.weights_sha256 != sharding.plan.base:
            raise OptionError(f"--base is not what {one_line(job.model, 120)} began with")
        anew = [shard.name for shard in sharding.train if shard.begin is None]
        if anew and base is None:
            raise OptionError(
                f"{anew[0]} has a row to forget in its first slice; give --base, what the ensemble "
                "began with"
            )
    empty = [shard.name for shard in sharding.train if not any(shard.slices)]
    if empty and job.options.keep_adapter:
        raise OptionError(f"{empty[0]} has no row left, and so there is no adapter to keep")
    return sharding
