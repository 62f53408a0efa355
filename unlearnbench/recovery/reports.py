"""What a comparison or a check found, as JSON, tables, JUnit XML, GitHub summary and annotations.

Names come from runs and may be anyone's: each form is escaped for where it is read.
"""

from __future__ import annotations

import html
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from xml.etree import ElementTree

from unlearnbench import conditions
from unlearnbench.errors import one_line
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.recovery.compare import Comparison
from unlearnbench.recovery.judging import come_back
from unlearnbench.recovery.policy import Finding, exit_status
from unlearnbench.recovery.verdicts import RecoveryRow
from unlearnbench.util.text import fitted_table, text_table

_HEAD = ["entry", "task", "condition", "full", "quantized", "target", "retrained", "change"]
_HEAD += ["recovered", "retained", "utility", "verdict"]
# By outcome: JUnit's tag, and the kind of GitHub's annotation.
_NOT_PASSED = {"fail": ("failure", "error"), "not decided": ("error", "warning")}


def recovery_table(rows: Sequence[RecoveryRow]) -> str:
    """Points, and shares in percent, with their 95% intervals. ``*`` marks a change that holds
    after Holm's correction.
    """
    return text_table([_cells(row) for row in rows], _HEAD)


def rows_json(rows: Sequence[RecoveryRow]) -> str:
    """The rows as a JSON file's content; what was not measured is absent."""
    content = [row.model_dump(mode="json", exclude_none=True) for row in rows]
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def findings_json(findings: Sequence[Finding], asked: tuple[int, int] | None = None) -> str:
    """The outcome and every finding as a JSON file's content; what there is not is absent.
    ``asked``: of an early check, the samples that it took and all that there are.
    """
    names = {0: "pass", 1: "fail", 2: "not decided"}
    found = [
        {name: value for name, value in asdict(finding).items() if value is not None}
        for finding in findings
    ]
    content: dict[str, object] = {"outcome": names[exit_status(findings)], "findings": found}
    if asked is not None:
        content["samples"] = {"asked": asked[0], "of": asked[1]}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _cells(row: RecoveryRow) -> list[str]:
    scores = [points(row.estimate(n)) for n in ("full", "quantized", "target", "retrained")]
    change = points(row.estimate("change")) + (" *" if row.significant else "")
    if row.taught is not None:
        change += f" (control {points(row.estimate('taught'))})"
    shares = [share(row.estimate(name)) for name in ("recovered", "retained", "utility")]
    verdict: str = row.verdict
    if verdict == "not decided":
        verdict += "" if row.samples_needed is None else f" (about {row.samples_needed} samples)"
    if row.empty_outputs:
        verdict += f", {row.empty_outputs} of {row.n * row.seeds} outputs empty"
    entry = f"{row.entry} ({counted(row.seeds)})"
    return [entry, row.task, row.precision, *scores, change, *shares, verdict]


def counted(seeds: int) -> str:
    """How many trainings stand behind a row: ``1 seed``, ``3 seeds``."""
    return f"{seeds} seed{'s' if seeds > 1 else ''}"


def points(figure: Estimate | None) -> str:
    """``value [low, high]``, one decimal; ``-`` where there is none."""
    if figure is None:
        return "-"
    shown = f"{figure.value:.1f}"
    return shown if figure.ci is None else f"{shown} [{figure.ci[0]:.1f}, {figure.ci[1]:.1f}]"


def share(figure: Estimate | None) -> str:
    """A share in percent with its interval; ``-`` where there is none."""
    if figure is None:
        return "-"
    shown, ci = f"{100 * figure.value:.0f}%", figure.ci
    return shown if ci is None else f"{shown} [{100 * ci[0]:.0f}, {100 * ci[1]:.0f}]"


def findings_table(findings: Sequence[Finding]) -> str:
    """A text table."""
    rows = [[f.entry, f.task, f.precision, f.rule, f.outcome, f.message] for f in findings]
    head = ["entry", "task", "precision", "rule", "outcome", "measured"]
    return fitted_table(rows, head)


def junit(findings: Sequence[Finding]) -> str:
    """JUnit XML: a rule that fails is a failure, one that is not decided an error."""
    counts = Counter(finding.outcome for finding in findings)
    failed, undecided = str(counts["fail"]), str(counts["not decided"])
    facts = {"tests": str(len(findings)), "failures": failed, "errors": undecided}
    suite = ElementTree.Element("testsuite", {"name": "unlearnbench", **facts})
    for finding in findings:
        place = one_line(f"{finding.entry}.{finding.task}")
        name = one_line(f"{finding.precision}: {finding.rule}")
        case = ElementTree.SubElement(suite, "testcase", classname=place, name=name)
        if finding.outcome in _NOT_PASSED:
            tag, _ = _NOT_PASSED[finding.outcome]
            ElementTree.SubElement(case, tag, message=one_line(finding.message))
    text: str = ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
    return text + "\n"


def summary(findings: Sequence[Finding]) -> str:
    """GitHub Markdown for a step summary: one table, what failed first."""

    def literal(text: str) -> str:  # Markdown in a table's cell takes it as it is
        safe = html.escape(one_line(text, 300))
        return "".join(f"&#{ord(c)};" if c in "|\\`*_[]()!~:@#" else c for c in safe)

    lines = ["### unlearnbench check", "", "| outcome | checked | measured |", "|---|---|---|"]
    for finding in sorted(findings, key=lambda f: ("fail", "not decided", "pass").index(f.outcome)):
        cells = map(literal, (finding.outcome, finding.name, finding.message))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def github_annotations(findings: Sequence[Finding]) -> list[str]:
    """GitHub workflow commands for what did not pass."""
    lines = []
    for finding in findings:
        if finding.outcome in _NOT_PASSED:
            _, kind = _NOT_PASSED[finding.outcome]
            name, message = (
                one_line(text).replace("%", "%25") for text in (finding.name, finding.message)
            )
            name = name.replace(":", "%3A").replace(",", "%2C")
            lines.append(f"::{kind} title={name}::{message}")
    return lines


def advice(comparison: Comparison, findings: Sequence[Finding]) -> list[str]:
    """A line for each checkpoint that comes back when it is quantized, and may be mended."""
    target, lines = comparison.target.full.result.checkpoint.path, []
    for entry, failed in come_back(comparison, findings):
        known = conditions.precisions()
        names = [n for n in failed if n in known and conditions.has_levels(known[n])]
        if names:
            model = entry.full.result.checkpoint.path
            lines.append(
                f"rounding undoes the forgetting at {', '.join(names)}; mend it: unlearnbench "
                f"repair --model {_quoted(model)} --target {_quoted(target)} --for "
                f"{','.join(names)} --out DIR (docs/repair.md)"
            )
    return lines


def _quoted(path: str) -> str:
    """As a shell takes it; one that no line can hold has to be put in."""
    clean = one_line(path)
    return shlex.quote(clean) if clean == path else "PATH"
