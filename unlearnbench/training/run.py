"""The two jobs: ``unlearn`` a target, and ``finetune`` to make a target or a retrained model."""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

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
from unlearnbench.methods.base import Knobs
from unlearnbench.runs.provenance import describe_environment, git_hash, source_sha256
from unlearnbench.training.batches import Encoder
from unlearnbench.training.corpus import Corpus, CorpusOptions, load_corpus
from unlearnbench.training.options import SelectorOptions, TrainOptions
from unlearnbench.training.output import OutputFolder, mask_record
from unlearnbench.training.record import write_json
from unlearnbench.training.workshop import DTYPES, Workshop
from unlearnbench.util.process import is_main, process_count
from unlearnbench.util.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearnbench.training.select import Selector
    from unlearnbench.training.trainer import Masks
    from unlearnbench.training.workshop import PairOutput

log = logging.getLogger("unlearnbench")

DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class Job:
    """What to train, on what, into which folder.

    model: a folder, ``.gguf`` file or hub id. forget, retain: files or ``task:NAME``; ``finetune``
    trains on ``forget``. select: evaluate during training and keep the first that meets the rule.
    """

    model: str
    out: Path
    forget: tuple[str, ...]
    retain: tuple[str, ...] = ()
    options: TrainOptions = field(default_factory=TrainOptions)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    select: SelectorOptions | None = None
    resume: bool = False
    progress: bool = False


def unlearn(job: Job, method: str, knobs: dict[str, float | int | str] | None = None) -> Training:
    """Make an unlearned model from a target; ``job.out`` becomes an ordinary checkpoint.

    knobs: the method's own options, by name; absent ones take the method's defaults.

    Returns:
        What stands in ``unlearning.json``.

    Raises:
        OptionError: options, data or folder do not fit together.
        DataError: a source of texts cannot be used.
        CheckpointError: the target cannot be used.
        TrainingError: a loss was not finite, or nothing could be saved.
    """
    found = find_method(method)
    chosen = found.knobs(knobs or {})
    job = _with_lora(job, found)
    _require_adapter(job)
    if job.options.pack > 1 or job.options.l1 or job.options.weight_noise:
        raise OptionError("--pack, --l1 and --weight-noise are for finetune")
    if found.needs_retain and not job.retain:
        raise OptionError(f"{method} learns from a retain set; give --retain")
    if job.retain and not found.needs_retain:
        raise OptionError(f"{method} has no retain term; leave --retain out")
    if found.mask is not None and job.options.lora_rank is not None:
        raise OptionError(
            f"{method}: a mask chooses weights, and LoRA trains none; drop --lora-rank"
        )
    if found.whole is not None and (job.select or job.options.keep_adapter):
        option = "--eval-tasks" if job.select else "--keep-adapter"
        raise OptionError(f"{option} is for methods of one training, and {method} is none")
    return _Session(job, "unlearn", found, chosen).run()


def finetune(job: Job) -> Training:
    """Train a model on ``job.forget`` by plain cross-entropy: a target, or a retrained model.

    Returns, Raises: as ``unlearn``.
    """
    if job.retain:
        raise OptionError("finetune has one set of texts; give them all with --data")
    _require_adapter(job)
    return _Session(job, "finetune", None, Knobs()).run()


def _require_adapter(job: Job) -> None:
    if job.options.keep_adapter and job.options.lora_rank is None:
        raise OptionError("--keep-adapter: there is an adapter only with --lora-rank")


def _with_lora(job: Job, method: Method) -> Job:
    """``npo_klr_lora`` is npo_klr with an adapter, of rank 8 unless said otherwise."""
    from dataclasses import replace

    if not method.lora or job.options.lora_rank is not None:
        return job
    return replace(job, options=job.options.model_copy(update={"lora_rank": 8}))


