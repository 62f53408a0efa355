"""Relearning: N steps of AdamW on texts (``--relearn-on``), on all weights or through a LoRA that
is merged in at the end. A model that only hides what it knows comes back in few steps; one that
never knew must be taught, which the same steps on the retrained model show.

Plain cross-entropy over every token of a text, and of a task's row over its answer; a constant
rate, no decay, gradients clipped to norm 1, weights in fp32. The order of the texts is drawn from
the seed, so that relearn-5 is on the way to relearn-10. Defaults: of all weights lr 1e-5 and 4
texts a step (Fan et al. 2025, arXiv 2502.05374, on MUSE), of a LoRA rank 128, alpha 16, lr 2e-4
(Lucki et al. 2024, arXiv 2409.18025).
"""

from __future__ import annotations

import random
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    Materials,
    ModelWithProof,
    Option,
    Relearning,
)
from unlearnbench.conditions.proof import load_state
from unlearnbench.errors import DataError, NotInForceError, PrecisionError
from unlearnbench.util.process import muted, unmoved_caches
from unlearnbench.util.text import blank_in_answer

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.checkpoint import CheckpointSource
    from unlearnbench.checkpoints.source import Source

Piece: TypeAlias = tuple[list[int], list[int]]
"""Token ids, and labels beside them."""

CONDITIONS = ()
FAMILY = ConditionSpec(
    "relearn-N",
    "relearned",
    "N steps of AdamW on texts (relearn-lora-N: through a LoRA)",
    learns=True,
    needs_control=True,
)

_RATE, _LORA_RATE = 1e-5, 2e-4
_LORA = {"lora_rank": 128, "lora_alpha": 16}
_TOKENS = 2048
_MOST_STEPS = 100_000
_IGNORED = -100


def parse(name: str) -> ConditionSpec | None:
    """``relearn-20``, ``relearn-lora-20``; ``relearn-0`` is the checkpoint."""
    match = re.fullmatch(r"relearn-(lora-)?(\d{1,9})", name, re.ASCII)
    if match is None:
        return None
    steps, lora = int(match.group(2)), match.group(1) or ""
    if steps > _MOST_STEPS:
        raise PrecisionError(f"{name}: use {_MOST_STEPS} steps at most")
    how = "through a LoRA that is merged in" if lora else "on all weights"
    return replace(
        FAMILY,
        name=f"relearn-{lora}{steps}",
        scheme=f"{steps} steps of AdamW on texts, {how}",
        options={"steps": steps, **(_LORA if lora else {})},
    )


def settle(spec: ConditionSpec, source: Source, materials: Materials) -> Mapping[str, Option]:
    """The texts, the rate and the like. Raises PrecisionError where there are no texts, or the
    checkpoint is several models, or one with an adapter beside it.
    """
    given = materials.relearning
    if source.ensemble is not None:
        what = "it holds several models, and relearning trains one"
        raise PrecisionError(f"{spec.name} of {source.files.path}: {what}")
    if source.adapter_kept:
        what = "it trains the merged weights; use --adapter merge"
        raise PrecisionError(f"{spec.name} of {source.files.path}: {what}")
    if given is None:
        raise PrecisionError(f"{spec.name} needs texts; give --relearn-on")
    return {**given.facts, "lr": _rate(spec, given), "most_tokens": _TOKENS}


