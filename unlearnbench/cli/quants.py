"""The command ``quants``: every precision, whether it runs here, its proof on a checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import click

from unlearnbench import conditions
from unlearnbench.cli.options import field_options, taken
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.errors import OptionError, PrecisionError, printable
from unlearnbench.results import FULL, Condition
from unlearnbench.tasks.registry import split_names
from unlearnbench.util.text import text_table


@click.command("quants")
@click.option("--model", metavar="PATH|ID", help="Load this checkpoint and print the proof.")
@click.option(
    "--quant", multiple=True, metavar="NAMES", help="Precisions; default: all, or none of --model."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@field_options(KernelOptions, without={"truncate_left"})
def show_quants(model: str | None, quant: Sequence[str], as_json: bool, **given: Any) -> None:
    """List every precision, and whether it can run here; with --model, prove it.

    The proof is what a run records before its first forward pass: which modules are quantized and
    which are not, distinct values per group, bytes, and the error against the checkpoint.
    """
    options = taken(KernelOptions, given)
    names = split_names(",".join(quant))
    if model is not None:
        for precision in _proven(model, conditions.resolve(names or [FULL]), options):
            click.echo(printable(_json(precision) if as_json else _proof(precision)))
        return
    every = [*conditions.precisions().values(), *conditions.families()]
    specs = conditions.resolve(names) if names else every
    # Nothing here needs a GPU, and asking torch whether there is one takes seconds.
    rows = [_facts(spec, options.device or "cpu") for spec in specs]
    click.echo(json.dumps(rows, indent=2) if as_json else _list(rows))


def precision_name(text: str) -> str:
    """A precision's full name; ``unknown`` and names that this version lacks stay as they are."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", text):
        raise OptionError("--quant takes a precision's name, as none or bnb-nf4")
    try:
        (found,) = conditions.resolve([text])
    except PrecisionError:
        return text
    return found.name


def _facts(spec: ConditionSpec, device: str) -> dict[str, object]:
    reason = conditions.why_unavailable(spec, device)
    return {
        "name": spec.name,
        "aliases": [alias for alias, name in conditions.ALIASES.items() if name == spec.name],
        "bits": spec.bits,
        "bits_per_weight": spec.bits_per_weight,
        "scheme": spec.scheme,
        "backend": spec.backend,
        "kernels": list(spec.kernels),
        "calibrated": spec.calibrated,
        "available": reason is None,
        "reason": reason,
        "install": spec.install,
    }


def _list(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            ", ".join([row["name"], *row["aliases"]]),
            "own" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.4g}",
            "yes" if row["available"] else f"no: {row['reason']}",
            row["install"],
            row["scheme"],
        ]
        for row in rows
    ]
    head = ["precision", "bits/weight", "here", "installed by", "what it does"]
    return text_table(lines, head)


def _proven(
    model: str, specs: Sequence[ConditionSpec], options: KernelOptions
) -> Iterator[Condition]:
    """Each precision as its proof describes it; every refusal comes before the first model."""
    from unlearnbench.conditions.load import prepare_all  # the list needs no torch
    from unlearnbench.conditions.quantize.calibration import pick_calibration

    calibration = None
    if any(spec.calibrated for spec in specs):
        if options.calibration in ("forget", "retain"):
            raise OptionError(
                f"--calibration {options.calibration} needs tasks, and quants has none; give a file"
            )
        calibration = pick_calibration(options.calibration, (), options.calibration_samples, 0)
    for prepared in prepare_all(model, specs, options, calibration):
        yield prepared.load().condition


def _json(precision: Condition) -> str:
    return json.dumps(precision.model_dump(exclude_none=True))


def _proof(precision: Condition) -> str:
    """The proof as lines that people read."""
    proof = precision.proof
    assert proof is not None  # noqa: S101 - a loaded model has one
    options = precision.options
    done = "quantized" if precision.kind == "stored" else precision.kind
    head = f"{precision.name}: {options.scheme} ({options.backend})"
    lines = [
        f"  runs           {options.kernel} kernel" if options.kernel else "",
        f"  weights        {proof.covered_weights:,} of {proof.total_weights:,} {done}, "
        f"{proof.weight_bytes:,} bytes in all",
        f"  modules        {_counts(proof.module_types)}",
        f"  held as        {_counts(proof.weights_by_dtype)}",
        f"  {done:<14} {_counts(proof.covered_modules) or 'none'}",
        f"  left as it is  {_counts(proof.uncovered) or 'nothing'}",
    ]
    if proof.codes is not None:
        lines.append(f"  codes          at most {proof.codes} distinct values in a group")
    if proof.relative_error is not None and proof.changed_share is not None:
        lines.append(
            f"  changed        {100 * proof.changed_share:.4g}% of the weights, relative error "
            f"{proof.relative_error:.4g} (mean {proof.mean_relative_error:.4g} of "
            f"{proof.compared_modules} modules, largest {proof.max_relative_error:.4g} in "
            f"{proof.max_error_module})"
        )
    lines += [f"  {name:<14} {value:.4g}" for name, value in (proof.figures or {}).items()]
    if proof.on_grid:
        lines.append("  on grid        the checkpoint's weights already lie on this grid")
    return "\n".join([head, *filter(None, lines)])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
