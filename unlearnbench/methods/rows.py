"""What a loss sees: token sequences, batches of them, and the rows of one role in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from unlearnbench.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Tensor: TypeAlias = "torch.Tensor"
"""For annotations, in files that import torch only inside functions."""

Soft: TypeAlias = "tuple[NDArray[np.int32], NDArray[np.float32]]"
"""What a teacher says at the learned positions of a text: tokens, (positions, k), and their
probabilities with what they leave of 1 behind them, (positions, k + 1)."""

IGNORED = -100
"""The label of a position that is not learned: padding, the question before an answer."""

Role = Literal["forget", "alternatives", "retain", "auxiliary", "unseen"]
"""What a row of a batch is: a text to forget, another answer for one, a text of the retain set, or
one of a third set. ``unseen`` texts are in no batch."""


@dataclass(frozen=True)
class Translation:
    """A sequence with other names in it, beside the sequence that it is of."""

    ids: tuple[int, ...]
    at: tuple[int | None, ...]
    """For each token of the sequence the one here after which as much is said; None inside a name,
    or where the tokens are cut otherwise."""
    repeated: tuple[bool, ...]
    """Whether a token of the sequence is part of a name that stood before."""
    seen: tuple[tuple[int, int], ...]
    """From which position on a name has stood in the sequence, and its stand-in's first token."""


@dataclass(frozen=True)
class Example:
    """One token sequence to learn from."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """The same, with IGNORED where nothing is learned."""
    is_qa: bool = False
    begin: int = 0
    """Special tokens at the start of a pair, of which a prompt of several has one set."""
    prompt: int = 0
    """Tokens of the question, or of the start of a text that another answer goes on from."""
    reference: float | None = None
    """The target's log-probability of the learned tokens, where a loss reads it."""
    weights: tuple[float, ...] | None = None
    """What each position counts beside its label, where a method weighs positions."""
    alternatives: tuple[Example, ...] = ()
    """Other answers to the same question, or other continuations of the same text."""
    translation: Translation | None = None
    """The sequence with stand-ins for its names, where ``--anchors`` gives some."""
    document: int = field(default=0, repr=False)
    """The number of the document within its set, of which it may be one piece of several."""
    soft: tuple[Soft, ...] = field(default=(), repr=False, compare=False)
    """What each of some teachers says of it."""

    @property
    def learned(self) -> int:
        """Tokens that are learned; the first is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])

    @property
    def weight(self) -> float:
        """The sum of the weights of the learned tokens."""
        if self.weights is None:
            return float(self.learned)
        pairs = zip(self.labels[1:], self.weights[1:], strict=True)
        return sum(weight for label, weight in pairs if label != IGNORED)


@dataclass(frozen=True)
class Shard:
    """One model of an ensemble whose models learn from disjoint texts, slice after slice."""

    name: str
    """Of its folder in the output."""
    seed: int
    slices: Sequence[Sequence[Example]]
    first: int = 0
    """The slice with which training begins."""
    begin: Callable[[], Any] | None = None
    """Loads the model as it was before that slice; None: as the ensemble began."""

    def state(self, number: int) -> str:
        """The name of the model after slice ``number``; after the last one it is the shard's."""
        last = number == len(self.slices) - 1
        return self.name if last else f"{self.name}-slice-{number}"


