"""Every loss and its gradient against plain Python loops in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unlearnbench.errors import OptionError
from unlearnbench.methods import pieces
from unlearnbench.methods.rows import IGNORED, Part, sequence_logprobs, token_logprobs

Array = NDArray[np.float64]
ROWS, WIDTH, WORDS = 4, 7, 11
TOLERANCE = 1e-8


def log_softmax(row: Array) -> Array:
    top = row.max()
    result: Array = row - top - math.log(sum(math.exp(x - top) for x in row))
    return result


def logprobs(logits: Array, labels: Sequence[Sequence[int]]) -> list[list[float]]:
    """The log-probability of every learned token, a list a row."""
    return [
        [log_softmax(logits[i, t - 1])[label] for t, label in enumerate(row) if t and label >= 0]
        for i, row in enumerate(labels)
    ]


def ga(logits: Array, labels: list[list[int]], reference: Array, numbers: Any) -> float:
    found = [x for row in logprobs(logits, labels) for x in row]
    return float(sum(found) / len(found))


def gdr(logits: Array, labels: list[list[int]], reference: Array, numbers: Any) -> float:
    return -float(numbers.retain_weight) * ga(logits, labels, reference, numbers)


def npo(logits: Array, labels: list[list[int]], reference: Array, numbers: Any) -> float:
    total = 0.0
    for row, target in zip(logprobs(logits, labels), reference, strict=True):
        ratio = sum(row) - float(target)
        total += math.log(1 / (1 + math.exp(numbers.beta * ratio)))
    return float(-2 / numbers.beta * total / len(labels))


def simnpo(logits: Array, labels: list[list[int]], reference: Array, numbers: Any) -> float:
    total = 0.0
    for row in logprobs(logits, labels):
        reward = numbers.beta * sum(row) / len(row)
        total += math.log(1 / (1 + math.exp(reward + numbers.gamma)))
    return float(-2 / numbers.beta * total / len(labels))


def klr(logits: Array, labels: list[list[int]], reference: Array, numbers: Any) -> float:
    total, count = 0.0, 0
    for i, row in enumerate(labels):
        for t, label in enumerate(row):
            if t and label >= 0:
                p, q = log_softmax(logits[i, t - 1]), log_softmax(reference[i, t - 1])
                total += sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
                count += 1
    return float(numbers.retain_weight * total / count)


def predictions(logits: Array, labels: list[list[int]]) -> list[tuple[int, int, int]]:
    """(row, position whose logits predict it, label) of every learned token."""
    return [
        (i, t - 1, label)
        for i, row in enumerate(labels)
        for t, label in enumerate(row)
        if t and label >= 0
    ]


def unlikelihood(logits: Array, labels: list[list[int]], reference: Array, numbers: Any) -> float:
    found = [
        -math.log(1 - math.exp(log_softmax(logits[i, t])[label]))
        for i, t, label in predictions(logits, labels)
    ]
    return sum(found) / len(found)


def satimp(
    logits: Array,
    labels: list[list[int]],
    reference: Array,
    numbers: Any,
    held: Array | None = None,
) -> float:
    """``held``: the logits that the weights are taken at, which have no gradient."""
    found = []
    for i, t, label in predictions(logits, labels):
        p = math.exp(log_softmax((logits if held is None else held)[i, t])[label])
        weight = p**numbers.beta1 * (1 - p) ** numbers.beta2
        found.append(weight * log_softmax(logits[i, t])[label])
    return float(sum(found) / len(found))


def wga(
    logits: Array,
    labels: list[list[int]],
    reference: Array,
    numbers: Any,
    held: Array | None = None,
) -> float:
    powers = SimpleNamespace(beta1=numbers.beta, beta2=0.0)
    return satimp(logits, labels, reference, powers, held)


def undial(logits: Array, labels: list[list[int]], reference: Array, numbers: Any) -> float:
    found = []
    for i, t, label in predictions(logits, labels):
        moved = reference[i, t].copy()
        moved[label] -= numbers.beta
        found.append(-float(np.exp(log_softmax(moved)) @ log_softmax(logits[i, t])))
    return sum(found) / len(found)


def pdu(logits: Array, labels: list[list[int]], reference: Array, numbers: Any) -> float:
    found = [
        (logits[i, t].max() - logits[i, t].mean()) ** 2 for i, t, _ in predictions(logits, labels)
    ]
    return float(sum(found) / len(found))


def entropy(logits: Array, labels: list[list[int]], reference: Array, numbers: Any) -> float:
    found = [log_softmax(logits[i, t]) for i, t, _ in predictions(logits, labels)]
    return float(sum(np.exp(row) @ row for row in found) / len(found))


def quail(logits: Array, labels: list[list[int]], reference: Array, numbers: Any) -> float:
    found = []
    for i, t, label in predictions(logits, labels):
        ours, theirs = (z[i, t, label] - z[i, t].mean() for z in (logits, reference))
        found.append(max(0.0, numbers.quail_margin - abs(ours - theirs)))
    hinge = numbers.quail_weight * sum(found) / len(found)
    return ga(logits, labels, reference, numbers) + float(hinge)


Plain = Callable[..., float]
LOSSES: dict[str, tuple[Plain, dict[str, float]]] = {
    "ga": (ga, {}),
    "npo": (npo, {"beta": 0.3}),
    "simnpo": (simnpo, {"beta": 1.7, "gamma": 0.4}),
    "unlikelihood": (unlikelihood, {}),
    "wga": (wga, {"beta": 0.7}),
    "satimp": (satimp, {"beta1": 2.5, "beta2": 0.6}),
    "undial": (undial, {"beta": 2.0}),
    "pdu": (pdu, {}),
    "entropy": (entropy, {}),
    "quail": (quail, {"quail_margin": 3.7, "quail_weight": 1.3}),
    "gdr": (gdr, {"retain_weight": 1.5}),
    "klr": (klr, {"retain_weight": 2.5}),
}
COMPARED = ("klr", "undial", "quail")
"""Those that read a frozen model's logits."""
HELD = ("wga", "satimp")
"""Those with weights that have no gradient."""


