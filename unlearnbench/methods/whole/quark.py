"""Quark: what the model writes is sorted by reward, and it learns each behind its quantile's token;
then it is asked behind the best.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearnbench.checkpoints.steered import steered
from unlearnbench.errors import TrainingError
from unlearnbench.methods.base import About, Drawing, FrozenModel, PreTrainedModel, TrainingContext
from unlearnbench.methods.contrast import require_one_process
from unlearnbench.methods.options import option
from unlearnbench.methods.rewards import KEEPS, find_reward, keeps, quantiles, rewarded
from unlearnbench.methods.rows import IGNORED, Batch, Example, Tensor, learned_logits
from unlearnbench.util.files import write_whole, writing


@dataclass(frozen=True)
class QuarkOptions:
    """The rounds, what is sampled and what it earns."""

    quark_quantiles: int = option(5, "Quantiles of the rewards, with a token each.", least=1)
    quark_rounds: int = option(4, "Rounds: one answer to each prompt, then a training.", least=1)
    quark_beta: float = option(0.05, "Factor of the divergence from the target.", least=0)
    quark_reward: str = option("rouge", "rouge (1 - ROUGE-L recall), or an entry point's name.")
    quark_tokens: int = option(64, "Most tokens of a sampled answer.", least=1)
    quark_temperature: float = option(1.0, "Temperature of the samples.", above=0)


ABOUT = About(
    name="quark",
    title="Quark: reward-conditioned self-imitation",
    equation="max E_k E_{(x, y) of quantile k} [log p(y | r_k, x) - beta sum_t "
    "KL(p_target(. | x, y_<t) || p(. | r_k, x, y_<t))], y sampled behind r_1, the best",
    source="Lu et al. 2022, arXiv 2205.13636",
    options=QuarkOptions,
    no_adapter="trains new embeddings, which are no part of an adapter",
    may=("retain",),
    stage="unlearn",
    cost="an answer to each prompt in each round; a forward pass of a frozen model in each step, "
    "and its memory",
    differs="Released code (30c9a0f) has the divergence the other way round (its issue 2) and over "
    "logits without the new tokens, adds an entropy term, and encodes decoded answers anew, so "
    "that ids change and no end is learned; here ids are kept. Each round is a training with "
    "AdamW's state anew, of as many draws as the pool has answers; both terms are means over "
    "tokens. The reward against a text's second half, or a question's answer, is ours [derived], "
    "as are a cut that keeps equal rewards together and the retain set. The best token is written "
    "behind the begin token by the tokenizer; a chat template does not have it.",
)


@dataclass(frozen=True)
class Prompt:
    """What is asked, and what the forget set has behind it."""

    ids: tuple[int, ...]
    text: str
    truth: str
    is_qa: bool
    stays: bool = False
    """Whether it is of the retain set."""


@dataclass(frozen=True)
class Answer:
    """What was written once, with its end token."""

    prompt: int
    ids: tuple[int, ...]
    reward: float


@dataclass(frozen=True)
class Imitation:
    """Cross-entropy behind the token, and the divergence from the target, which sees none."""

    target: FrozenModel
    beta: float

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """``forget``: the cross-entropy; ``retain``: the divergence, weighted; and their sum."""
        ours = model(**batch.inputs_of("forget"), use_cache=False).logits
        theirs = self.target(model, batch.inputs_of("alternatives")).logits
        logits, words = learned_logits(ours, batch.labels[batch.slice("forget")])
        known, _ = learned_logits(theirs, batch.labels[batch.slice("alternatives")])
        log_p, log_q = logits.log_softmax(-1), known.log_softmax(-1)
        count = batch.all_tokens["forget"]
        terms = {
            "forget": -log_p.gather(1, words[:, None]).sum() / count,
            # The new tokens have no share in the target's distribution.
            "retain": self.beta
            * (log_q.exp() * (log_q - log_p[:, : log_q.shape[1]])).sum()
            / count,
        }
        return {"loss": terms["forget"] + terms["retain"], **terms}


def extend(model: Any, ids: Sequence[int], seed: int) -> None:
    """Give ``model`` rows for new tokens: normal draws with mean and deviation of its table, by
    column; and let plain transformers never write them.
    """
    import torch

    known = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= known:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    with torch.no_grad():
        for table in tables:
            old = table[: min(known, min(ids))].double().cpu()
            drawn = torch.randn(len(ids), old.shape[1], generator=generator, dtype=torch.float64)
            table[list(ids)] = (old.mean(0) + old.std(0) * drawn).to(table)
    model.generation_config.suppress_tokens = list(ids)


def prompts_of(context: TrainingContext) -> list[Prompt]:
    """Questions, and the first halves of texts: of the forget set, and of a retain set."""
    made: list[Prompt] = []
    for example in (*context.forget, *context.retain):
        stays = len(made) >= len(context.forget)
        at = example.prompt if example.is_qa else (len(example.ids) + 1) // 2
        asked, told = (
            context.tokenizer.decode(part, skip_special_tokens=True).strip()
            for part in (example.ids[:at], example.ids[at:])
        )
        made.append(Prompt(example.ids[:at], asked, told, example.is_qa, stays))
    return made


def behind(prompt: Sequence[int], token: int | None, begin: Sequence[int]) -> tuple[int, ...]:
    """A prompt with a reward token behind its begin token, as the tokenizer's template has it."""
    if token is None:
        return tuple(prompt)
    at = len(begin) if tuple(prompt[: len(begin)]) == tuple(begin) else 0
    return (*prompt[:at], token, *prompt[at:])


