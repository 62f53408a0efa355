"""The durability certificate: what was shown of which weights, and from which evidence."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from unlearnbench.errors import OptionError, ResultError, one_line
from unlearnbench.recovery.compare import Comparison, open_comparison
from unlearnbench.recovery.controls import needs_control
from unlearnbench.recovery.judging import check
from unlearnbench.recovery.policy import Finding, Policy, exit_status
from unlearnbench.results import FORMAT_VERSION, FULL, Document, Role, upgrade
from unlearnbench.runs.entries import Entry, LoadedRun
from unlearnbench.runs.fingerprint import tokenizer_sha256
from unlearnbench.util.files import read_json
from unlearnbench.util.validation import as_model
from unlearnbench.util.version import __version__


class Evidence(Document):
    """One samples file that the certificate rests on."""

    role: Role
    weights_sha256: str
    condition: str
    task: str
    version: float
    records_sha256: str


class Certificate(Document):
    """Durable(U, C, eps): under every condition in C the policy's rules hold."""

    format_version: Literal[2] = FORMAT_VERSION
    checkpoint: str
    """As given to the runs; the hash identifies it, not this."""
    weights_sha256: str
    tokenizer_sha256: str
    tokenizer_probe_sha256: str | None = None
    """By which the tokenizer is known, as between runs; absent in older certificates."""
    conditions: tuple[str, ...]
    epsilon: float
    """Most points above the retrained model."""
    policy: Policy
    protocol: str
    evidence: tuple[Evidence, ...] = Field(min_length=1)
    unlearnbench: str
    created: str

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, content: Any) -> Any:
        return upgrade(content)


# What each kind of task must be held to.
_RULES = {"low": "max_excess", "zero": "max_privleak", "high": "min_utility"}


def certify(comparison: Comparison, policy: Policy, findings: Sequence[Finding]) -> Certificate:
    """The certificate of a check that passed.

    Raises:
        OptionError: it did not pass, is of several checkpoints, or its policy leaves out a part of
            what durable means: the excess of every forget task that was evaluated, PrivLeak where
            it was measured, and utility, in full precision, quantized, and under every condition
            that was evaluated.
    """
    if exit_status(findings) != 0:
        raise OptionError("no certificate: the check did not pass")
    if len(comparison.entries) != 1:
        raise OptionError("a certificate is of one checkpoint; give its runs alone")
    (entry,) = comparison.entries
    if entry.full.result.imported is not None:
        raise OptionError("no certificate from imported runs: their weights are not known")
    wants = {n: task.want for run in entry.runs.values() for n, task in run.result.tasks.items()}
    needed = {"max_excess", "min_utility", *(_RULES[want] for want in wants.values())}
    left = sorted(set(entry.runs) - set(policy.precisions))
    if left:
        raise OptionError(
            f"no certificate: the policy's precisions leave out {one_line(left[0])}, which was "
            "evaluated"
        )
    kinds = {entry.at(name).result.condition.kind for name in policy.precisions}
    if "quantized" not in kinds:
        raise OptionError(
            "no certificate: durable needs a quantized precision in the policy and among the runs; "
            f"it has only {', '.join(policy.precisions)}"
        )
    missing = sorted(needed - policy.rules)
    if missing or FULL not in policy.precisions:
        what = ", ".join(missing) or f"precision {FULL}"
        raise OptionError(f"no certificate: durable needs {what} in the policy")
    checked = {(finding.task, finding.rule.split()[0]) for finding in findings}
    kept = [comparison.retained(entry, n) for n, want in wants.items() if want == "high"]
    of = {task: family.name for family in kept if family for task, _ in family.parts}
    left = sorted(n for n, want in wants.items() if (of.get(n, n), _RULES[want]) not in checked)
    if left:
        raise OptionError(
            f"no certificate: the policy's tasks leave out {one_line(left[0])}, which was evaluated"
        )
    checkpoint = entry.full.result.checkpoint
    return Certificate(
        checkpoint=checkpoint.path,
        weights_sha256=checkpoint.weights_sha256,
        tokenizer_sha256=checkpoint.tokenizer_sha256,
        tokenizer_probe_sha256=checkpoint.tokenizer_probe_sha256,
        conditions=policy.precisions,
        epsilon=policy.max_excess or 0.0,
        policy=policy,
        protocol=entry.full.result.protocol,
        evidence=_evidence(comparison, entry, policy),
        unlearnbench=__version__,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _evidence(comparison: Comparison, entry: Entry, policy: Policy) -> tuple[Evidence, ...]:
    tasks = comparison.tasks(entry)
    runs: list[tuple[Role, LoadedRun]] = [("unlearned", entry.at(p)) for p in policy.precisions]
    quantized = policy.precisions if policy.max_recovered is not None else (FULL,)
    runs += [("target", comparison.target.at(p)) for p in quantized]
    controls = [p for p in policy.precisions if needs_control(p)]
    runs += [("retrained", comparison.retrained.at(p)) for p in (FULL, *controls)]
    return tuple(
        Evidence(
            role=role,
            weights_sha256=run.result.checkpoint.weights_sha256,
            condition=run.condition,
            task=task,
            version=run.task(task).version,
            records_sha256=run.task(task).records_sha256,
        )
        for role, run in runs
        for task in tasks
    )


def read_certificate(path: Path) -> Certificate:
    """Read a certificate. Raises ResultError where it is none."""
    content = read_json(path, ResultError)
    return as_model(f"{path} is no certificate", content, Certificate, ResultError)


def verify_certificate(
    certificate: Certificate, runs: Sequence[Path], target: Path, retrained: Path
) -> list[Finding]:
    """Check a certificate again: its evidence is these runs', and its policy holds on them.

    Raises:
        ResultError: it speaks of other weights or evidence; names the first difference.
    """
    policy = certificate.policy
    comparison = open_comparison(runs, target, retrained, confidence=policy.confidence)
    findings = check(comparison, policy)
    if exit_status(findings) != 0:
        return findings
    again = certify(comparison, policy, findings)
    pair = certificate, again
    facts = {"tokenizer": (tokenizer_sha256(*pair), tokenizer_sha256(*reversed(pair)))}
    for field in ("weights_sha256", "protocol", "conditions", "epsilon"):
        facts[field] = getattr(certificate, field), getattr(again, field)
    for field, (stated, found) in facts.items():
        if stated != found:
            raise ResultError(f"the certificate is not of these runs: {field} differs")
    theirs, ours = (
        {(e.role, e.condition, e.task): e for e in c.evidence} for c in (certificate, again)
    )
    for key in {**theirs, **ours}:
        if theirs.get(key) != ours.get(key):
            raise ResultError(
                f"the certificate is not of these runs: the evidence of {one_line(' '.join(key))} "
                "differs"
            )
    return findings


def certificate_json(certificate: Certificate) -> str:
    """A certificate's file."""
    content = certificate.model_dump(mode="json", exclude_none=True)
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
