"""The two jobs: ``unlearn`` a target, and ``finetune`` to make a target or a retrained model."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unlearnbench.checkpoints.checkpoint import CheckpointSource
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import SourceRecord, Training, TrainingOptions
from unlearnbench.checkpoints.tokenizer import require_open_end
from unlearnbench.errors import OptionError
from unlearnbench.methods import Method, find_method
from unlearnbench.methods.base import Ensemble, Masks, PreTrainedModel
from unlearnbench.runs.fingerprint import Fingerprint, describe_environment, git_hash, source_sha256
from unlearnbench.training import shards
from unlearnbench.training.alternatives import GENERIC, OWN, WORDS, attach
from unlearnbench.training.anchors import save_anchors, with_anchors
from unlearnbench.training.checks import checked, open_base, require_texts
from unlearnbench.training.corpus import Encoder, TextRole, load_corpus
from unlearnbench.training.moved import code_records
from unlearnbench.training.options import CorpusOptions, SelectOptions, TrainOptions
from unlearnbench.training.output import OutputFolder, mask_record, save_tokenizer, write_record
from unlearnbench.training.spans import ENTITIES, SURPRISE, most_surprising, on_spans
from unlearnbench.training.translation import Anchors
from unlearnbench.util.process import is_main, process_count
from unlearnbench.util.text import blank_in_answer
from unlearnbench.util.version import __version__

if TYPE_CHECKING:
    from unlearnbench.results import Checkpoint
    from unlearnbench.training.context import Forecast, TrainerContext
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
    unseen: tuple[str, ...] = ()
    """Texts that the target never saw."""
    base: str | None = None
    """The model that the target was made from, for the methods that begin there."""
    alternative: str | None = None
    """Other answers, for the methods that read them: a file, retain, generic, own or refuse."""
    shard_plan: str | None = None
    """An ensemble whose plan ``finetune`` follows."""
    spans: str | None = None
    """What of the forget texts is forgotten: a file, surprise or entities; None: all."""
    anchors: str | None = None
    """Names and what stands in for them, for the methods that read it: a file or names."""
    options: TrainOptions = field(default_factory=TrainOptions)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    select: SelectOptions | None = None
    """Evaluate during training and keep the first that meets the rule."""
    score: ScoreCheckpoint | None = None
    """How ``select`` evaluates."""
    forecast: Forecast | None = None
    """Called with the model before the first step of a method of pieces."""
    resume: bool = False
    progress: bool = False


def unlearn(job: Job, method: str, numbers: Mapping[str, object] | None = None) -> Training:
    """Make an unlearned model from a target; ``job.out`` becomes an ordinary checkpoint.

    numbers: the method's own options, by name; absent ones take the method's defaults. Returns
    what stands in ``unlearning.json``.

    Raises:
        OptionError: options, data or folder do not fit together.
        DataError, CheckpointError: a source of texts, or the target, cannot be used.
        TrainingError: a loss was not finite, or nothing could be saved.
    """
    found = find_method(method).with_options(numbers or {})
    whole = found.piece("whole")
    rank = whole.about.rank if whole is not None and whole.about.rank else 8 * found.lora
    if rank and job.options.lora_rank is None:
        job = replace(job, options=job.options.updated({"lora_rank": rank}))
    if job.options.pack > 1 or job.options.l1:
        raise OptionError("--pack and --l1 are for finetune")
    require_texts(job, found)
    if found.piece("masks") is not None and job.options.lora_rank is not None:
        raise OptionError(f"{method}: a mask chooses weights, LoRA trains none; drop --lora-rank")
    if whole is not None and whole.about.no_adapter and job.options.lora_rank is not None:
        raise OptionError(f"{method} {whole.about.no_adapter}; drop --lora-rank")
    of_pieces: dict[str, object] = {"--weight-noise": job.options.weight_noise}
    of_pieces |= {"--eval-tasks": job.select, "--keep-adapter": job.options.keep_adapter}
    for option in (name for name, asked in of_pieces.items() if whole is not None and asked):
        raise OptionError(f"{option} is for methods of pieces (forget_retain), not for {method}")
    job = replace(job, options=shards.as_recorded(job.model, found, job.options))
    return _train(job, "unlearn", found)


def finetune(job: Job) -> Training:
    """Train a model on ``job.forget`` by plain cross-entropy: a target, or a retrained model.
    Returns and raises as ``unlearn``.
    """
    if job.retain:
        raise OptionError("finetune has one set of texts; give them all with --data")
    job = replace(job, options=shards.as_planned(job.shard_plan, job.options))
    return _train(job, "finetune", shards.finetuning(job.options))


def _train(job: Job, kind: Literal["unlearn", "finetune"], method: Method) -> Training:
    """Check everything, train, save."""
    job = replace(job, options=checked(job.options, method))
    started = time.monotonic()
    # Now: by the end of a long training the files may be others than those that ran.
    code: dict[str, Any] = {"git_hash": git_hash(), "source_sha256": source_sha256()}
    first: TextRole = "data" if kind == "finetune" else "forget"
    texts: dict[TextRole, Any] = {first: job.forget, "retain": job.retain}
    texts |= {"auxiliary": job.auxiliary, "unseen": job.unseen}
    corpora = {r: load_corpus(t, r, job.corpus) for r, t in texts.items() if t or r == first}
    data = [record for _, sources in corpora.values() for record in sources]
    source, folder = shards.open_target(job, kind, method), OutputFolder(job.out)
    base = None if job.base is None else open_base(job.base, job.load, source)
    encoder = _make_encoder(source, job)
    sharding = shards.make_sharding(job, method, corpora, encoder, (source, base))
    sets, more, anchors = _sets(job, method, corpora, encoder)
    data += more
    facts: dict[str, Any] = {"kind": kind, "method": method.name, "knobs": method.numbers}
    facts |= {"processes": process_count(), "base": base and base.checkpoint.weights_sha256}
    asked = _fingerprint(job, facts, source.checkpoint, data, sets) | shards.known_by(sharding)
    folder.require_free(asked, job.resume)
    read = _reading(job, encoder, sets)
    facts |= code | {
        "options": TrainingOptions(**job.options.model_dump(exclude_none=True), **read),
        "target": source.checkpoint,
        "base": base and base.checkpoint,
        "data": tuple(data),
        "sequences": {
            r: len(found) for r, found in sets.items() if found or r not in ("auxiliary", "unseen")
        },
        "max_length": encoder.max_length,
    }
    with warnings.catch_warnings():
        # Libraries' advice about their own internals; ours are errors, not warnings.
        warnings.simplefilter("ignore")
        from unlearnbench.training.context import TrainerContext
        from unlearnbench.training.dtypes import as_saved, cast_model

        require_open_end(source.tokenizer, source.model())
        target = cast_model(source.model(), job.options.weights_dtype)
        context = TrainerContext(
            target, encoder, **sets, options=job.options, method=method, home=folder.work
        )
        context.resume, context.progress = job.resume, job.progress
        if job.spans == SURPRISE:
            context.forget = most_surprising(context, job.options.span_share)
        if base is not None:
            context.start = cast_model(base.model(), job.options.weights_dtype)
        context.alternative, context.corpus, context.anchors = job.alternative, job.corpus, anchors
        context.forecast = None if method.piece("whole") else job.forecast
        source.release()
        context.selector = _make_selector(job, folder, encoder)
        with folder.claim(asked):
            shards.begin(context, sharding)
            result, masks = context.run()
        for model in result.models.values() if isinstance(result, Ensemble) else [result]:
            as_saved(model, job.options.weights_dtype)
    return _save(job, folder, context, result, masks, facts, started)


def _fingerprint(
    job: Job,
    facts: Mapping[str, Any],
    target: Checkpoint,
    data: Sequence[SourceRecord],
    sets: Mapping[str, Any],
) -> Fingerprint:
    """What an interrupted training must share with the one that goes on with it."""
    return Fingerprint.of(
        {
            **facts,
            "options": job.options.model_dump(mode="json"),
            "target": target.weights_sha256,
            "tokenizer": target.tokenizer and target.tokenizer_probe_sha256,
            "data": [part.sha256 for part in data],
            "sequences": hashlib.sha256(repr(sets).encode()).hexdigest(),
            "select": None if job.select is None else job.select.model_dump(),
            # What a model makes on the way is known by its word alone.
            "spans": job.spans if job.spans == SURPRISE else None,
            "alternative": job.alternative if job.alternative in (GENERIC, OWN) else None,
        }
    )


def _sets(
    job: Job, method: Method, corpora: Mapping[TextRole, Any], encoder: Encoder
) -> tuple[dict[str, Any], list[SourceRecord], Anchors]:
    """The sequences of each set, what identifies other answers, spans and anchors, and these."""
    sets: dict[str, Any] = {"forget": (), "retain": (), "auxiliary": ()}
    known: dict[TextRole, Any] = {role: documents for role, (documents, _) in corpora.items()}
    for role, documents in known.items():
        sets["forget" if role == "data" else role] = encoder.encode(documents, role)
    more: list[SourceRecord] = []
    if job.alternative is not None:
        loss = method.piece("forget")
        beside = 1 if loss is None else loss.alternatives
        given, seed = job.alternative, job.options.seed
        sets["forget"], more = attach(given, known, encoder, job.corpus, seed, beside)
    if job.spans is not None:
        rows = known["forget"], sets["forget"]
        sets["forget"], found = on_spans(job.spans, *rows, encoder, job.corpus)
        more += found
    rows = known, sets["forget"]
    sets["forget"], found, anchors = with_anchors(job.anchors, *rows, encoder, job.corpus)
    return sets, more + found, anchors


def _make_encoder(source: CheckpointSource, job: Job) -> Encoder:
    config: Any = source.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH
    length = job.options.max_length or min(context, DEFAULT_LENGTH)
    if length > context:
        raise OptionError(f"--max-length {length} is beyond the model's context of {context}")
    moved = blank_in_answer(job.corpus.answer_blank, source.tokenizer)
    copy = partial(save_tokenizer, source.tokenizer, source.home)
    return Encoder(source.tokenizer, length, config.vocab_size, job.options.qa_loss, moved, copy)


def _reading(job: Job, encoder: Encoder, sets: Mapping[str, Any]) -> dict[str, Any]:
    """What makes other sequences of the same rows, and so another recipe."""
    fields = {"text_field", "question_field", "answer_field"}
    read = job.corpus.model_dump(include=fields, exclude_defaults=True)
    if encoder.blank_in_answer and any(each.is_qa for found in sets.values() for each in found):
        read["answer_blank"] = "answer"
    if job.alternative in WORDS:
        read["alternative"] = job.alternative
    if job.spans in (SURPRISE, ENTITIES):
        read["spans"] = job.spans
    return read


def _make_selector(job: Job, folder: OutputFolder, encoder: Encoder) -> Selector | None:
    if job.select is None:
        return None
    from unlearnbench.training.select import make_selector

    home = folder.work / "evaluated"
    return make_selector(job.select, job.corpus, home, encoder, job.score, job.options.survive)


def _save(
    job: Job,
    folder: OutputFolder,
    context: TrainerContext,
    result: PreTrainedModel | Ensemble,
    masks: Masks | None,
    facts: Mapping[str, Any],
    started: float,
) -> Training:
    """The checkpoint and its record."""
    from unlearnbench.training.trainer import device

    training = Training(
        **facts,
        losses=tuple(context.losses),
        mask=None if masks is None else mask_record(masks, result),
        selection=context.selector.selection() if context.selector and is_main() else None,
        stopping=None if context.rule is None else context.rule.record(),
        packages=describe_environment(device(), "", None).packages,
        unlearnbench=__version__,
        seconds=round(time.monotonic() - started, 1),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    if is_main():
        folder.save(result, context.encoder.save, context.method, masks)
        save_anchors(context.anchors, folder.path)
        for name, steps in context.kept.items():
            knobs = {**training.knobs, "state": name}  # another recipe
            change = {"knobs": knobs, "losses": training.losses[:steps]}
            write_record(folder.path / name, training.model_copy(update=change))
        write_record(folder.path, training)  # before what may be stopped, or lack memory
        folder.clean()
        one = not isinstance(result, Ensemble) and not context.options.keep_adapter
        if one and training.kind == "unlearn":
            codes = code_records(folder.path, job.model, job.load)
            training = training.model_copy(update={"codes": codes})
            write_record(folder.path, training)
    return training
