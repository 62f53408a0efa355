"""The command ``check``: a gate for CI. Exit 0 pass, 1 fail, 2 not decided or bad input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unlearnbench.cli.compare import precision_name
from unlearnbench.errors import OptionError, ResultError, printable
from unlearnbench.util.files import write_text, writing

if TYPE_CHECKING:
    from unlearnbench.recovery.policy import Finding, Policy


@dataclass(frozen=True)
class _Reports:
    junit: str | None
    summary: str | None


@click.command("check")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--policy", "policy_file", metavar="FILE", help="What must hold: policy.yaml.")
@click.option("--target", required=True, metavar="RUN|FOLDER", help="Runs of the target model.")
@click.option("--retrained", required=True, metavar="RUN|FOLDER", help="Of the retrained model.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML.")
@click.option("--summary", metavar="FILE", help="Append a Markdown table, as for GitHub's summary.")
@click.option("--certify", "certify_file", metavar="FILE", help="Write a certificate on a pass.")
@click.option("--verify-certificate", "verify_file", metavar="FILE", help="Check one again.")
def check_command(
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
    from unlearnbench.recovery.certificate import read_certificate, verify_certificate
    from unlearnbench.recovery.policy import exit_status

    paths = [Path(run) for run in runs], Path(target), Path(retrained)
    if (policy_file is None) == (verify_file is None):
        raise OptionError("give --policy FILE, or --verify-certificate FILE, which holds its own")
    if verify_file is not None:
        if certify_file is not None:
            raise OptionError("--certify needs --policy, not --verify-certificate")
        findings = verify_certificate(read_certificate(Path(verify_file)), *paths)
    else:
        findings = _check(paths, _read_policy(Path(str(policy_file))), certify_file)
    _report(findings, _Reports(junit, summary))
    return exit_status(findings)


def _read_policy(path: Path) -> Policy:
    from unlearnbench.recovery.policy import Policy
    from unlearnbench.util.yaml import read_yaml_model

    policy = read_yaml_model(path, Policy)
    names = dict.fromkeys(precision_name(name) for name in policy.precisions)
    return policy.model_copy(update={"precisions": tuple(names)})


def _check(
    paths: tuple[list[Path], Path, Path], policy: Policy, certify_file: str | None
) -> list[Finding]:
    from unlearnbench.recovery.certificate import certificate_json, certify
    from unlearnbench.recovery.compare import open_comparison
    from unlearnbench.recovery.policy import check, exit_status

    comparison = open_comparison(*paths, confidence=policy.confidence)
    findings = check(comparison, policy)
    if certify_file is not None and exit_status(findings) == 0:
        certificate = certify(comparison, policy, findings)
        write_text(Path(certify_file), certificate_json(certificate))
    return findings


def _report(findings: Sequence[Finding], to: _Reports) -> None:
    from unlearnbench.recovery.policy import exit_status
    from unlearnbench.recovery.reports import findings_table, github_annotations, junit, summary

    if to.junit is not None:
        write_text(Path(to.junit), junit(findings))
    if to.summary is not None:
        _append(Path(to.summary), summary(findings))
    click.echo(printable(findings_table(findings)))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in github_annotations(findings):
            click.echo(line)
    click.echo(f"\n{_VERDICTS[exit_status(findings)]}")


_VERDICTS = {0: "pass", 1: "FAIL", 2: "not decided: the lines above say why"}


def _append(path: Path, text: str) -> None:
    with writing(path, ResultError, "give another path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)


COMMANDS = (check_command,)
