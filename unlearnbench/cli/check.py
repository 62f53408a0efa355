"""``unlearnbench check``: runs, or a checkpoint, held against a policy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from unlearnbench.cli.names import full_name
from unlearnbench.cli.options import field_options, taken, verbose_option
from unlearnbench.errors import OptionError, ResultError, printable
from unlearnbench.evaluation.options import Options
from unlearnbench.recovery import certificate, reports
from unlearnbench.recovery.compare import Comparison, open_comparison
from unlearnbench.recovery.judging import check
from unlearnbench.recovery.policy import Finding, Policy, exit_status
from unlearnbench.util.files import write_text, writing
from unlearnbench.util.validation import read_yaml_model

_VERDICTS = {0: "pass", 1: "FAIL", 2: "not decided: the lines above say why"}


@dataclass(frozen=True)
class _Checked:
    """What was found; ``comparison``: of whole runs, where a certificate may be made of them."""

    findings: Sequence[Finding]
    policy: Policy
    comparison: Comparison
    asked: tuple[int, int] | None = None
    """Of an early check: samples that it took, and all."""


@click.command("check")
@click.argument("runs", nargs=-1, metavar="RUN...")
@click.option("--model", metavar="PATH|ID", help="Evaluate this checkpoint, in place of RUN...")
@click.option("--policy", "policy_file", metavar="FILE", help="What must hold: policy.yaml.")
@click.option("--target", required=True, metavar="RUN|FOLDER", help="Runs of the target model.")
@click.option("--retrained", required=True, metavar="RUN|FOLDER", help="Of the retrained model.")
@click.option(
    "--until-decided",
    is_flag=True,
    help="With --model: sample by sample in random order, until the outcome is decided.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the findings as JSON.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML.")
@click.option("--summary", metavar="FILE", help="Append a Markdown table, as for GitHub's summary.")
@click.option("--certify", "certify_file", metavar="FILE", help="Write a certificate on a pass.")
@click.option("--verify-certificate", "verify_file", metavar="FILE", help="Check one again.")
@field_options(Options, without={"progress"}, also={"output": "--output-path"})
@verbose_option
@click.pass_context
def check_runs(
    ctx: click.Context,
    /,
    runs: Sequence[str],
    model: str | None,
    policy_file: str | None,
    target: str,
    retrained: str,
    **given: Any,
) -> int:
    """Hold runs against a policy: exit 0 pass, 1 fail, 2 not decided or bad input.

    RUN is a run folder, or a folder with runs below it; with --model the checkpoint is evaluated
    first, as `unlearnbench --model` does it, under the policy's conditions and on its tasks; the
    same command goes on where it was interrupted. An interval's bound decides, not its point. Where
    GITHUB_ACTIONS is set, what did not pass is annotated too.
    """
    ends = Path(target), Path(retrained)
    verify_file = given.pop("verify_file")
    if (policy_file is None) == (verify_file is None):
        raise OptionError("give --policy FILE, or --verify-certificate FILE, which holds its own")
    if bool(runs) == (model is not None):
        raise OptionError("give RUN..., or --model PATH, which is evaluated first")
    _require_alone(ctx, model, given, verify_file)
    advice, asked = list[str](), None
    if verify_file is not None:
        known = certificate.read_certificate(Path(verify_file))
        findings: Sequence[Finding] = certificate.verify_certificate(
            known, [Path(run) for run in runs], *ends
        )
    else:
        policy = _read_policy(Path(str(policy_file)))
        if model is None:
            comparison = open_comparison(
                [Path(run) for run in runs], *ends, confidence=policy.confidence
            )
            checked = _Checked(check(comparison, policy), policy, comparison)
        else:
            checked = _check_model(model, policy, ends, given)
        findings, asked = checked.findings, checked.asked
        advice = reports.advice(checked.comparison, findings)
        if given["certify_file"] is not None and exit_status(findings) == 0:
            passed = certificate.certify(checked.comparison, policy, findings)
            write_text(Path(given["certify_file"]), certificate.certificate_json(passed))
    _report(findings, asked, given)
    for line in advice:
        click.echo(printable(f"\n{line}"))
    if asked is not None:
        click.echo(f"\n{asked[0]} of {asked[1]} samples were asked")
    click.echo(f"\n{_VERDICTS[exit_status(findings)]}")
    return exit_status(findings)


def _require_alone(
    ctx: click.Context, model: str | None, given: dict[str, Any], verify_file: str | None
) -> None:
    """Raise OptionError for options that do not go together: they would be left out in silence."""
    if verify_file is not None and (model is not None or given["certify_file"] is not None):
        other = "--model" if model is not None else "--certify"
        raise OptionError(f"{other} needs --policy, not --verify-certificate")
    if given["until_decided"] and given["certify_file"] is not None:
        raise OptionError("--certify rests on all samples; leave --until-decided out")
    if model is not None:
        return
    for name in ("until_decided", *Options.model_fields):
        if name in given and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise OptionError(f"{option} needs --model PATH: finished runs are only read")


def _check_model(
    model: str, policy: Policy, ends: tuple[Path, Path], given: dict[str, Any]
) -> _Checked:
    from unlearnbench.evaluation.gate import ModelCheck

    options = taken(Options, given).updated({"progress": True})
    try:
        asked = ModelCheck(model, policy, *ends, options)
        verdict = asked.early() if given["until_decided"] else asked.whole()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; every answer so far is kept in {options.output}, and the same command "
            "(without --fresh) goes on from there"
        ) from None
    return _Checked(verdict.findings, policy, verdict.comparison, verdict.asked)


def _report(
    findings: Sequence[Finding], asked: tuple[int, int] | None, given: dict[str, Any]
) -> None:
    """Write the files that were asked for, and show the table."""
    if given["json_file"] is not None:
        write_text(Path(given["json_file"]), reports.findings_json(findings, asked))
    if given["junit"] is not None:
        write_text(Path(given["junit"]), reports.junit(findings))
    if (summary := given["summary"]) is not None:
        with writing(Path(summary), ResultError, "give another path"):
            Path(summary).parent.mkdir(parents=True, exist_ok=True)
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(reports.summary(findings))
    click.echo(printable(reports.findings_table(findings)))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in reports.github_annotations(findings):
            click.echo(line)


def _read_policy(path: Path) -> Policy:
    policy = read_yaml_model(path, Policy)
    names = dict.fromkeys(full_name(name) for name in policy.precisions)
    update: dict[str, object] = {"precisions": tuple(names)}
    if isinstance(policy.max_recovered, dict):
        bounds = policy.max_recovered.items()
        update["max_recovered"] = {full_name(name): bound for name, bound in bounds}
    return policy.model_copy(update=update)
