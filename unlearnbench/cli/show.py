"""The commands that look at what is there: ``show`` a run, ``diff`` two runs, ``env``."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from textwrap import TextWrapper

import click

from unlearnbench.cli.options import verbose_option
from unlearnbench.errors import OptionError, ResultError, one_line, printable
from unlearnbench.evaluation.outcome import results_table
from unlearnbench.results import AnswerRecord, GenerationRecord, LikelihoodRecord, RunResult
from unlearnbench.runs.entries import LoadedRun
from unlearnbench.runs.fingerprint import Fingerprint, differences, environments, versions
from unlearnbench.runs.folder import read_run
from unlearnbench.util.text import fitted_table, terminal_width

_LONGEST = 300
_SAME = "measured in the same way, on the same weights"
Record = GenerationRecord | AnswerRecord | LikelihoodRecord

_tasks = click.option("--tasks", multiple=True, metavar="NAMES", help="Of these tasks only.")


_samples = click.option(
    "--samples",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    metavar="N",
    help="Of each task, the worst; of two runs, those whose score moved most.",
)


@click.command("show")
@click.argument("folder", metavar="RUN")
@_tasks
@_samples
@verbose_option
def show(folder: str, tasks: Sequence[str], samples: int) -> None:
    """Show a run: checkpoint, condition, proof, scores, worst samples.

    Worst is what should not be so: on a forget task the answers that leak most, on a retain task
    those that keep least, for PrivLeak the texts that look most like training data.
    """
    run = _open(folder)
    for line in _facts(run.result):
        click.echo(printable(line))
    click.echo(printable("\n" + results_table([run.result], {run.condition: run.path})))
    for name in _chosen(run, tasks):
        records: Sequence[Record] = run.records(name)
        worst = sorted(records, key=lambda r: _badness(run, name, r), reverse=True)[:samples]
        if worst:
            click.echo(printable(f"\n{one_line(name)}, worst {len(worst)} of {len(records)}:"))
        for record in worst:
            click.echo(f"  {one_line(record.id, 80)}  {_score(run, name, record)}")
            for part, text in _texts(record).items():
                click.echo(_text(part, text))


@click.command("diff")
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@_tasks
@_samples
@verbose_option
def diff(first: str, second: str, tasks: Sequence[str], samples: int) -> None:
    """Show what changed from one run to another, sample by sample."""
    one, two = _open(first), _open(second)
    found = differences(_fingerprint(one), _fingerprint(two))
    click.echo(
        printable(
            "\n".join([*found, "(there: the first run, here: the second)"] if found else [_SAME])
        )
    )
    names = [name for name in _chosen(one, tasks) if name in two.result.tasks]
    if not names:
        raise OptionError(f"{one.path} and {two.path} have no task in common")
    lines, told = [], []
    for name in names:
        before, after = ({r.id: r for r in run.records(name)} for run in (one, two))
        both = [key for key in before if key in after]
        moved = [key for key in both if _content(before[key]) != _content(after[key])]
        values = [run.task(name).value for run in (one, two)]
        shown = ["-" if value is None else f"{value:.1f}" for value in values]
        change = "-" if None in values else f"{values[1] - values[0]:+.1f}"  # type: ignore[operator]
        only = len(before) + len(after) - 2 * len(both)
        lines.append([name, *shown, change, f"{len(moved)} of {len(both)}", str(only)])
        pairs = [(_badness(one, name, after[k]) - _badness(one, name, before[k]), k) for k in moved]
        for _, key in sorted(pairs, key=lambda pair: -abs(pair[0]))[:samples]:
            scores = [_score(r, name, x[key]) for r, x in ((one, before), (two, after))]
            told.append(f"\n{one_line(name)} {one_line(key, 80)}: {' -> '.join(scores)}")
            old, new = _texts(before[key]), _texts(after[key])
            for part in {**old, **new}:
                if old.get(part) == new.get(part):
                    told.append(_text(part, old[part]))
                else:
                    told.append(_text(f"- {part}", old.get(part, "")))
                    told.append(_text(f"+ {part}", new.get(part, "")))
    head = ["task", "first", "second", "change", "samples that differ", "in one only"]
    click.echo("\n" + fitted_table(lines, head))
    for line in told:
        click.echo(line)


def _bf16() -> str:
    """Whether the processor multiplies bf16 itself; ``emulated``: oneDNN does, slower than fp32."""
    import torch

    if any(has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16")):
        return "yes"
    one_dnn = torch.backends.mkldnn.is_available()
    return "emulated" if one_dnn and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"


@click.command("env")
def env() -> None:
    """Print what a bug report needs: versions, processor, memory, GPUs. No path and no name."""
    import torch

    from unlearnbench import conditions
    from unlearnbench.runs.fingerprint import describe_environment

    found = describe_environment("cuda" if torch.cuda.is_available() else "cpu", "-", None)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if os.name == "posix" else 0
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "unlearnbench": f"{found.unlearnbench} ({found.git_hash or 'release'})",
        "Python": f"{found.python} ({platform.python_implementation()})",
        "system": found.platform,
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{os.cpu_count()} cores, bf16 products: {_bf16()}",
        "memory": f"{memory / 2**30:.1f} GiB",
        "GPUs": ", ".join(gpus) or "none",
        **found.packages,
    }
    missing = [(spec.name, spec.missing()) for spec in conditions.precisions().values()]
    lacking = dict.fromkeys(reason for _, reason in missing if reason)
    for name, fact in facts.items():
        click.echo(printable(f"{name}: {fact}"))
    for reason in lacking:
        click.echo(printable(f"not here: {reason}"))


def _open(folder: str) -> LoadedRun:
    return LoadedRun(Path(folder), read_run(Path(folder)))


def _chosen(run: LoadedRun, tasks: Sequence[str]) -> list[str]:
    """Task names of the run; those asked for, if any were."""
    asked = [name for given in tasks for name in given.split(",") if name]
    for name in asked:
        run.task(name)
    return asked or list(run.result.tasks)


def _fingerprint(run: LoadedRun) -> Fingerprint:
    result = run.result
    packages = {
        f"{package} for {task}": version
        for task, environment in environments(result).items()
        for package, version in versions(environment).items()
    }
    found = Fingerprint.of_run(result.checkpoint, result.settings, result.condition)
    return found | Fingerprint.of({"protocol": result.protocol, "version of": packages})


def _facts(result: RunResult) -> list[str]:
    checkpoint, condition = result.checkpoint, result.condition
    proof, options = condition.proof, condition.options
    lines = [
        f"checkpoint  {one_line(checkpoint.path, 200)}, weights {checkpoint.weights_sha256[:12]}",
        f"condition   {condition.name}: {one_line(options.scheme, 200)}, by {options.backend}",
    ]
    if proof is not None:
        changed = proof.changed_share
        seen = f"{proof.covered_weights:,} of {proof.total_weights:,} weights covered"
        seen += "" if changed is None else f", {100 * changed:.1f}% changed"
        error = proof.relative_error
        lines.append(f"proof       {seen}" + (f", relative error {error:.2g}" if error else ""))
    where = result.environment
    lines.append(
        f"measured    {result.created}, {one_line(where.device, 80)}, {where.dtype}, "
        f"unlearnbench {one_line(where.unlearnbench, 40)}, protocol {one_line(result.protocol, 40)}"
    )
    for name, task in result.tasks.items():
        if task.drawn is not None:
            seen = f"{task.n} of {task.drawn.of} samples alone"
            lines.append(
                f"part        {one_line(name, 80)}: {seen}, in the order of seed {task.drawn.seed}"
            )
    return lines


def _badness(run: LoadedRun, name: str, record: Record) -> float:
    """The higher, the more a record is what its task does not want."""
    task = run.task(name)
    if isinstance(record, LikelihoodRecord):
        if task.attack not in record.scores:
            raise ResultError(f"{run.path}: {one_line(name)}: {record.id} has no score")
        return -record.scores[task.attack]
    return -record.score if task.want == "high" else record.score


def _score(run: LoadedRun, name: str, record: Record) -> str:
    if isinstance(record, LikelihoodRecord):
        attack = str(run.task(name).attack)
        return f"{one_line(record.split, 40)}, {attack} {record.scores[attack]:.3f}"
    return f"{100 * record.score:.1f}"


def _content(record: Record) -> object:
    return record.scores if isinstance(record, LikelihoodRecord) else _texts(record)


def _texts(record: Record) -> dict[str, str]:
    """What was asked, wanted and answered."""
    if isinstance(record, AnswerRecord):
        return {name: str(fact) for name, fact in record.facts.items()}
    if isinstance(record, LikelihoodRecord):
        return {}
    return {"prompt": record.prompt, "target": record.target, "output": record.output}


def _text(name: str, text: str) -> str:
    """A text of a stranger, as indented lines of the terminal's width; of a long one the end, since
    prompts begin alike.
    """
    shown = one_line(text, len(text) * 6 + 10)
    shown = shown if len(shown) <= _LONGEST else f"... {shown[-_LONGEST:]}"
    lead = f"    {one_line(name, 20):<9} "
    wrap = TextWrapper(
        terminal_width(),
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_on_hyphens=False,
    )
    return wrap.fill(shown or "(empty)")
