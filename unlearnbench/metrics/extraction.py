"""How much of a text a model recites, from token ids: memorization accuracy and extraction
likelihood (Jang et al. 2023, arXiv 2210.01504), and both over spans (Wang et al. 2024, arXiv
2402.05813).

A sequence x_1..x_T is given whole; prefixes have ``start`` tokens or more: 1, or for a question and
its answer the tokens of the question. ``predicted[t]`` is the likeliest token after
``ids[: t + 1]``, as the argmax of one teacher-forced pass gives it; the last is not read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from unlearnbench.errors import MetricError

Tokens = tuple[int, ...]


def memorization_accuracy(
    predicted: Sequence[int],
    ids: Sequence[int],
    start: int = 1,
    marked: Sequence[bool] | None = None,
) -> float:
    """MA = mean over i = start..T-1 of [argmax p(. | x_1..i) = x_{i+1}], in [0, 1].

    marked: (T,), the tokens of a span: only they are counted (S-MA). Raises MetricError where there
    is no token to count, or lengths differ.
    """
    _require_lengths(ids, predicted, start)
    hits = [
        predicted[at - 1] == ids[at]
        for at in range(start, len(ids))
        if marked is None or marked[at]
    ]
    if not hits:
        raise MetricError(f"no token of {len(ids)} is predicted after the first {start}")
    return sum(hits) / len(hits)


def rollouts(predicted: Sequence[int], ids: Sequence[int], start: int = 1) -> list[int]:
    """The lengths of the prefixes that have to be continued: those whose next token is not the
    likeliest. The others follow, see ``continuations``: (1 - MA) T in place of T.
    """
    _require_lengths(ids, predicted, start)
    return [at for at in range(start, len(ids)) if predicted[at - 1] != ids[at]]


def continuations(
    ids: Sequence[int],
    decoded: Mapping[int, Sequence[int]],
    start: int = 1,
    ends: Collection[int] = (),
) -> dict[int, Tokens]:
    """The greedy continuation of every prefix, of T - i tokens or up to an end token, by its length
    i: that of ``decoded``, or, where the next token is the likeliest one, this token and what
    follows the prefix with it, since greedy decoding is deterministic.

    decoded: of the prefixes that ``rollouts`` names. ends: tokens that end a continuation.
    """
    found: dict[int, Tokens] = {}
    after: Tokens = ()
    for at in range(len(ids) - 1, start - 1, -1):
        if at in decoded:
            after = tuple(decoded[at])[: len(ids) - at]
        else:
            after = (ids[at],) if ids[at] in ends else (ids[at], *after)
        found[at] = after
    return found


def extraction_likelihood(
    ids: Sequence[int],
    found: Mapping[int, Sequence[int]],
    n: int,
    start: int = 1,
    marked: Sequence[bool] | None = None,
) -> float | None:
    """EL_n = mean over i = start..T-n of OVERLAP_n(g_i, x_{i+1..T}), in [0, 1]; None where the
    sequence has too few tokens for any.

    OVERLAP_n(a, b) is the share of a's n-grams, with repetition, that b has; 0 where a ended before
    it had one. With ``marked`` (S-EL_n) it is the share of b's n-grams which touch a span that a
    has [derived: as printed it is 1 or 0/0], over those i that have such an n-gram.

    found: ``continuations``. n: 10 in the paper.
    """
    _require_lengths(ids, ids, start)
    total, count = 0.0, 0
    for at in range(start, len(ids) - n + 1):
        told, true = found[at], ids[at:]
        if marked is None:
            part, whole = list(_ngrams(told, n)), set(_ngrams(true, n))
        else:
            grams = enumerate(_ngrams(true, n), at)
            part = [gram for i, gram in grams if any(marked[i : i + n])]
            whole = set(_ngrams(told, n))
            if not part:
                continue
        total += sum(gram in whole for gram in part) / max(1, len(part))
        count += 1
    return total / count if count else None


def _ngrams(tokens: Sequence[int], n: int) -> Iterator[Tokens]:
    return (tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))


def _require_lengths(ids: Sequence[int], others: Sequence[int], start: int) -> None:
    if len(others) != len(ids) or start < 1:
        raise MetricError(
            f"{len(others)} predictions of {len(ids)} tokens from the first {start}: one for each "
            "token, and a first of at least 1, are needed"
        )
