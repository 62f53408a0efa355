"""``unlearnbench --model ... --tasks ...``: evaluate a checkpoint and show the table of results."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import click
from click.core import ParameterSource

from unlearnbench.cli.options import PushOptions, taken, warn_of_variables
from unlearnbench.cli.push import push_paths
from unlearnbench.errors import EvaluationError, OptionError, one_line, printable
from unlearnbench.evaluation.evaluate import evaluate
from unlearnbench.evaluation.options import Options
from unlearnbench.evaluation.outcome import evaluation_summary
from unlearnbench.evaluation.workers import launched, serve
from unlearnbench.lm_eval.arguments import translate
from unlearnbench.runs.folder import run_path
from unlearnbench.util.process import is_main, process_count

# lm-eval's names for "a transformers checkpoint", which say nothing here.
_KINDS = ("hf", "hf-auto", "huggingface", "unlearnbench")


def run_evaluation(ctx: click.Context, given: dict[str, Any]) -> None:
    """Evaluate as the command line asks; a part that failed still leaves the table of the rest."""
    warn_of_variables(ctx.command)
    _merge_model_args(ctx, given)
    options = taken(Options, given).updated({"progress": True})
    model, tasks = given["model"], ",".join(given["tasks"])
    for name, value in (("model", model), ("tasks", tasks)):
        if not value:
            raise OptionError(f"--{name} is missing; see unlearnbench --help")
    conditions = ",".join([*given["quant"], *given["conditions"]] or ["none"])
    if not is_main():
        serve(options.threads)
        return
    push = taken(PushOptions, given)
    try:
        with launched() if process_count() > 1 else nullcontext() as team:
            results = evaluate(model, tasks, conditions, options, team=team)
    except EvaluationError as error:
        said = evaluation_summary(error.results, tasks, options, error.failures)
        click.echo(printable(said))
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; every answer so far is kept in {options.output}, and the same command "
            "(without --fresh) goes on from there"
        ) from None
    click.echo(printable(evaluation_summary(results, tasks, options)))
    if push.push_to_hub is not None:
        paths = [run_path(options.output, r.checkpoint, r.condition.name) for r in results]
        push_paths(paths, push.push_to_hub, push)


def _merge_model_args(ctx: click.Context, options: dict[str, Any]) -> None:
    """Put ``--model-args`` in the places of the options that they stand for.

    Raises:
        OptionError: an argument has no meaning here, or contradicts an option that was given.
    """
    given = options.pop("model_args")
    for name, value in translate(given).items() if given else ():
        set_already = ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
        earlier = options.get(name)
        if isinstance(earlier, tuple):
            earlier = ",".join(earlier)
        if name == "model" and earlier in _KINDS:
            set_already = False
        if set_already and earlier != value:
            raise OptionError(
                f"--model-args and --{name.replace('_', '-')} contradict: "
                f"{one_line(value, 80)} and {one_line(earlier, 80)}"
            )
        options[name] = (value,) if isinstance(options.get(name), tuple) else value
