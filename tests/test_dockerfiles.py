"""The Dockerfiles, without docker: what they copy is all that the package is built from."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("Dockerfile", "Dockerfile.cuda")


def instructions(name: str) -> list[tuple[str, str]]:
    """Each instruction and what stands behind it."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def copies(name: str) -> list[tuple[str, str]]:
    """Each path of the repository, and where it goes."""
    found = [rest.split() for word, rest in instructions(name) if word == "COPY"]
    return [
        (path, f"{to}{path}" if to.endswith("/") else to) for *paths, to in found for path in paths
    ]


def test_the_package_is_built_from_what_is_copied(tmp_path: Path) -> None:
    home = tmp_path / "src"
    assert copies("Dockerfile") == copies("Dockerfile.cuda")
    for path, to in copies("Dockerfile"):
        (home / to).parent.mkdir(parents=True, exist_ok=True)
        skipped = shutil.ignore_patterns("__pycache__")
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, home / to, ignore=skipped)
        else:
            shutil.copy(ROOT / path, home / to)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    done = subprocess.run(
        [*build, str(home)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as package:
        held = set(package.namelist())
    tasks = {f"unlearnbench/_tasks/{path.name}" for path in (ROOT / "tasks").glob("*.yaml")}
    assert {"unlearnbench/cli/main.py", "unlearnbench/boards/page.js"} | tasks <= held


@pytest.mark.parametrize("name", NAMES)
def test_docker_sends_what_is_copied_and_nothing_else(name: str) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    first, *kept = [line for line in lines if line and not line.startswith("#")]
    assert first == "*"
    assert {line[1:] for line in kept if line.startswith("!")} == {p for p, _ in copies(name)}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_the_command_as_no_root_on_pinned_packages(name: str) -> None:
    found = instructions(name)
    assert [rest for word, rest in found if word == "FROM"] == ["python:3.11-slim"]
    assert ("ENTRYPOINT", '["unlearnbench"]') in found
    assert [word for word, _ in found].index("USER") > max(
        at for at, (word, _) in enumerate(found) if word in ("RUN", "COPY")
    )
    assert ("USER", "1000") in found
    installs = [rest for word, rest in found if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint .ci/constraints.txt" in rest for rest in installs)
    # The extras that its head names are extras.
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (named,) = re.findall(r"EXTRAS=\[(.*)\]", (ROOT / name).read_text(encoding="utf-8"))
    assert all(re.search(rf"^{extra} = \[", project, re.M) for extra in named.split(","))
