"""What GitHub runs on its own: nothing is published that CI has not passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / ".github" / "workflows"


def workflow(name: str) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))
    return found


def test_pages_are_published_when_ci_has_passed_on_main() -> None:
    found = workflow("pages")
    after = {"workflows": [workflow("ci")["name"]], "types": ["completed"], "branches": ["main"]}
    assert found[True] == {"workflow_run": after}  # YAML 1.1's "on"
    condition = found["jobs"]["publish"]["if"]
    for name, value in (("conclusion", "success"), ("event", "push")):
        assert f"github.event.workflow_run.{name} == '{value}'" in condition
    checkout = found["jobs"]["publish"]["steps"][0]
    assert checkout["with"]["ref"] == "${{ github.event.workflow_run.head_sha }}"


def test_a_release_is_tested_before_it_is_published() -> None:
    jobs = workflow("release")["jobs"]
    said = [step.get("run") for step in jobs["build"]["steps"]]
    assert said.index("make test") < said.index("make dist")
    assert jobs["publish"]["needs"] == "build"
