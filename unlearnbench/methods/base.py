"""What method files are written with: how a file describes itself, and what it may ask of the
training that calls it. They never import ``training``, which implements the two protocols.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from unlearnbench.checkpoints.load import LinearLayer, linear_layers
from unlearnbench.errors import CheckpointError
from unlearnbench.methods.rows import Batch, Example, Part, Role, Shard, Tensor

if TYPE_CHECKING:
    import transformers
    from torch import nn

PreTrainedModel: TypeAlias = "transformers.PreTrainedModel"


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class About:
    """A method file's own description."""

    name: str
    title: str
    equation: str
    source: str
    """The paper."""
    options: type[Any] = NoOptions
    """A frozen dataclass; each field is made by ``option`` and becomes an option of the command."""
    data: tuple[Role, ...] = ()
    """The sets that it reads beside the forget set: retain, auxiliary."""
    may: tuple[Role, ...] = ()
    """Those that it reads where they are given."""
    reads: Role = "retain"
    """For a retain term: whose rows it is given."""
    base: bool = False
    """Whether it takes the model that the target was made from, ``--base``."""
    needs_base: bool = False
    """Whether it cannot do without."""
    sequences: bool = False
    """Whether its loss reads the target's log-probabilities of whole forget sequences."""
    references: tuple[str, ...] = ()
    """Frozen models whose logits its loss reads: ``target``, or names of its ``references``."""
    alternatives: int = 0
    """How many other answers stand beside each forget row of a batch; a function ``alternatives``
    of the file may say it of the options. Of a whole method: other answers, where they are given,
    stand in for the retain set."""
    term: str = ""
    """Of a forget loss that is itself only with a certain term on other texts: which. Its name
    stands for both."""
    stage: str | None = None
    """Of a whole method: the name of the training that makes its output; None: it is made without,
    from models that were trained."""
    rank: int = 0
    """Of a whole method that trains an adapter: its rank where --lora-rank gives none."""
    anchors: bool = False
    """Of a whole method: whether it reads the translations that ``--anchors`` gives."""
    no_adapter: str = ""
    """Of a whole method that takes no --lora-rank: why, behind its name."""
    cost: str = ""
    """What it takes beside a forward and a backward pass over its rows, and what the other fields
    say already."""
    differs: str = ""
    """Where released code computes something else, in a sentence."""


Masks = Mapping[str, Tensor]
"""Rows that may change, bool (rows,), by parameter (of a linear layer its outputs, which are the
columns of a Conv1D); every other parameter stays. A whole module may change where its mask is all
true."""

BatchLoss = Callable[[Any, Batch], dict[str, Tensor]]
"""What a training asks of (model, batch): the terms of the loss, ``loss`` among them, as shares of
the whole step's, each a tensor of shape ()."""

Within = Callable[[Any, Batch], AbstractContextManager[None]]

FrozenModel = Callable[..., Any]
"""A model to compare with: its output, of (model, inputs, hidden=False), without gradients and
dropout; ``hidden``: with the hidden states."""


@dataclass(frozen=True)
class Gradient:
    """The gradient of some terms of the loss over a whole optimizer step."""

    terms: dict[str, float]
    """The value of each term, as it stands in the record."""
    of: dict[str, Tensor]
    """By the name of the parameter."""

    def __add__(self, other: Gradient) -> Gradient:
        terms = {n: self.terms.get(n, 0.0) + v for n, v in other.terms.items()}
        return Gradient(self.terms | terms, {n: g + other.of[n] for n, g in self.of.items()})

    def __mul__(self, factor: float) -> Gradient:
        terms = {name: factor * value for name, value in self.terms.items()}
        return Gradient(terms, {name: factor * grad for name, grad in self.of.items()})

    def dot(self, other: Gradient) -> float:
        """The inner product over all parameters, in double precision."""
        pairs = ((g.double(), other.of[n].double()) for n, g in self.of.items())
        return math.fsum(float((g * o).sum()) for g, o in pairs)