def explore(
    context: TrainingContext,
    prompts: Sequence[Prompt],
    asked: Sequence[tuple[int, ...]],
    number: int,
    options: QuarkOptions,
    barred: Sequence[int],
) -> list[Answer]:
    """One answer to each prompt, and what it earns; kept in a file, so that a training which was
    interrupted goes on with the same.
    """
    path = context.home / f"answers{number}.json"
    if path.exists():
        return [Answer(at, tuple(ids), r) for at, ids, r in json.loads(path.read_bytes())]
    reward = find_reward(options.quark_reward)
    decode = context.tokenizer.decode
    told: dict[int, tuple[int, ...]] = {}
    for is_qa in (True, False):
        which = [at for at, prompt in enumerate(prompts) if prompt.is_qa == is_qa]
        # An answer is a line, as it is evaluated.
        stopped = (lambda told: "\n" in decode(told).lstrip()) if is_qa else lambda told: False
        how = Drawing(options.quark_tokens, options.quark_temperature, barred, stopped)
        found = context.write({f"{number}/{at}": asked[at] for at in which}, how)
        told |= dict(zip(which, found, strict=True))
    made = []
    for at, prompt in enumerate(prompts):
        text = decode(told[at], skip_special_tokens=True).strip()
        text = text.split("\n")[0].strip() if prompt.is_qa else text
        name, of = (KEEPS, keeps) if prompt.stays else (options.quark_reward, reward)
        earned = rewarded(name, of, prompt.text, text, prompt.truth)
        made.append(Answer(at, told[at], earned))
    with writing(path, TrainingError, "free some space and add --resume"):
        facts = [(answer.prompt, answer.ids, answer.reward) for answer in made]
        write_whole(path, json.dumps(facts).encode())
    return made


def lessons(
    pool: Sequence[Answer],
    prompts: Sequence[Prompt],
    ids: Sequence[int],
    begin: Sequence[int],
    seed: str,
) -> list[Example]:
    """As many draws as there are answers, a quantile and then one of its answers, each behind its
    quantile's token; beside it, for the target, the same without one.
    """
    rng = random.Random(seed)  # noqa: S311 - a seeded generator is the point
    parts = quantiles([answer.reward for answer in pool], len(ids))
    made = []
    for _ in pool:
        rank = rng.randrange(len(parts))
        answer = pool[rng.choice(parts[rank])]
        rows = []
        for token in (ids[rank], None):
            asked = behind(prompts[answer.prompt].ids, token, begin)
            hidden = (IGNORED,) * len(asked)
            rows.append(((*asked, *answer.ids), (*hidden, *answer.ids)))
        (whole, plain) = (Example(*row) for row in rows)
        made.append(Example(whole.ids, whole.labels, alternatives=(plain,)))
    return made


def train(context: TrainingContext, options: QuarkOptions) -> PreTrainedModel:
    """Round after round: write, rank, learn. What the first is about is written by the target."""
    require_one_process(ABOUT.name)
    find_reward(options.quark_reward)
    tokenizer, ids, begin = steered(context.tokenizer, options.quark_quantiles)
    prompts, model = prompts_of(context), context.model
    pool = explore(context, prompts, [prompt.ids for prompt in prompts], 1, options, ())
    loss = Imitation(context.freeze(), options.quark_beta)
    extend(model, ids, context.seed)
    context.retokenize(tokenizer)
    for number in range(1, options.quark_rounds + 1):
        if number > 1:
            asked = [behind(prompt.ids, ids[0], begin) for prompt in prompts]
            pool += explore(context, prompts, asked, number, options, ids)
        rows = lessons(pool, prompts, ids, begin, f"{context.seed}/{number}")
        model = context.fit(loss, forget=rows, stage=f"round{number}")
    return model
