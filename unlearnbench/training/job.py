"""The two jobs: ``unlearn`` a target, and ``finetune`` to make a target or a retrained model."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import (
    FILE,
    LossRecord,
    SourceRecord,
    Training,
    TrainingOptions,
)
from unlearnbench.errors import OptionError
from unlearnbench.methods import Method, find_method
from unlearnbench.methods.base import Ensemble, Masks
from unlearnbench.results import Checkpoint
from unlearnbench.runs.fingerprint import Fingerprint, describe_environment, git_hash, source_sha256
from unlearnbench.training.batches import Encoder
from unlearnbench.training.context import DTYPES, TrainerContext
from unlearnbench.training.corpus import Corpus, TextRole, load_corpus
from unlearnbench.training.options import CorpusOptions, SelectOptions, TrainOptions
from unlearnbench.training.output import OutputFolder, mask_record, write_json
from unlearnbench.training.passes import device
from unlearnbench.util.process import is_main, process_count
from unlearnbench.util.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearnbench.training.select import ScoreCheckpoint, Selector

DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class Job:
    """What to train, on what, into which folder."""

    model: str
    """A folder, ``.gguf`` file or hub id."""
    out: Path
    forget: tuple[str, ...]
    """Files or ``task:NAME``; ``finetune`` trains on these."""
    retain: tuple[str, ...] = ()
    auxiliary: tuple[str, ...] = ()
    """A third set, for the methods that read one."""
    options: TrainOptions = field(default_factory=TrainOptions)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    select: SelectOptions | None = None
    """Evaluate during training and keep the first that meets the rule."""
    score: ScoreCheckpoint | None = None
    """How ``select`` evaluates."""
    resume: bool = False
    progress: bool = False


def unlearn(job: Job, method: str, numbers: Mapping[str, object] | None = None) -> Training:
    """Make an unlearned model from a target; ``job.out`` becomes an ordinary checkpoint.

    numbers: the method's own options, by name; absent ones take the method's defaults.

    Returns:
        What stands in ``unlearning.json``.

    Raises:
        OptionError: options, data or folder do not fit together.
        DataError: a source of texts cannot be used.
        CheckpointError: the target cannot be used.
        TrainingError: a loss was not finite, or nothing could be saved.
    """
    found = find_method(method).with_options(numbers or {})
    if found.lora and job.options.lora_rank is None:
        job = replace(job, options=job.options.model_copy(update={"lora_rank": 8}))
    if job.options.pack > 1 or job.options.l1 or job.options.weight_noise:
        raise OptionError("--pack, --l1 and --weight-noise are for finetune")
    for role, given in (("retain", job.retain), ("auxiliary", job.auxiliary)):
        if role in found.data and not given:
            raise OptionError(f"{method} learns from a set of {role} texts; give --{role}")
        if given and role not in found.data:
            raise OptionError(f"{method} has no {role} term; leave --{role} out")
    if found.piece("masks") is not None and job.options.lora_rank is not None:
        raise OptionError(
            f"{method}: a mask chooses weights, and LoRA trains none; drop --lora-rank"
        )
    if found.piece("whole") is not None and (job.select or job.options.keep_adapter):
        option = "--eval-tasks" if job.select else "--keep-adapter"
        raise OptionError(f"{option} is for methods of one training, and {method} is none")
    return _train(job, "unlearn", found)


def finetune(job: Job) -> Training:
    """Train a model on ``job.forget`` by plain cross-entropy: a target, or a retrained model.

    Returns, Raises: as ``unlearn``.
    """
    if job.retain:
        raise OptionError("finetune has one set of texts; give them all with --data")
    return _train(job, "finetune", Method("finetune", ()))


def _train(job: Job, kind: Literal["unlearn", "finetune"], method: Method) -> Training:
    """Check everything, train, save."""
    if job.options.keep_adapter and job.options.lora_rank is None:
        raise OptionError("--keep-adapter: there is an adapter only with --lora-rank")
    started = time.monotonic()
    # Now: by the end of a long training the files may be others than those that ran.
    code: dict[str, Any] = {"git_hash": git_hash(), "source_sha256": source_sha256()}
    corpora = _load_corpora(job, "data" if kind == "finetune" else "forget")
    source = open_checkpoint(job.model, job.load)
    folder, encoder = OutputFolder(job.out), _make_encoder(source, job.options)
    sets: dict[str, Any] = {"forget": (), "retain": (), "auxiliary": ()}
    for role, corpus in corpora.items():
        sets["forget" if role == "data" else role] = encoder.encode(corpus, role)
    facts: dict[str, Any] = {
        "kind": kind,
        "method": method.name,
        "knobs": method.numbers,
        "processes": process_count(),
    }
    data = _data_records(corpora)
    request = _request(job, facts, source.checkpoint, data, sets)
    folder.require_free(request, job.resume)
    with warnings.catch_warnings():
        # Libraries' advice about their own internals; ours are errors, not warnings.
        warnings.simplefilter("ignore")
        target = _target(source, job.options)
        context = TrainerContext(
            target, encoder, **sets, options=job.options, method=method, home=folder.work
        )
        context.resume, context.progress = job.resume, job.progress
        source.release()
        context.selector = _make_selector(job, folder, context)
        folder.claim(request)
        result, masks = _run(context)
    training = Training(
        **facts,
        options=TrainingOptions(**job.options.model_dump(exclude_none=True)),
        target=source.checkpoint,
        data=data,
        sequences={
            role: len(found) for role, found in sets.items() if found or role != "auxiliary"
        },
        max_length=encoder.max_length,
        losses=tuple(_loss_record(logs) for logs in context.losses),
        mask=None if masks is None else mask_record(masks, result),
        selection=context.selector.selection() if context.selector and is_main() else None,
        packages=describe_environment(device(), "", None).packages,
        unlearnbench=__version__,
        **code,
        seconds=round(time.monotonic() - started, 1),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    if is_main():
        folder.save(result, context.tokenizer, method, masks)
        write_json(folder.path / FILE, training)
        folder.clean()
    return training


def _request(
    job: Job,
    facts: Mapping[str, object],
    target: Checkpoint,
    data: Sequence[SourceRecord],
    sets: Mapping[str, object],
) -> Fingerprint:
    """What must be the same for an interrupted training to go on."""
    return Fingerprint.of(
        {
            **facts,
            "options": job.options.model_dump(mode="json"),
            "target": target.weights_sha256,
            "data": [part.sha256 for part in data],
            "sequences": hashlib.sha256(repr(sets).encode()).hexdigest(),
            "select": None if job.select is None else job.select.model_dump(),
        }
    )


def _load_corpora(job: Job, first: TextRole) -> dict[TextRole, Corpus]:
    given: dict[TextRole, tuple[str, ...]] = {first: job.forget, "retain": job.retain}
    given["auxiliary"] = job.auxiliary
    return {
        role: load_corpus(names, role, job.corpus)
        for role, names in given.items()
        if names or role == first
    }


def _make_encoder(source: CheckpointSource, options: TrainOptions) -> Encoder:
    config: Any = source.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH
    length = options.max_length or min(context, DEFAULT_LENGTH)
    if length > context:
        raise OptionError(f"--max-length {length} is beyond the model's context of {context}")
    return Encoder(source.tokenizer, length, config.vocab_size, options.qa_loss)


def _data_records(corpora: Mapping[TextRole, Corpus]) -> tuple[SourceRecord, ...]:
    return tuple(
        SourceRecord(role=role, source=name, rows=rows, sha256=sha)
        for role, corpus in corpora.items()
        for name, rows, sha in corpus.sources
    )


def _target(source: CheckpointSource, options: TrainOptions) -> PreTrainedModel:
    import torch

    model: Any = source.model()
    dtype = DTYPES.get(options.weights_dtype)
    return model if dtype is None else model.to(getattr(torch, dtype))  # type: ignore[no-any-return]


def _make_selector(job: Job, folder: OutputFolder, context: TrainerContext) -> Selector | None:
    if job.select is None:
        return None
    from unlearnbench.tasks.registry import load_registry
    from unlearnbench.training.select import make_selector

    if job.score is None:
        raise OptionError("--eval-tasks needs a way to score checkpoints: Job.score")
    specs = load_registry(job.corpus.include_path).resolve(job.select.names)
    names = [spec.task for spec in specs]
    return make_selector(job.select, names, folder.work / "evaluated", context.tokenizer, job.score)


def _run(context: TrainerContext) -> tuple[PreTrainedModel | Ensemble, Masks | None]:
    whole = context.method.piece("whole")
    if whole is not None:
        return whole.module.train(context, whole.options), None
    if not context.method.pieces:
        return context.descend(context.model, context.forget, "finetune"), None
    return context.combine()


def _loss_record(logs: Mapping[str, Any]) -> LossRecord:
    known = LossRecord.model_fields
    found = {key: value for key, value in logs.items() if key in known and value is not None}
    return LossRecord(**found, lr=logs["learning_rate"])