@dataclass(frozen=True)
class Part:
    """The rows of one role in one forward pass. Sums over parts divided by ``all_rows``,
    ``all_tokens`` or ``all_weight`` are means over the whole optimizer step.
    """

    logits: Tensor
    """(rows, width, vocabulary)."""
    labels: Tensor
    """(rows, width), IGNORED where nothing is learned."""
    all_rows: int
    """Rows of the whole step, over accumulated batches and processes."""
    all_tokens: int
    """Learned tokens of the whole step."""
    sequences: Tensor | None = None
    """(rows,): the target's log-probability of each sequence."""
    references: Mapping[str, Tensor] = field(default_factory=dict)
    """Logits of frozen models, by name, each shaped as ``logits``."""
    weights: Tensor | None = None
    """(rows, width): what each position counts."""
    all_weight: float = 0.0
    alternatives: Part | None = None
    """The other answers, those of a row one after another."""
    soft: Mapping[str, Tensor] | None = None
    """The mean of some teachers at learned tokens, row after row: ``ids`` and ``probs``, (tokens,
    n), an id perhaps several times; ``rest``, (tokens,), the probability of all others together."""

    def reference(self, name: str = "target") -> Tensor:
        """The logits of a frozen model. Raises OptionError where ``ABOUT.references`` does not ask
        for them.
        """
        if name not in self.references:
            raise OptionError(f"this loss needs the {name}'s logits")
        return self.references[name]

    def others(self) -> Part:
        """The other answers. Raises OptionError where the batch has none."""
        if self.alternatives is None:
            raise OptionError("this loss needs other answers beside each forget text")
        return self.alternatives

    def teachers(self) -> Mapping[str, Tensor]:
        """``soft``. Raises OptionError where the batch has none."""
        if self.soft is None:
            raise OptionError("this loss needs what teachers say of each forget text")
        return self.soft

    def target_sequences(self) -> Tensor:
        """The target's log-probability of each row. Raises OptionError where it is not known."""
        if self.sequences is None:
            raise OptionError("this loss needs the target's log-probabilities")
        return self.sequences


@dataclass(frozen=True)
class Batch:
    """One forward pass: forget rows first, then those of the other roles."""

    inputs: dict[str, Tensor]
    """input_ids and attention_mask, each (rows, width), padded on the right."""
    labels: Tensor
    rows: Mapping[Role, int]
    """How many rows each role has, in the order in which they stand."""
    all_rows: int
    """Forget rows of the whole optimizer step."""
    all_tokens: Mapping[Role, int]
    """Learned tokens of the whole step, by role."""
    all_weight: float = 0.0
    weights: Tensor | None = None
    sequences: Mapping[Role, Tensor] = field(default_factory=dict)
    """The target's log-probabilities of forget rows and alternatives."""
    soft: Mapping[str, Tensor] | None = None
    """What teachers say of the forget rows, as a Part has it."""

    def slice(self, role: Role) -> slice:
        """Where the rows of ``role`` stand."""
        start = 0
        for name, count in self.rows.items():
            if name == role:
                return slice(start, start + count)
            start += count
        return slice(start, start)

    def inputs_of(self, role: Role) -> dict[str, Tensor]:
        """The rows of ``role`` of ``inputs``."""
        return {name: tensor[self.slice(role)] for name, tensor in self.inputs.items()}

    def only(self, *roles: Role) -> Batch:
        """The rows of some roles, as a batch of the same step."""
        import torch

        def cut(tensor: Tensor) -> Tensor:
            return torch.cat([tensor[self.slice(role)] for role in roles])

        return replace(
            self,
            inputs={name: cut(tensor) for name, tensor in self.inputs.items()},
            labels=cut(self.labels),
            rows={role: self.rows[role] for role in roles if role in self.rows},
            weights=None if self.weights is None else cut(self.weights),
        )


def learned_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits that predict learned tokens, (tokens, vocabulary) in at least float32, and those
    tokens, (tokens,); row after row.
    """
    import torch

    learned = labels[:, 1:] != IGNORED
    found = logits[:, :-1][learned]
    return found.to(torch.promote_types(found.dtype, torch.float32)), labels[:, 1:][learned]


def token_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each learned token given those before it, (rows, width - 1), in at least
    float32; exactly 0 where the label is IGNORED. logits: (rows, width, vocabulary); labels: (rows,
    width), where the label at position t is predicted by the logits at t - 1.
    """
    import torch

    wide = logits if logits.dtype == torch.float64 else logits.float()
    found, expected = wide[:, :-1].transpose(1, 2), labels[:, 1:]
    cross_entropy = torch.nn.functional.cross_entropy
    return -cross_entropy(found, expected, ignore_index=IGNORED, reduction="none")


def sequence_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of ``token_logprobs`` of each row: shape (rows,)."""
    return token_logprobs(logits, labels).sum(dim=1)
