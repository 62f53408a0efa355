"""Models whose positions change with the length of the text: LongRoPE, as in Phi-3 with a context
of 128k. One pass beyond a stated length turns every position of every row in it to other factors.

Source: arXiv 2402.13753; transformers' ``dynamic_rope_update``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# For each turning point: 0 before it, 1 crossing it while it is continued, 2 beyond it.
Side = tuple[int, ...]


def turning_points(config: Any) -> tuple[int, ...]:
    """Lengths in tokens up to which the short factors hold; none for other models."""
    stated = getattr(config, "rope_parameters", None) or {}
    parts = [stated, *(part for part in stated.values() if isinstance(part, Mapping))]
    found = [
        part.get("original_max_position_embeddings")
        for part in parts
        if part.get("rope_type") == "longrope"
    ]
    return tuple(sorted({length for length in found if isinstance(length, int)}))


def side_of(points: tuple[int, ...], length: int, new: int) -> Side:
    """Where a text of ``length`` tokens and ``new`` further ones lies. Texts of one side may be
    run together; those that cross a point run alone.

    Example:
        >>> side_of((4096,), 4000, 32), side_of((4096,), 4000, 128), side_of((), 4000, 128)
        ((0,), (1,), ())
    """
    return tuple((length > point) + (length + new > point) for point in points)
