"""Who's Harry Potter as fine-tuning: the target learns the generic labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from unlearnbench.errors import OptionError
from unlearnbench.methods.base import About, PreTrainedModel, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import IGNORED, Example, Tensor
from unlearnbench.methods.whole.whp import generic_logits


@dataclass(frozen=True)
class WhpFtOptions:
    """The labels' numbers."""

    alpha: float = option(5.0, "Strength of the logit difference.", least=0)
    anchor_penalty: float = option(
        5.0,
        "With --anchors: so much lower are the logits of stand-ins whose name has stood before.",
        least=0,
    )


ABOUT = About(
    name="whp_ft",
    title="Who's Harry Potter, by fine-tuning on generic labels",
    equation="label(t) = argmax (v_target - alpha relu(v_reinforced - v_target)), with --anchors "
    "v_target of the text with stand-ins for its names; then cross-entropy",
    source="Eldan and Russinovich 2023, arXiv 2310.02238",
    options=WhpFtOptions,
    anchors=True,
    cost="a training on the forget set before, and two models in memory",
    stage="generic",
    differs="The paper's names and stand-ins are a language model's; here they are a file's, or by "
    "a rule names that only the forget texts have (--anchors names), and without --anchors no name "
    "is replaced. By how much the paper lowers the stand-ins of names that stood before is not "
    "known to us: --anchor-penalty is our number.",
)


def generic_labels(baseline: Tensor, reinforced: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Replace every learned label by the generic prediction for its position.

    baseline, reinforced: logits (rows, width, vocabulary); labels (rows, width), IGNORED where
    nothing is learned. Returns (rows, width).
    """
    generic = labels.clone()
    generic[:, 1:] = generic_logits(baseline, reinforced, alpha)[:, :-1].argmax(dim=-1)
    return generic.where(labels != IGNORED, IGNORED)


def anchored_labels(
    baseline: Tensor, reinforced: Tensor, example: Example, options: WhpFtOptions
) -> tuple[int, ...]:
    """The labels of a sequence with a translation: the generic prediction at the place of the
    translation that stands for a position. IGNORED where there is none, as inside a name, and
    where a name comes again; a stand-in whose name has stood before is held back.

    baseline: logits of the translation, (its tokens, vocabulary); reinforced: of the sequence.
    """
    found = example.translation
    assert found is not None  # noqa: S101 - asked for only where there is one
    labels = [example.labels[0], *[IGNORED] * (len(example.ids) - 1)]
    known = [
        (position, place)
        for position, place in enumerate(found.at[:-1], 1)
        if place is not None
        and example.labels[position] != IGNORED
        and not found.repeated[position]
    ]
    if not known:
        return tuple(labels)
    theirs = baseline[[place for _, place in known]]
    ours = reinforced[[position - 1 for position, _ in known]]
    generic = generic_logits(theirs, ours, options.alpha)
    for start, token in found.seen:
        behind = [row for row, (position, _) in enumerate(known) if position >= start]
        generic[behind, token] -= options.anchor_penalty
    for (position, _), label in zip(known, generic.argmax(dim=-1).tolist(), strict=True):
        labels[position] = label
    return tuple(labels)


def _relabel(
    context: TrainingContext,
    target: PreTrainedModel,
    reinforced: PreTrainedModel,
    options: WhpFtOptions,
) -> Iterator[Example]:
    """Raises OptionError where no label is left."""
    texts = [e.translation for e in context.forget if e.translation is not None]
    baselines = context.logits(target, [Example(t.ids, t.ids) for t in texts])
    logits = zip(baselines, context.logits(reinforced, context.forget), strict=True)
    learned = 0
    for example, (theirs, ours) in zip(context.forget, logits, strict=True):
        made = replace(example, labels=anchored_labels(theirs, ours, example, options))
        learned += made.learned
        yield made
    if not learned:
        raise OptionError("--anchors leaves nothing to learn; give fewer names")


def train(context: TrainingContext, options: WhpFtOptions) -> PreTrainedModel:
    """Reinforce a copy, label the forget set with both models, and train the target on that."""
    target = context.copy_of_target()
    reinforced = context.reinforce()
    if any(example.translation is not None for example in context.forget):
        relabelled = tuple(_relabel(context, target, reinforced, options))
    else:
        relabelled = context.relabel(
            (target, reinforced),
            lambda v_b, v_r, labels: generic_labels(v_b, v_r, labels, options.alpha),
        )
    del reinforced
    return context.descend(target, relabelled, "generic")
