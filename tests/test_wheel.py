"""The wheel, installed in a fresh environment, works in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(command: list[str], folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of executables of an environment that has the wheel and sees our libraries."""
    work = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work)]
    run([*build, str(ROOT)], work)
    (wheel,) = work.glob("*.whl")
    home = work / "env"
    venv.create(home, with_pip=False)
    # The libraries of the environment that runs the tests; nothing is fetched, and the project's
    # own folder is not on the path.
    libraries = [p for p in sys.path if p.endswith("site-packages")]
    (site,) = home.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install"]
    run([*install, "--quiet", "--no-deps", "--no-index", str(wheel)], work)
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n", encoding="utf-8")
    return home / "bin"


def test_the_package_is_the_installed_one(installed: Path, tmp_path: Path) -> None:
    code = "import unlearnbench; print(unlearnbench.__file__)"
    found = run([str(installed / "python"), "-c", code], tmp_path).strip()
    assert found.startswith(str(installed.parent)), found


def test_tasks_are_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    listed = run([str(installed / "unlearnbench"), "tasks"], tmp_path)
    for path in (ROOT / "tasks").glob("*.yaml"):
        assert path.stem in listed


def test_demo_data_is_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    shown = run([str(installed / "unlearnbench"), "tasks", "demo_knowmem_f"], tmp_path)
    assert "# first prompt\nQuestion: " in shown


@pytest.mark.slow
@pytest.mark.ci
def test_evaluates_in_an_empty_folder(installed: Path, tmp_path: Path, tiny: Path) -> None:
    command = [str(installed / "python"), "-m", "unlearnbench", "--model", str(tiny)]
    table = run([*command, "--tasks", "demo_verbmem", "--limit", "1", "--quant", "4bit"], tmp_path)
    assert "bnb-fp4" in table
    assert list(tmp_path.glob("results/tiny-*/bnb-fp4/run.json"))
