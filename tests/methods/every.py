"""A method for each method file."""

from __future__ import annotations

from unlearnbench.methods import Piece

_FORMS = {"forget": "{}_gdr", "retain": "npo_{}", "steps": "npo_gdr_{}", "masks": "ga_gdr_{}"}


def method_with(piece: Piece) -> str:
    """A method that has a method file's piece."""
    name = piece.about.name
    return name if piece.about.term else _FORMS.get(piece.kind, "{}").format(name)