class _Session:
    """One call, from files to files."""

    def __init__(
        self, job: Job, kind: Literal["unlearn", "finetune"], method: Method | None, knobs: Knobs
    ) -> None:
        self._job, self._kind, self._method, self._knobs = job, kind, method, knobs
        self._name = method.name if method is not None else "finetune"
        self._started = time.monotonic()
        # Now: by the end of a long training the files may be others than those that ran.
        self._code = git_hash(), source_sha256()

    def run(self) -> Training:
        """Check everything, train, save."""
        job = self._job
        first: Literal["data", "forget"] = "data" if self._kind == "finetune" else "forget"
        forget = load_corpus(job.forget, first, job.corpus)
        retain = load_corpus(job.retain, "retain", job.corpus) if job.retain else Corpus((), ())
        source = open_checkpoint(job.model, job.load)
        encoder = self._encoder(source)
        folder = OutputFolder(job.out)
        sequences = encoder.encode(forget, first), encoder.encode(retain, "retain")
        request = self._request(source, sequences, forget, retain)
        folder.require_free(request, job.resume)
        with warnings.catch_warnings():
            # Libraries' advice about their own internals; ours are errors, not warnings.
            warnings.simplefilter("ignore")
            shop = Workshop(
                self._target(source),
                source.tokenizer,
                *sequences,
                job.options,
                self._knobs,
                folder.work,
                job.resume,
                job.progress,
            )
            source.release()
            selector = self._selector(folder, shop)
            folder.claim(request)
            result, masks = self._train(shop)
        return self._finish(folder, shop, (result, masks, selector), source, (forget, retain))

    def _encoder(self, source: CheckpointSource) -> Encoder:
        config: Any = source.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH
        length = self._job.options.max_length or min(context, DEFAULT_LENGTH)
        if length > context:
            raise OptionError(f"--max-length {length} is beyond the model's context of {context}")
        return Encoder(source.tokenizer, length, config.vocab_size, self._job.options.qa_loss)

    def _request(
        self, source: CheckpointSource, sequences: object, forget: Corpus, retain: Corpus
    ) -> dict[str, Any]:
        """What makes two trainings the same; a resumed one must agree in all of it."""
        select = self._job.select
        return {
            "kind": self._kind,
            "method": self._name,
            "knobs": self._used_knobs(),
            "options": self._job.options.model_dump(mode="json"),
            "processes": process_count(),
            "target": source.checkpoint.weights_sha256,
            "data": [part.sha256 for part in self._data(forget, retain)],
            "sequences": hashlib.sha256(repr(sequences).encode()).hexdigest(),
            "select": None if select is None else asdict(select),
        }

    def _used_knobs(self) -> dict[str, float | int | str]:
        parts = self._method.parts if self._method is not None else ()
        names = {name for about in parts for name in about.knobs}
        return {name: getattr(self._knobs, name) for name in sorted(names)}

    def _data(self, forget: Corpus, retain: Corpus) -> list[SourceRecord]:
        first = "data" if self._kind == "finetune" else "forget"
        return [
            SourceRecord(role=role, source=name, rows=rows, sha256=sha)  # type: ignore[arg-type]
            for role, corpus in ((first, forget), ("retain", retain))
            for name, rows, sha in corpus.sources
        ]

    def _target(self, source: CheckpointSource) -> PreTrainedModel:
        import torch

        model: Any = source.model()
        dtype = DTYPES.get(self._job.options.weights_dtype)
        return model if dtype is None else model.to(getattr(torch, dtype))  # type: ignore[no-any-return]

    def _selector(self, folder: OutputFolder, shop: Workshop) -> Selector | None:
        options = self._job.select
        if options is None:
            return None
        from unlearnbench.tasks.spec import load_registry
        from unlearnbench.training.select import make_selector

        corpus = self._job.corpus
        names = [t.task for t in load_registry(corpus.include_path).resolve(options.tasks)]
        given = {
            "data_dir": corpus.data_dir,
            "include_path": corpus.include_path,
            "allow_data_drift": corpus.allow_data_drift,
        }
        home = folder.work / "evaluated"
        selector = make_selector(options, names, home, shop.tokenizer, given)
        shop.selector = selector
        return selector

    def _train(self, shop: Workshop) -> tuple[PreTrainedModel | PairOutput, Masks | None]:
        if self._method is None:
            return shop.descend(shop.model, shop.forget, "finetune"), None
        if self._method.whole is not None:
            return cast(Any, self._method.whole).train(shop), None
        return shop.combine(self._method)

    def _finish(
        self,
        folder: OutputFolder,
        shop: Workshop,
        made: tuple[PreTrainedModel | PairOutput, Masks | None, Selector | None],
        source: CheckpointSource,
        corpora: Sequence[Corpus],
    ) -> Training:
        result, masks, selector = made
        mask = None
        if masks is not None:
            widths = {n: t.shape[-1] for n, t in cast(Any, result).state_dict().items()}
            mask = mask_record(masks, widths.__getitem__)
        environment = describe_environment(shop.device, "", None)
        training = Training(
            kind=self._kind,
            method=self._name,
            knobs=self._used_knobs(),
            options=TrainingOptions(**self._job.options.model_dump()),
            processes=process_count(),
            target=source.checkpoint,
            data=tuple(self._data(*corpora)),
            sequences={"forget": len(shop.forget), "retain": len(shop.retain)},
            max_length=self._encoder(source).max_length,
            losses=tuple(_loss_record(logs) for logs in shop.losses),
            mask=mask,
            selection=selector.selection() if selector is not None and is_main() else None,
            packages=environment.packages,
            unlearnbench=__version__,
            git_hash=self._code[0],
            source_sha256=self._code[1],
            seconds=round(time.monotonic() - self._started, 1),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        if is_main():
            folder.save(result, shop.tokenizer, masks)
            write_json(job_file(folder.path), training)
            folder.clean()
        return training


def job_file(folder: Path) -> Path:
    """Where the record of a training is."""
    return folder / FILE


def _loss_record(logs: dict[str, Any]) -> LossRecord:
    known = {"stage", "step", "loss", "forget", "retain", "grad_norm"}
    found = {key: value for key, value in logs.items() if key in known and value is not None}
    return LossRecord(**found, lr=logs["learning_rate"])
