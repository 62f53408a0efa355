"""Direct preference optimization: another answer is preferred to the one to forget."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, Tensor, sequence_logprobs


@dataclass(frozen=True)
class DpoOptions:
    """DPO's number."""

    beta: float = option(0.1, "Inverse temperature.", above=0)


ABOUT = About(
    name="dpo",
    title="Direct preference optimization; IdkDPO with --alternative refuse, AltPO with own",
    equation="L = -(2 / beta) E[log sigmoid(beta (D(other) - D(y)))], D(y) = log pi(y) - "
    "log pi_target(y); other = another answer to the same question, drawn each time",
    source="Rafailov et al. 2023, arXiv 2305.18290; for unlearning TOFU, arXiv 2401.06121; AltPO, "
    "Mekala et al. 2024, arXiv 2409.13474",
    options=DpoOptions,
    sequences=True,
    alternatives=1,
    differs="TOFU's refusals are a list of 100 lines, here are 20 of our own. AltPO has the target "
    "write 5 alternatives of each answer on a prompt that asks for them; with --alternative own it "
    "answers the question itself, and may not begin as the true answer does [derived]: nothing in "
    "its released code (c9b78bd) keeps the true answer out. A text has no question: its second "
    "half is the answer to its first [derived].",
)


def loss(part: Part, options: DpoOptions) -> Tensor:
    """Mean over sequences, in nats / beta; (2 / beta) log 2 at the target."""
    from torch.nn.functional import logsigmoid

    margin = _gain(part.others()) - _gain(part)
    return -(2 / options.beta) * logsigmoid(options.beta * margin).sum() / part.all_rows


def _gain(part: Part) -> Tensor:
    return sequence_logprobs(part.logits, part.labels) - part.target_sequences()
