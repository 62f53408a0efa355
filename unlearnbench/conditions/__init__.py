"""Conditions: how a checkpoint is met. ``base`` finds one by its name, ``load`` makes it."""

from unlearnbench.conditions.base import (
    ALIASES,
    encode,
    families,
    file_of,
    find_condition,
    for_matrix,
    has_codes,
    has_levels,
    is_solved,
    levels,
    precisions,
    resolve,
)

__all__ = [
    "ALIASES",
    "encode",
    "families",
    "file_of",
    "find_condition",
    "for_matrix",
    "has_codes",
    "has_levels",
    "is_solved",
    "levels",
    "precisions",
    "resolve",
]
