"""What a check found, for machines and for GitHub: JUnit XML, a step summary, annotations.

Names come from runs and may be anyone's: each form is escaped for where it is read.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from unlearnbench.errors import one_line
from unlearnbench.recovery.policy import Finding
from unlearnbench.util.text import text_table

_TAGS = {"fail": "failure", "not decided": "error"}
_KINDS = {"fail": "error", "not decided": "warning"}
_ORDER = {"fail": 0, "not decided": 1, "pass": 2}


def junit(findings: Sequence[Finding]) -> str:
    """JUnit XML: a rule that fails is a failure, one that is not decided an error."""
    counts = Counter(finding.outcome for finding in findings)
    suite = ElementTree.Element(
        "testsuite",
        name="unlearnbench",
        tests=str(len(findings)),
        failures=str(counts["fail"]),
        errors=str(counts["not decided"]),
    )
    for finding in findings:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=one_line(f"{finding.entry}.{finding.task}"),
            name=one_line(f"{finding.precision}: {finding.rule}"),
        )
        if finding.outcome in _TAGS:
            message = one_line(finding.message)
            ElementTree.SubElement(case, _TAGS[finding.outcome], message=message)
    text: str = ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
    return text + "\n"


def findings_table(findings: Sequence[Finding]) -> str:
    """A text table."""
    rows = [[f.entry, f.task, f.precision, f.rule, f.outcome, f.message] for f in findings]
    head = ["entry", "task", "precision", "rule", "outcome", "measured"]
    return text_table(rows, head, "simple")


def summary(findings: Sequence[Finding]) -> str:
    """GitHub Markdown for a step summary: one table."""
    lines = ["### unlearnbench check", "", "| outcome | checked | measured |", "|---|---|---|"]
    for finding in sorted(findings, key=lambda f: _ORDER[f.outcome]):
        cells = (finding.outcome, finding.name, finding.message)
        lines.append("| " + " | ".join(_markdown(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    """Text that Markdown takes literally, inside a table cell."""
    safe = html.escape(one_line(text, 300))
    return "".join(f"&#{ord(c)};" if c in "|\\`*_[]()!~:@#" else c for c in safe)


def github_annotations(findings: Sequence[Finding]) -> list[str]:
    """GitHub workflow commands for what did not pass."""
    return [
        f"::{_KINDS[finding.outcome]} title={_property(finding.name)}::{_data(finding.message)}"
        for finding in findings
        if finding.outcome in _KINDS
    ]


def _data(text: str) -> str:
    return one_line(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
