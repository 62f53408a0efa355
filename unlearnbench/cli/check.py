"""The command ``check``: a gate for CI. Exit 0 pass, 1 fail, 2 not decided or bad input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from unlearnbench.cli.quants import precision_name
from unlearnbench.errors import OptionError, ResultError, printable
from unlearnbench.recovery import reports
from unlearnbench.recovery.certificate import (
    certificate_json,
    certify,
    read_certificate,
    verify_certificate,
)
from unlearnbench.recovery.compare import open_comparison
from unlearnbench.recovery.policy import Policy, check, exit_status
from unlearnbench.util.files import write_text, writing
from unlearnbench.util.validation import read_yaml_model

_VERDICTS = {0: "pass", 1: "FAIL", 2: "not decided: the lines above say why"}


@click.command("check")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--policy", "policy_file", metavar="FILE", help="What must hold: policy.yaml.")
@click.option("--target", required=True, metavar="RUN|FOLDER", help="Runs of the target model.")
@click.option("--retrained", required=True, metavar="RUN|FOLDER", help="Of the retrained model.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML.")
@click.option("--summary", metavar="FILE", help="Append a Markdown table, as for GitHub's summary.")
@click.option("--certify", "certify_file", metavar="FILE", help="Write a certificate on a pass.")
@click.option("--verify-certificate", "verify_file", metavar="FILE", help="Check one again.")
def check_runs(
    runs: Sequence[str],
    policy_file: str | None,
    target: str,
    retrained: str,
    junit: str | None,
    summary: str | None,
    certify_file: str | None,
    verify_file: str | None,
) -> int:
    """Hold runs against a policy: exit 0 pass, 1 fail, 2 not decided or bad input.

    An interval's bound decides, not its point. Where GITHUB_ACTIONS is set, what did not pass is
    annotated too.
    """
    paths = [Path(run) for run in runs], Path(target), Path(retrained)
    if (policy_file is None) == (verify_file is None):
        raise OptionError("give --policy FILE, or --verify-certificate FILE, which holds its own")
    if policy_file is not None:
        policy = _read_policy(Path(policy_file))
        comparison = open_comparison(*paths, confidence=policy.confidence)
        findings = check(comparison, policy)
        if certify_file is not None and exit_status(findings) == 0:
            certificate = certify(comparison, policy, findings)
            write_text(Path(certify_file), certificate_json(certificate))
    elif certify_file is not None:
        raise OptionError("--certify needs --policy, not --verify-certificate")
    else:
        findings = verify_certificate(read_certificate(Path(str(verify_file))), *paths)
    if junit is not None:
        write_text(Path(junit), reports.junit(findings))
    if summary is not None:
        _append(Path(summary), reports.summary(findings))
    click.echo(printable(reports.findings_table(findings)))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in reports.github_annotations(findings):
            click.echo(line)
    click.echo(f"\n{_VERDICTS[exit_status(findings)]}")
    return exit_status(findings)


def _read_policy(path: Path) -> Policy:
    policy = read_yaml_model(path, Policy)
    names = dict.fromkeys(precision_name(name) for name in policy.precisions)
    return policy.model_copy(update={"precisions": tuple(names)})


def _append(path: Path, text: str) -> None:
    with writing(path, ResultError, "give another path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
