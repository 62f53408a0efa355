"""What a training refuses before weights are loaded."""

from __future__ import annotations

from typing import Protocol

from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.tokenizer import probe_ids
from unlearnbench.conditions.base import has_codes, resolve
from unlearnbench.errors import OptionError
from unlearnbench.methods import Method
from unlearnbench.training.alternatives import DRAWN, GENERIC, OWN, REFUSALS
from unlearnbench.training.anchors import NAMES
from unlearnbench.training.options import TrainOptions
from unlearnbench.training.spans import SURPRISE
from unlearnbench.util.process import process_count


class Asked(Protocol):
    """What of a job is checked."""

    @property
    def retain(self) -> tuple[str, ...]: ...
    @property
    def auxiliary(self) -> tuple[str, ...]: ...
    @property
    def base(self) -> str | None: ...
    @property
    def unseen(self) -> tuple[str, ...]: ...
    @property
    def select(self) -> object: ...
    @property
    def alternative(self) -> str | None: ...
    @property
    def spans(self) -> str | None: ...
    @property
    def anchors(self) -> str | None: ...
    @property
    def options(self) -> TrainOptions: ...


def require_texts(job: Asked, method: Method) -> None:
    """Raises OptionError where a set that ``method`` reads is missing, or one is given that it does
    not read.
    """
    name, takes, given = method.name, method.takes_alternatives, job.alternative is not None
    data = method.data
    if takes == "instead" and given and job.alternative != "retain":
        data = data - {"retain"}
    if job.options.stop_el is not None:
        data = data | {"unseen"}
    if job.anchors is not None and not any(piece.about.anchors for piece in method.pieces):
        raise OptionError(f"{name} replaces no names; leave --anchors out")
    if job.anchors == NAMES:
        data = data | {"retain"}
    _require_chunks(job, method)
    sets = {"retain": job.retain, "auxiliary": job.auxiliary, "unseen": job.unseen}
    for role, texts in sets.items():
        if role in data and not texts:
            needs = f"{name} learns from a set of {role} texts"
            if role not in method.data:
                asks = "--stop-el" if role == "unseen" else "--anchors names"
                needs = f"{asks} compares with {role} texts"
            raise OptionError(f"{needs}; give --{role}")
        if texts and role not in data | method.may:
            raise OptionError(f"{name} has no {role} term; leave --{role} out")
    if job.base is not None and not any(piece.about.base for piece in method.pieces):
        raise OptionError(f"{name} begins at no other model; leave --base out")
    if job.base is None and any(piece.about.needs_base for piece in method.pieces):
        raise OptionError(f"{name} needs what --model was made from; give --base")
    if job.spans is not None and method.piece("forget") is None:
        raise OptionError(f"--spans is for losses on the forget set, and {name} has none")
    if job.options.span_share is not None and job.spans != SURPRISE:
        raise OptionError("--span-share is for --spans surprise")
    if takes == "yes" and not given:
        says = "give --alternative FILE, retain, generic, own or refuse"
        raise OptionError(f"{name} reads other answers to what is forgotten; {says}")
    made = {GENERIC: 1, OWN: DRAWN, "refuse": len(REFUSALS)}.get(job.alternative or "")
    reads = getattr(method.piece("forget"), "alternatives", 0)
    if made is not None and made < reads:
        says = f"--alternative {job.alternative} has {made} for each text; lower --mismatches"
        raise OptionError(f"{name} reads {reads} other answers, and {says}")
    if takes == "no" and given:
        raise OptionError(f"{name} reads no other answers")
    if job.alternative == "retain" and not job.retain:
        raise OptionError("--alternative retain: give --retain, and a method with a retain term")


def _require_chunks(job: Asked, method: Method) -> None:
    """Raises OptionError where ``--chunk`` or ``--stop-el`` cannot be."""
    o = job.options
    if o.chunk is None and o.stop_el is None:
        return
    asked = "--stop-el" if o.chunk is None else "--chunk"
    if method.piece("forget") is None:
        raise OptionError(f"{asked} is for losses on the forget set; {method.name} has none")
    if o.chunk is not None and (o.lora_rank is not None or method.lora):
        raise OptionError("--chunk: an adapter would be merged after each chunk; drop LoRA")
    if job.select is not None:
        raise OptionError(f"{asked} and --eval-tasks both say when to stop; give one")
    if o.stop_el is not None and job.spans is not None:
        raise OptionError("--stop-el looks at whole texts, and --spans forgets parts; give one")
    if process_count() > 1:
        raise OptionError(f"{asked} is for one process")


def checked(options: TrainOptions, method: Method) -> TrainOptions:
    """The options, with the conditions that a training is to survive by their names in full."""
    if options.keep_adapter and options.lora_rank is None:
        raise OptionError("--keep-adapter: there is an adapter only with --lora-rank")
    if options.survive is None:
        return options
    if options.survive_forget == "worst" and not any(p.kind == "forget" for p in method.terms):
        raise OptionError(f"--survive-forget worst: {method.name} has no forget term")
    return options.model_copy(update={"survive": _survived(options.survive, method)})


def _survived(asked: str, method: Method) -> str:
    """The names in full of the conditions that a training is to survive. Raises OptionError where
    one does not follow from the weights alone, or ``method`` trains no output.
    """
    specs = resolve([name.strip() for name in asked.split(",") if name.strip()])
    if not specs:
        raise OptionError("--survive names no condition")
    for spec in specs:
        if not has_codes(spec) or spec.by_matrix or "dequantized" not in spec.kernels:
            raise OptionError(
                f"--survive {spec.name}: it does not follow from the weights alone; use precisions "
                "that do, as rtn-int4, bnb-nf4 or gguf-q4_0"
            )
        if (lacking := spec.missing()) is not None:
            raise OptionError(f"--survive {spec.name}: {lacking}")
    if method.stage is None:
        raise OptionError(f"--survive: {method.name} does not train the model that it makes")
    if not can_survive(method):
        raise OptionError(f"--survive adds terms up; {method.name} goes by the value of one alone")
    return ",".join(spec.name for spec in specs)


def can_survive(method: Method) -> bool:
    """Whether the loss of a method that trains its output can be taken at rounded weights too."""
    return not {"kga", "ilu"} & {piece.about.name for piece in method.pieces}


def open_base(given: str, load: LoadOptions, target: CheckpointSource) -> CheckpointSource:
    """What the target was made from. Raises OptionError where it does not have its tokens."""
    base = open_checkpoint(given, load.model_copy(update={"revision": None, "tokenizer": None}))
    sizes = [s.config.get_text_config().vocab_size for s in (base, target)]
    if sizes[0] != sizes[1] or probe_ids(base.tokenizer) != probe_ids(target.tokenizer):
        raise OptionError(
            f"--base {given} has other tokens than --model; give what it was made from"
        )
    return base