def _rate(spec: ConditionSpec, given: Relearning) -> float:
    return given.lr or (_LORA_RATE if "lora_rank" in spec.options else _RATE)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Raises NotInForceError where a loss is not finite or no weight moved, and DataError where no
    text has two tokens.
    """
    given, steps = plan.materials.relearning, int(spec.options["steps"])
    assert given is not None  # noqa: S101 - settle sees to it
    if plan.device == "auto":
        raise PrecisionError(f"{spec.name} trains on one device; use --device cuda")
    state, figures = source.state_dict(), {"steps": float(steps)}
    if steps:
        began = time.perf_counter()
        state, losses = relearn(spec, source, plan, given)
        figures |= {"first_loss": losses[0], "last_loss": losses[-1]}
        passes = float(steps * given.batch_size)
        figures |= {"forward_passes": passes, "backward_passes": passes}
        figures["seconds"] = time.perf_counter() - began
    made = load_state(spec, source, plan, state)
    if bool(made.proof.changed_share) != bool(steps):
        raise NotInForceError(
            f"{spec.name}: {made.proof.changed_share or 0:.3g} of the weights changed; where "
            "--dtype rounds what is learned away, use --dtype fp32"
        )
    proof = made.proof.model_copy(update={"figures": figures})
    return made._replace(proof=proof)


def relearn(
    spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan, given: Relearning
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The weights after the steps, by name, on CPU in fp32, and each step's loss. Raises as
    ``load``.
    """
    import torch

    own = source.state_dict().items()  # copied: a model built on CPU may share its memory
    copied = {n: t.float() if t.dtype.itemsize < 4 else t.clone() for n, t in own}
    model: Any = source.build(torch.float32, plan.device, state=copied)
    if "lora_rank" in spec.options:
        model = _with_lora(model, given.seed)
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=_rate(spec, given), weight_decay=0.0)
    pieces, losses = _pieces(source, given), list[float]()
    stream = _stream(len(pieces), given.seed)
    for step in range(int(spec.options["steps"])):
        batch = [pieces[next(stream)] for _ in range(given.batch_size)]
        with torch.enable_grad():
            loss = _loss(model, batch, plan.device)
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(learned, 1.0)
        losses.append(float(loss.detach()))
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            raise NotInForceError(
                f"{spec.name}: the loss of step {step + 1} is not finite; lower --relearn-lr"
            )
        optimizer.step()
        optimizer.zero_grad()
    if "lora_rank" in spec.options:
        model = model.merge_and_unload()
    return {name: weight.detach().cpu() for name, weight in model.state_dict().items()}, losses


def _with_lora(model: Any, seed: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    rank, alpha = _LORA["lora_rank"], _LORA["lora_alpha"]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear")
    # PEFT asks GPTQModel, which greets.
    with torch.random.fork_rng(), warnings.catch_warnings(), muted(), unmoved_caches():
        warnings.simplefilter("ignore")  # about GPT-2's Conv1D, whose layout PEFT then sets right
        torch.manual_seed(seed)
        return get_peft_model(model, config).eval()


def _pieces(source: CheckpointSource, given: Relearning) -> list[Piece]:
    """The texts' tokens and labels; a longer text is cut into pieces, all of them kept in which
    there is something to learn. Prompt and answer are encoded each by itself, as a prompt is asked
    and an answer generated, with the blank between them where the evaluation has it.
    """
    in_answer = blank_in_answer(given.answer_blank, source.tokenizer)
    context = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    size = min(_TOKENS, context) if isinstance(context, int) and context > 1 else _TOKENS
    found = list[Piece]()
    for first, text in given.texts:
        if first and text.startswith(" ") and not in_answer:
            first, text = f"{first} ", text[1:]
        asked = list(source.tokenizer(first, verbose=False)["input_ids"]) if first else []
        told = source.tokenizer(text, add_special_tokens=not first, verbose=False)["input_ids"]
        ids, labels = [*asked, *told], [*[_IGNORED] * len(asked), *told]
        cut = [(ids[at : at + size], labels[at : at + size]) for at in range(0, len(ids), size)]
        found += [piece for piece in cut if any(label != _IGNORED for label in piece[1][1:])]
    if not found:
        raise DataError("--relearn-on: no text has two tokens; there is nothing to learn")
    return found


def _stream(count: int, seed: int) -> Iterator[int]:
    """Indexes for ever, each pass over all of them in another order."""
    rng = random.Random(seed)  # noqa: S311  # a seeded generator is the point
    while True:
        yield from rng.sample(range(count), count)


def _loss(model: Any, batch: Sequence[Piece], device: str) -> torch.Tensor:
    """The mean cross-entropy of all tokens that are learned but each text's first."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows, told = ([torch.tensor(part) for part in parts] for parts in zip(*batch, strict=True))
    ids = pad_sequence(rows, batch_first=True).to(device)
    labels = pad_sequence(told, batch_first=True, padding_value=_IGNORED).to(device)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED
    )
