"""``methods``: the unlearning methods by family, with source, equation, options, needs and cost."""

from __future__ import annotations

import json
import textwrap
from typing import Any, get_args

import click

from unlearnbench.errors import printable
from unlearnbench.methods import KINDS, Kind, Piece, find_method, method_names, pieces

_FAMILIES: dict[Kind, str] = {
    "forget": "Losses on the forget set: NAME, or NAME with what follows",
    "retain": "Terms on other texts: _NAME behind a loss",
    "steps": "Ways to make the gradient of a step: _NAME behind a loss with a term",
    "masks": "Masks of the weights that may change: _NAME behind a loss with a term",
    "whole": "Procedures of their own, which combine with nothing",
}

_WORDS = {"masks": "mask", "steps": "step"}


@click.command("methods")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def methods(name: str | None, as_json: bool) -> None:
    """List the unlearning methods by family, or show one: equation, source, options, needs, cost,
    and where released code differs.
    """
    found = list(pieces().values() if name is None else find_method(name).pieces)
    if as_json:
        told = {"pieces": [_facts(piece) for piece in found]}
        names = {"methods": list(method_names())} if name is None else {"method": name}
        click.echo(json.dumps(names | told, indent=2))
        return
    for kind in KINDS:
        family = [piece for piece in found if piece.kind == kind]
        if family and name is None:
            click.echo(f"{_FAMILIES[kind]}\n")
        for piece in family:
            click.echo(printable(_describe(piece, shows_differs=name is not None)) + "\n")
    if name is None:
        click.echo(
            "A method is a loss, a loss and its terms, with a step or a mask behind them or both "
            f"(as ga_gdr_sam_sure), or a procedure:\n{len(method_names())} in all, which --json "
            "lists; each but those with a mask also with _lora, or --lora-rank"
        )


def _facts(piece: Piece) -> dict[str, Any]:
    about = piece.about
    return {
        "name": about.name,
        "family": piece.kind,
        "title": about.title,
        "equation": about.equation,
        "source": about.source,
        "options": [
            {
                "option": field.flag,
                "default": field.default,
                "words": list(get_args(field.type)) or None,
                "above": field.above,
                "least": field.least,
                "most": field.most,
                "help": field.help,
            }
            for field in piece.fields
        ],
        "needs": _needs(piece),
        "cost": _cost(piece),
        "differs": about.differs or None,
    }


def _needs(piece: Piece) -> list[str]:
    """What has to be given beside the forget set."""
    other = ["--alternative"] if piece.about.alternatives else []
    sets = [f"--{role}" for role in piece.about.data] + ["--base"] * piece.about.base
    sets += [f"--{role} where wanted" for role in piece.about.may]
    return [" or ".join(sets + other)] if piece.kind == "whole" and other else sets + other


def _cost(piece: Piece) -> str:
    """In words, beside a forward and a backward pass over the rows that it reads."""
    about = piece.about
    frozen = len(about.references)
    parts = [about.cost] if about.cost else []
    if about.sequences:
        parts.append("a forward pass over the forget set before training")
    if frozen:
        parts.append(
            f"a forward pass of {frozen} frozen model{'s' * (frozen > 1)} in each step, and "
            "the memory for its weights (with LoRA: none)"
        )
    if about.alternatives and piece.kind != "whole":
        parts.append(f"{about.alternatives} more rows beside each forget row")
    return "; ".join(parts) or "none"


def _describe(piece: Piece, shows_differs: bool) -> str:
    about = piece.about
    options = ", ".join(f"{field.flag} {field.default}" for field in piece.fields) or "none"
    lines = [about.equation, f"source: {about.source}", f"options: {options}"]
    lines.append(f"needs: {', '.join(_needs(piece)) or 'nothing more'}; cost: {_cost(piece)}")
    lines += [f"differs: {about.differs}"] if about.differs and shows_differs else []
    head = f"{about.name} ({_WORDS.get(piece.kind, piece.kind)}): {about.title}"
    return "\n".join([head, *(_wrapped(f"  {line}", "    ") for line in lines)])


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 98, subsequent_indent=indent, break_on_hyphens=False)