def chosen(name: str) -> tuple[Plain, Any]:
    """The reference, and the loss' options."""
    plain, numbers = LOSSES[name]
    return plain, pieces()[name].about.options(**numbers)


def module(name: str) -> Any:
    return pieces()[name].module


def inputs(name: str, seed: int = 0) -> tuple[Array, list[list[int]], Array]:
    """Logits, labels with padding on the right, a begin token and an unlearned question, and a
    reference of the kind that the loss reads.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(ROWS, WIDTH, WORDS)) * 3
    labels = rng.integers(0, WORDS, size=(ROWS, WIDTH))
    labels[1, 5:] = IGNORED  # padding
    labels[2, :3] = IGNORED  # a question
    labels[3, 0] = 0  # a begin token, which nothing predicts
    reference = rng.normal(size=(ROWS, WIDTH, WORDS)) * 3 if name in COMPARED else -rng.random(ROWS)
    return logits, labels.tolist(), reference


def part(logits: torch.Tensor, labels: list[list[int]], reference: Array) -> Part:
    tokens = sum(label >= 0 for row in labels for label in row[1:])
    given = torch.tensor(reference)
    known = {"references": {"target": given}} if given.dim() == 3 else {"sequences": given}
    return Part(logits, torch.tensor(labels), len(labels), tokens, **known)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_papers(name: str, seed: int) -> None:
    plain, knobs = chosen(name)
    logits, labels, reference = inputs(name, seed)
    ours = module(name).loss(part(torch.tensor(logits), labels, reference), knobs)
    assert ours.item() == pytest.approx(plain(logits, labels, reference, knobs), abs=TOLERANCE)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_the_papers(name: str) -> None:
    plain, knobs = chosen(name)
    logits, labels, reference = inputs(name)
    if name in HELD:
        plain = partial(plain, held=logits)
    given = torch.tensor(logits, requires_grad=True)
    module(name).loss(part(given, labels, reference), knobs).backward()
    assert given.grad is not None
    for place in np.ndindex(logits.shape):
        assert given.grad[place].item() == pytest.approx(
            derivative(plain, logits, place, (labels, reference, knobs)), abs=TOLERANCE
        )


def derivative(
    plain: Plain, logits: Array, place: tuple[int, ...], rest: tuple[list[list[int]], Array, Any]
) -> float:
    """Central differences of fourth order: exact to about 1e-10 here."""
    step = 1e-2 if plain is not npo else 3e-3
    found = []
    for factor in (1, -1, 2, -2, 3, -3):
        moved = logits.copy()
        moved[place] += factor * step
        found.append(plain(moved, *rest))
    one, two, three = (found[i] - found[i + 1] for i in (0, 2, 4))
    return (45 * one - 9 * two + three) / (60 * step)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_and_its_logits_change_nothing(name: str) -> None:
    knobs = chosen(name)[1]
    logits, labels, reference = inputs(name)
    wide = np.concatenate([logits, np.full((ROWS, 3, WORDS), 50.0)], axis=1)
    padded = [[*row, *[IGNORED] * 3] for row in labels]
    if name in COMPARED:
        reference = np.concatenate([reference, np.full((ROWS, 3, WORDS), -9.0)], axis=1)
        narrow = reference[:, :WIDTH]
    else:
        narrow = reference
    first = module(name).loss(part(torch.tensor(logits), labels, narrow), knobs)
    second = module(name).loss(part(torch.tensor(wide), padded, reference), knobs)
    assert first.item() == pytest.approx(second.item(), abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_batch_changes_nothing(name: str) -> None:
    knobs = chosen(name)[1]
    logits, labels, reference = inputs(name)
    order = [2, 0, 3, 1]
    first = module(name).loss(part(torch.tensor(logits), labels, reference), knobs)
    mixed = part(torch.tensor(logits[order]), [labels[i] for i in order], reference[order])
    assert first.item() == pytest.approx(module(name).loss(mixed, knobs).item(), abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_shares_of_a_step_add_up_to_the_steps_mean(name: str) -> None:
    """Accumulated batches and processes weigh every token (or sequence) of the step alike."""
    knobs = chosen(name)[1]
    logits, labels, reference = inputs(name)
    whole = part(torch.tensor(logits), labels, reference)
    total = 0.0
    for rows in ([0], [1, 2], [3]):
        share = replace(
            whole,
            logits=whole.logits[rows],
            labels=whole.labels[rows],
            sequences=None if whole.sequences is None else whole.sequences[rows],
            references={name: theirs[rows] for name, theirs in whole.references.items()},
        )
        total += module(name).loss(share, knobs).item()
    assert total == pytest.approx(module(name).loss(whole, knobs).item(), abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_widened(name: str) -> None:
    knobs = chosen(name)[1]
    logits, labels, reference = inputs(name)
    rounded = torch.tensor(logits).bfloat16()
    ours = module(name).loss(part(rounded, labels, reference), knobs)
    exact = module(name).loss(part(rounded.double(), labels, reference), knobs)
    assert ours.dtype in (torch.float32, torch.float64)
    assert ours.item() == pytest.approx(exact.item(), rel=1e-5)


def test_npo_at_the_target_has_half_the_gradient_of_sequence_ascent() -> None:
    """At pi = pi_target the sigmoid is 1/2: arXiv 2404.05868, equation 4, gives weight 1."""
    logits, labels, _ = inputs("npo")
    given = torch.tensor(logits, requires_grad=True)
    reference = sequence_logprobs(given, torch.tensor(labels)).detach().numpy()
    module("npo").loss(
        part(given, labels, reference), module("npo").ABOUT.options(beta=0.1)
    ).backward()
    other = torch.tensor(logits, requires_grad=True)
    (sequence_logprobs(other, torch.tensor(labels)).sum() / ROWS).backward()
    assert given.grad is not None
    assert other.grad is not None
    assert torch.allclose(given.grad, other.grad, atol=1e-12)


@pytest.mark.parametrize("name", ["npo", "klr", "undial"])
def test_a_loss_without_its_reference_raises(name: str) -> None:
    logits, labels, reference = inputs(name)
    given = part(torch.tensor(logits), labels, reference)
    bare = Part(given.logits, given.labels, given.all_rows, given.all_tokens)
    with pytest.raises(OptionError, match="needs the target"):
        module(name).loss(bare, module(name).ABOUT.options())


def test_token_logprobs_are_zero_where_nothing_is_learned() -> None:
    logits, labels, _ = inputs("ga")
    found = token_logprobs(torch.tensor(logits), torch.tensor(labels))
    assert found.shape == (ROWS, WIDTH - 1)
    ignored = torch.tensor(labels)[:, 1:] == IGNORED
    assert bool((found[ignored] == 0).all())
    assert bool((found[~ignored] < 0).all())