class OptimizerStep(Protocol):
    """What ``gradient(step, options)`` of a file in ``steps/`` is given: once in each optimizer
    step, however many batches are accumulated. It returns the gradient to descend along.
    """

    number: int
    """From 1."""
    weights: Mapping[str, Tensor]
    """The parameters under training. To be changed in place only inside ``restored``."""
    state: dict[str, float]
    """Kept from step to step, and over an interruption."""
    whole: float
    """What the factors of one term add up to: 1, and under --survive more, for each of its
    conditions; a term divided by it is a mean."""

    def usual(self) -> Gradient:
        """That of all terms in one pass over all rows: what is descended along without a file."""

    def forget(self, within: Within | None = None) -> Gradient:
        """The forget loss' gradient at the weights as they are now. ``within``: of (model, batch),
        a block in which the loss of each batch is computed.
        """

    def retain(self) -> Gradient:
        """The same of the terms on other texts; zeros where there are none."""

    def term(self, role: Role, loss: Callable[[Part], Tensor]) -> Gradient:
        """That of another loss over the rows of one role; its value has the role's name."""

    def restored(self) -> AbstractContextManager[None]:
        """A block after which the weights are, bit for bit, what they were before."""

    def through(self, function: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """A block in which inner linear layers compute with ``function(weight)``, as rounded; the
        gradient goes to the weight, (out, in), or to its adapter, as if ``function`` were not
        there.
        """


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn."""

    most: int
    """Tokens of an answer."""
    temperature: float
    barred: Sequence[int]
    """Tokens that are never written."""
    stopped: Callable[[Sequence[int]], bool]
    """Whether an answer so far is whole."""


class TrainingContext(Protocol):
    """What a method may ask of the training that calls it."""

    model: PreTrainedModel
    """The target, which is trained in place."""
    tokenizer: Any
    seed: int
    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    auxiliary: tuple[Example, ...]
    """The third set."""

    unseen: tuple[Example, ...]
    """Texts that the target never saw."""
    start: PreTrainedModel | None
    """The model that the target was made from, where it is known."""
    epochs: float
    """Passes over the texts."""
    members: Sequence[str]
    """The names of an ensemble's models."""
    shards: Sequence[Shard]
    """Those of them that are to be trained."""
    home: Path
    """A folder for what is kept until the training is complete, and for ``--resume``."""

    def base(self) -> PreTrainedModel:
        """A new copy of that model, or else of the target."""
        return copy.deepcopy(self.model if self.start is None else self.start)

    def copy_of_target(self) -> PreTrainedModel:
        """A second model with the target's weights."""
        return copy.deepcopy(self.model)

    def reinforce(self) -> PreTrainedModel:
        """A copy of the target, trained further on the forget set."""
        return self.descend(self.copy_of_target(), self.forget, "reinforce")

    def freeze(self, model: PreTrainedModel | None = None) -> FrozenModel:
        """A model to compare with; None: the target as it is now."""

    def descend(
        self, model: PreTrainedModel, examples: Sequence[Example], stage: str, **changed: Any
    ) -> PreTrainedModel:
        """Train ``model`` on ``examples`` by plain cross-entropy. changed: options of the training
        that are others here, as ``lora_rank``.
        """

    def fit(
        self,
        loss: BatchLoss,
        learns: Callable[[str], bool] | None = None,
        *,
        forget: Sequence[Example] | None = None,
        gradient: Callable[[OptimizerStep], Gradient] | None = None,
        sgd: bool = False,
        adapts: tuple[str, ...] | None = None,
        stage: str = "unlearn",
    ) -> PreTrainedModel:
        """Train the target on all sets; only parameters whose name ``learns`` accepts change.
        ``forget``: in place of the forget set. ``gradient`` makes that of each step; None: that of
        the loss. ``sgd``: by plain steps, without AdamW. ``adapts``: the linear layers that get a
        LoRA adapter, by name. ``stage``: the training's name.
        """

    def forget_gradient(self) -> dict[str, Tensor]:
        """The forget loss' gradient at the target, float32, (out, in), by the parameter of every
        inner linear weight.
        """

    def relabel(
        self, models: Sequence[PreTrainedModel], label: Callable[..., Tensor]
    ) -> tuple[Example, ...]:
        """The forget set with labels ``label(*logits of each model, labels)``."""

    def logits(self, model: PreTrainedModel, examples: Sequence[Example]) -> Iterator[Tensor]:
        """Of each example in turn, (tokens, vocabulary)."""

    def measure(
        self,
        models: Sequence[PreTrainedModel],
        examples: Sequence[Example],
        make: Callable[..., Tensor],
    ) -> list[Any]:
        """``make(*logits of each model, labels)``, (rows, ...), of each example."""

    def others(self) -> tuple[Example, ...]:
        """The other answers to what is forgotten, where ``--alternative`` gives some."""

    def write(self, prompts: Mapping[str, Sequence[int]], how: Drawing) -> list[tuple[int, ...]]:
        """What the model under training writes behind each prompt, drawn by seed and the prompt's
        name; an end token is kept.
        """

    def retokenize(self, tokenizer: Any) -> None:
        """Take another tokenizer, for the output too."""

    def keep(self, name: str, model: PreTrainedModel) -> None:
        """Save a state on the way as a checkpoint, in a folder of the output called ``name``."""

    def answer(self, example: Example, other: str | Sequence[int]) -> Example:
        """``example`` with another answer after its first ``prompt`` tokens, as text or tokens."""


@dataclass(frozen=True)
class Ensemble:
    """The result of a whole method whose models answer together, by ``combine`` of its file:
    ``combine(logits, numbers)`` makes one model's logits of those of all.
    """

    models: Mapping[str, PreTrainedModel]
    """By the name of their folder in the output."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What ``combine`` needs to know."""
    kept: tuple[str, ...] = ()
    """Names of models that are states on the way, saved already."""


def inner_linears(model: nn.Module) -> dict[str, LinearLayer]:
    """The linear layers of a model but its output head, by name: what quantization touches.
    ``out_first`` says how their weights lie. Raises CheckpointError where there is none.
    """
    if found := linear_layers(model):
        return found
    name = type(model).__name__
    raise CheckpointError(
        f"{name} has no linear layers, which this method works on; use another method"
    )
