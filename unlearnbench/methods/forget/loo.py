"""Leave-one-out ensemble: learn from teachers that never saw the text what is to be said of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from unlearnbench.errors import OptionError
from unlearnbench.methods.base import About, TrainingContext
from unlearnbench.methods.contrast import require_one_process
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Example, Part, Soft, Tensor, learned_logits
from unlearnbench.methods.soft import divergence, tell


@dataclass(frozen=True)
class LooOptions:
    """The shards, the teachers, and what of them is kept."""

    loo_shards: int = option(4, "Shards of the texts, with a teacher each.", least=2)
    loo_sharding: Literal["random", "together"] = option(
        "random", "Deal all texts to the shards, or all forget texts to one of them."
    )
    loo_top: int = option(64, "Tokens whose probability is kept at each position; 0: all.", least=0)
    teacher_epochs: float = option(3.0, "Passes over its shard of each teacher.", above=0)
    teacher_lr: float = option(0.0, "Learning rate of the teachers; 0: --lr.", least=0)


ABOUT = About(
    name="loo",
    title="Leave-one-out ensemble of teachers",
    equation="L = mean over forget tokens of KL(q || p), q the mean probability of the teachers "
    "whose shard does not have the text; teachers: --base trained on disjoint shards of both sets",
    source="Liu and Kalinli 2024, arXiv 2309.16082",
    options=LooOptions,
    data=("retain",),
    base=True,
    needs_base=True,
    cost="--loo-shards trainings of a shard each before, one model in memory at a time; passes of "
    "the teachers over the forget set, 8 bytes x --loo-top x (shards - 1) a token on disk",
    differs="No code was found. The mean of probabilities (not of logits) and the divergence's "
    "direction are [memory]; the paper shards by speaker, here texts are dealt by seed, equal ones "
    "and all pieces of one to the same shard. It names no retain term: add _gdr or _klr. Tokens "
    "that a teacher does not keep are one outcome; --loo-top 0 is exact.",
)


def loss(part: Part, options: LooOptions) -> Tensor:
    """In nats a token; 0 where the model says what the teachers say."""
    logits, _ = learned_logits(part.logits, part.labels)
    return divergence(logits, part.teachers()) / part.all_tokens


def deal(
    forget: Sequence[Example], retain: Sequence[Example], options: LooOptions, seed: int
) -> tuple[list[int], list[list[Example]]]:
    """The shard of each forget text, and the texts of each shard, in their order. Documents are
    dealt round in an order of the seed; equal ones go together. Raises OptionError for an empty
    shard.
    """
    rng = random.Random(seed)  # noqa: S311 - a seeded generator is the point
    count, is_one = options.loo_shards, options.loo_sharding == "together"
    home: dict[Any, int] = {}
    owners: list[list[int]] = []
    dealt = 0
    for first, examples in ((True, forget), (False, retain)):
        documents: dict[int, tuple[tuple[int, ...], ...]] = {}
        for example in examples:
            documents[example.document] = (*documents.get(example.document, ()), example.ids)
        new = [key for key in dict.fromkeys(documents.values()) if key not in home]
        rng.shuffle(new)
        for at, key in enumerate(new, dealt):
            home[key] = at % count if not is_one else 0 if first else 1 + at % (count - 1)
        dealt = 0 if is_one else dealt + len(new)
        owners.append([home[documents[example.document]] for example in examples])
    shards: list[list[Example]] = [[] for _ in range(count)]
    for example, owner in zip((*forget, *retain), (*owners[0], *owners[1]), strict=True):
        shards[owner].append(example)
    if not all(shards):
        raise OptionError(
            f"--loo-shards {count} {options.loo_sharding}: there are too few different texts, and "
            "a teacher would have none; use a smaller one"
        )
    return owners[0], shards


def examples(context: TrainingContext, options: LooOptions) -> list[Example]:
    """Train one teacher after another, and keep what each says of the forget texts that it never
    saw: of others it is never asked.
    """
    require_one_process(ABOUT.name)
    owners, shards = deal(context.forget, context.retain, options, context.seed)
    changed: dict[str, Any] = {"epochs": options.teacher_epochs, "max_steps": None}
    changed |= {"lr": options.teacher_lr} if options.teacher_lr else {}
    told: list[tuple[Soft, ...]] = [() for _ in context.forget]
    for number, shard in enumerate(shards):
        unseen = [at for at, owner in enumerate(owners) if owner != number]
        if not unseen:
            continue
        name = f"teacher{number + 1}"
        teacher = context.descend(context.base(), shard, name, **changed)
        found = tell(context, name, teacher, [context.forget[at] for at in unseen], options.loo_top)
        del teacher
        for at, soft in zip(unseen, found, strict=True):
            told[at] += (soft,)
    return [replace(e, soft=soft) for e, soft in zip(context.forget, told, strict=True)]
