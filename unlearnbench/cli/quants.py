"""The commands about precisions: ``quants`` lists and proves them, ``inspect`` compares codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unlearnbench.cli.options import checkpoint_options, kernel_options
from unlearnbench.errors import OptionError, printable

if TYPE_CHECKING:
    from unlearnbench.conditions.base import PrecisionSpec
    from unlearnbench.results import Condition

_INSPECTED = "rtn-int8,rtn-int4,bnb-int8,bnb-fp4,bnb-nf4"


@click.command("quants")
@click.option("--model", metavar="PATH|ID", help="Load this checkpoint and print the proof.")
@click.option(
    "--quant", multiple=True, metavar="NAMES", help="Precisions; default: all, or none of --model."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--device", metavar="NAME", help="cpu or cuda; default: cuda when there.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
)
@kernel_options
@checkpoint_options
def show_quants(model: str | None, quant: Sequence[str], as_json: bool, **options: Any) -> None:
    """List every precision, and whether it can run here; with --model, prove it.

    The proof is what a run records before its first forward pass: which modules are quantized and
    which are not, distinct values per group, bytes, and the error against the checkpoint.
    """
    from unlearnbench.conditions import quantize as backends
    from unlearnbench.tasks.spec import split_names

    names = split_names(",".join(quant)) if quant else []
    specs = list(backends.resolve(names)) if names else list(backends.precisions().values())
    if model is not None:
        _show_proofs(model, specs if names else [backends.find_precision("none")], as_json, options)
        return
    # Nothing here needs a GPU, and asking torch whether there is one takes seconds.
    rows = [_facts(spec, options["device"] or "cpu") for spec in specs]
    click.echo(json.dumps(rows, indent=2) if as_json else _list(rows))


def _facts(spec: PrecisionSpec, device: str) -> dict[str, object]:
    from unlearnbench.conditions.quantize import ALIASES, backend_of

    reason = backend_of(spec).unavailable(spec, device)
    return {
        "name": spec.name,
        "aliases": [alias for alias, name in ALIASES.items() if name == spec.name],
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
    from unlearnbench.util.text import text_table

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


def _show_proofs(
    model: str, specs: Sequence[PrecisionSpec], as_json: bool, options: dict[str, Any]
) -> None:
    from unlearnbench.checkpoints.source import open_source
    from unlearnbench.conditions import load as loading

    device = loading.pick_device(options["device"])
    for spec in specs:
        loading.require_available(spec, device)
    calibration = _calibration(specs, options)
    source = open_source(model, _load_options(options))
    loading.require_loadable(source)
    for spec in specs:
        loading.require_precision(source, spec)
    for spec in specs:
        dtype = loading.pick_dtype(options["dtype"], spec, source.own_dtype, device)
        how = loading.make_how(spec, dtype, device, options["quant_kernel"], calibration)
        precision = loading.load_model(source, spec, how).condition
        click.echo(printable(_json(precision) if as_json else _proof(precision)))


def _calibration(specs: Sequence[PrecisionSpec], options: dict[str, Any]) -> Any:
    from unlearnbench.conditions.quantize.calibration import pick_calibration

    if not any(spec.calibrated for spec in specs):
        return None
    name = options["calibration"]
    if name in ("forget", "retain"):
        raise OptionError(f"--calibration {name} needs tasks, and quants has none; give a file")
    return pick_calibration(name, (), options["calibration_samples"], 0)


def _load_options(options: dict[str, Any]) -> Any:
    from unlearnbench.checkpoints.options import LoadOptions

    names = (
        *("revision", "base", "adapter"),
        *("allow_adapter_base", "trust_remote_code", "allow_pickle"),
    )
    return LoadOptions(**{name: options[name] for name in names})


def _json(precision: Condition) -> str:
    return json.dumps(precision.model_dump(exclude_none=True))


def _proof(precision: Condition) -> str:
    """The proof as lines that people read."""
    proof = precision.proof
    assert proof is not None  # noqa: S101 - a loaded model has one
    head = f"{precision.name}: {precision.options.scheme} ({precision.options.backend})"
    lines = [
        f"  runs           {precision.options.kernel} kernel" if precision.options.kernel else "",
        f"  weights        {proof.covered_weights:,} of {proof.total_weights:,} quantized, "
        f"{proof.weight_bytes:,} bytes in all",
        f"  modules        {_counts(proof.module_types)}",
        f"  held as        {_counts(proof.weights_by_dtype)}",
        f"  quantized      {_counts(proof.covered_modules) or 'none'}",
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
    if proof.on_grid:
        lines.append("  on grid        the checkpoint's weights already lie on this grid")
    return "\n".join([head, *filter(None, lines)])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


@click.command("inspect")
@click.option("--model", required=True, metavar="PATH|ID", help="The unlearned checkpoint.")
@click.option("--target", required=True, metavar="PATH|ID", help="The checkpoint it came from.")
@click.option("--quant", default=_INSPECTED, show_default=True, metavar="NAMES")
@click.option("--json", "json_file", metavar="FILE", help="Write every figure.")
@click.option("--plot", metavar="FILE", help="Draw the overlap by layer (.png, .svg, .pdf).")
@checkpoint_options
def inspect_bins(
    model: str, target: str, quant: str, json_file: str | None, plot: str | None, **options: Any
) -> None:
    """Will it come back? Compare quantized codes with the target's, without running a model.

    Where nearly all codes are the same, the quantized model is nearly the quantized target.
    """
    from tqdm import tqdm

    from unlearnbench.checkpoints.weights import open_weights
    from unlearnbench.conditions.quantize import overlap as inspection
    from unlearnbench.conditions.quantize import resolve
    from unlearnbench.tasks.spec import split_names

    specs = resolve(split_names(quant))
    inspection.require_codes(specs)
    _require_available(specs)
    with ExitStack() as stack:
        load = _load_options(options)
        ours, theirs = open_weights(model, load, stack), open_weights(target, load, stack)
        pairs = inspection.compare_codes(ours, theirs, specs)
        layers = [
            found for _, found in tqdm(pairs, total=len(ours.linear), unit="layer", disable=None)
        ]
    results = [
        inspection.PrecisionOverlap(spec.name, tuple(found[i] for found in layers))
        for i, spec in enumerate(specs)
    ]
    click.echo(printable(inspection.overlap_table(results)))
    if json_file is not None:
        inspection.write_json(Path(json_file), results, {"model": model, "target": target})
    if plot is not None:
        inspection.plot_overlap(Path(plot), results)


def _require_available(specs: Sequence[PrecisionSpec]) -> None:
    from unlearnbench.conditions.load import require_available

    for spec in specs:
        require_available(spec, "cpu")
