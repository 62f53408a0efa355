"""The commands on precisions: ``quants`` lists or proves them, ``inspect`` compares codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from unlearnbench import conditions
from unlearnbench.checkpoints.options import ASKING, LoadOptions
from unlearnbench.cli.options import field_options, require_place, taken
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.errors import OptionError, printable
from unlearnbench.results import FULL, Condition
from unlearnbench.tasks.registry import split_names
from unlearnbench.util.process import ProgressLine
from unlearnbench.util.text import fitted_table


@click.command("quants")
@click.option("--model", metavar="PATH|ID", help="Load this checkpoint and print the proof.")
@click.option(
    "--quant", multiple=True, metavar="NAMES", help="Precisions; default: all, or none of --model."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@field_options(KernelOptions, without=ASKING)
def show_quants(model: str | None, quant: Sequence[str], as_json: bool, **given: Any) -> None:
    """List every precision, and whether it can run here; with --model, prove it.

    The proof is what a run records before its first forward pass: which modules are quantized and
    which are not, distinct values per group, bytes, and the error against the checkpoint.
    """
    options = taken(KernelOptions, given)
    names = split_names(",".join(quant))
    if model is not None:
        chosen = names or ([] if options.deployed else [FULL])
        specs: Sequence[ConditionSpec] = conditions.resolve(chosen) if chosen else ()
        if options.deployed:
            from unlearnbench.conditions import deployed

            specs = deployed.beside(specs, options)
        _prove(model, specs, options, as_json)
        return
    if options.deployed:
        raise OptionError("--deployed needs --model, the checkpoint that it was made from")
    every = [*conditions.precisions().values(), *conditions.families()]
    specs = conditions.resolve(names) if names else every
    # Nothing here needs a GPU, and asking torch whether there is one takes seconds.
    rows = [_facts(spec, options.device or "cpu") for spec in specs]
    click.echo(json.dumps(rows, indent=2) if as_json else _list(rows))


_GROUPS = (
    "as stored",
    "textbook",
    "calibrated",
    "llama.cpp",
    "float",
    "activation",
    "cache",
    "deployed",
    "no precision",
)


def _group(spec: ConditionSpec) -> str:
    """What a list shows it under."""
    if spec.kind == "stored":
        return "as stored"
    if spec.kind != "quantized":
        return {"deployed": "deployed", "cached": "cache"}.get(spec.kind, "no precision")
    if spec.kernels == ("native",):  # activations are quantized too
        return "activation"
    if spec.backend in ("gguf", "ggml"):
        return "llama.cpp"
    if spec.backend == "compressed-tensors":
        return "float"
    return "calibrated" if spec.calibrated else "textbook"


def _facts(spec: ConditionSpec, device: str) -> dict[str, Any]:
    reason = spec.missing()
    return {
        "name": spec.name,
        "group": _group(spec),
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
    lines = []
    for group in _GROUPS:
        found = [row for row in rows if row["group"] == group]
        lines += [[f"{group}:", "", "", ""]] if found else []
        lines += [
            [
                ", ".join([row["name"], *row["aliases"]]),
                "own" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.4g}",
                "yes" if row["available"] else f"no: {row['reason']}",
                row["scheme"],
            ]
            for row in found
        ]
    head = ["precision", "bits/weight", "here", "what it does"]
    return fitted_table(lines, head)


def _prove(
    model: str, specs: Sequence[ConditionSpec], options: KernelOptions, as_json: bool
) -> None:
    """Show each condition with its proof; every refusal comes before the first model."""
    from unlearnbench.conditions.load import prepare_all  # the list needs no torch
    from unlearnbench.conditions.materials import gather

    if options.calibration in ("forget", "retain") and any(spec.calibrated for spec in specs):
        raise OptionError(
            f"--calibration {options.calibration} needs tasks, and quants has none; give a file"
        )
    for prepared in prepare_all(model, specs, options, gather(specs, options, (), 0)):
        found = prepared.load().condition
        as_text = json.dumps(found.model_dump(exclude_none=True)) if as_json else _proof(found)
        click.echo(printable(as_text))


def _proof(condition: Condition) -> str:
    """The proof as lines that people read."""
    proof, options = condition.proof, condition.options
    assert proof is not None  # noqa: S101 - a loaded model has one
    done = "quantized" if condition.kind in ("stored", "cached") else condition.kind
    changed = ""
    if proof.relative_error is not None and proof.changed_share is not None:
        changed = (
            f"{100 * proof.changed_share:.4g}% of the weights, relative error "
            f"{proof.relative_error:.4g} (mean {proof.mean_relative_error:.4g} of "
            f"{proof.compared_modules} modules, largest {proof.max_relative_error:.4g} in "
            f"{proof.max_error_module})"
        )
    covered, total = proof.covered_weights, proof.total_weights
    shown = {
        "runs": f"{options.kernel} kernel" if options.kernel else "",
        "weights": f"{covered:,} of {total:,} {done}, {proof.weight_bytes:,} bytes in all",
        "modules": _counts(proof.module_types),
        "held as": _counts(proof.weights_by_dtype),
        done: _counts(proof.covered_modules) or "none",
        "left as it is": _counts(proof.uncovered) or "nothing",
        "codes": f"at most {proof.codes} distinct values in a group" if proof.codes else "",
        "changed": changed,
        **{name: f"{value:.4g}" for name, value in (proof.figures or {}).items()},
        "stored as": "; ".join(
            f"{name} {_counts(kinds)}" for name, kinds in (proof.stored or {}).items()
        ),
        "on grid": "the checkpoint's weights already lie on this grid" if proof.on_grid else "",
    }
    lines = [f"  {name:<14} {text}" for name, text in shown.items() if text]
    return "\n".join([f"{condition.name}: {options.scheme} ({options.backend})", *lines])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


@click.command("inspect")
@click.option("--model", required=True, metavar="PATH|ID", help="The unlearned checkpoint.")
@click.option("--target", required=True, metavar="PATH|ID", help="The checkpoint it came from.")
@click.option(
    "--quant",
    default="rtn-int8,rtn-int4,bnb-int8,bnb-fp4,bnb-nf4",
    show_default=True,
    metavar="NAMES",
)
@click.option("--json", "json_file", metavar="FILE", help="Write every figure.")
@click.option(
    "--plot", metavar="FILE", help="Draw survival and overlap by block (.png, .svg, .pdf)."
)
@field_options(LoadOptions, without=ASKING)
def inspect_bins(
    model: str, target: str, quant: str, json_file: str | None, plot: str | None, **given: Any
) -> None:
    """Will it come back? What quantization leaves of the update, without running a model.

    Update survival is the share of (model - target) that is left when both are quantized: where it
    is small, the quantized model is nearly the quantized target. Bin overlap stands beside it.
    """
    from unlearnbench.checkpoints.weights import open_weights
    from unlearnbench.conditions.load import require_available
    from unlearnbench.conditions.quantize import overlap

    options = taken(LoadOptions, given)
    specs = conditions.resolve(split_names(quant))
    overlap.require_codes(specs)
    for spec in specs:
        require_available(spec, "cpu")
    if plot is not None:
        overlap.plot_kind(Path(plot))
    for path in (Path(given) for given in (json_file, plot) if given is not None):
        require_place(path, "give another path")
    with ExitStack() as stack:
        others = options.model_copy(update={"revision": None})  # which is the model's
        ours, theirs = open_weights(model, options, stack), open_weights(target, others, stack)
        pairs = overlap.compare_codes(ours, theirs, specs)
        layers = []
        with ProgressLine("inspect", len(ours.linear), "layer") as shown:
            for _, found in pairs:
                layers.append(found)
                shown.update()
    results = [
        overlap.PrecisionOverlap(spec.name, tuple(layer[i] for layer in layers))
        for i, spec in enumerate(specs)
    ]
    click.echo(printable(overlap.overlap_table(results)))
    if json_file is not None:
        overlap.write_json(Path(json_file), results, {"model": model, "target": target})
    if plot is not None:
        overlap.plot_overlap(Path(plot), results)
