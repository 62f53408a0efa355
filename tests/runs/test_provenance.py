from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

import unlearnbench
from unlearnbench.runs import provenance as environment
from unlearnbench.runs.provenance import describe_environment, git_hash, source_sha256

PACKAGE = Path(unlearnbench.__file__).resolve().parent
ROOT = PACKAGE.parent

in_a_checkout = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a git checkout"
)


def clean_environment() -> dict[str, str]:
    """No git settings of the caller's: neither a hook's GIT_DIR nor a user's configuration."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    identity = {
        f"GIT_{who}_{what}": "t@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    return kept | identity | {"GIT_CONFIG_GLOBAL": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(),
        timeout=60,
    )
    return done.stdout.strip()


def commit_all(folder: Path) -> str:
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "all")
    return git(folder, "rev-parse", "HEAD")


def ask(
    package_root: Path, folder: Path, extra: Mapping[str, str] | None = None
) -> tuple[str | None, str]:
    """Git hash and source hash, as a process in ``folder`` that imports from ``package_root``."""
    code = (
        "import json; from unlearnbench.runs import provenance as e; "
        "print(json.dumps([e.git_hash(), e.source_sha256()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=clean_environment() | {"PYTHONPATH": str(package_root)} | dict(extra or {}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    commit, source = json.loads(done.stdout)
    return commit, source


def copy_package(to: Path) -> Path:
    shutil.copytree(PACKAGE, to / "unlearnbench", ignore=shutil.ignore_patterns("__pycache__"))
    return to


@pytest.fixture
def another_repository(tmp_path: Path) -> Path:
    folder = tmp_path / "another"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    commit_all(folder)
    return folder


@in_a_checkout
def test_the_commit_is_unlearnbenchs_own_and_not_the_current_folders(
    another_repository: Path,
) -> None:
    commit, source = ask(ROOT, another_repository)
    assert commit is not None
    assert commit.removesuffix("-dirty") == git(ROOT, "rev-parse", "HEAD")
    assert git(another_repository, "rev-parse", "HEAD") not in commit
    assert source == source_sha256()


@in_a_checkout
def test_a_hooks_git_dir_does_not_stand_in_for_the_commit(another_repository: Path) -> None:
    # git sets GIT_DIR for its hooks and for rebase --exec; `git -C` does not override it.
    extra = {"GIT_DIR": str(another_repository / ".git")}
    commit, _ = ask(ROOT, another_repository, extra)
    assert commit is not None
    assert commit.removesuffix("-dirty") == git(ROOT, "rev-parse", "HEAD")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_clean_tree_gives_the_commit_and_a_changed_one_says_dirty(tmp_path: Path) -> None:
    root = copy_package(tmp_path)
    (root / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    commit = commit_all(root)
    assert ask(root, tmp_path)[0] == commit
    (root / "leaderboards").mkdir()
    (root / "leaderboards" / "entry.json").write_text("{}", encoding="utf-8")
    assert ask(root, tmp_path)[0] == commit, "results do not come from a board's entries"
    for name in ("unlearnbench/new.py", "tasks/new.yaml", "pyproject.toml"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("a: 1\n", encoding="utf-8")
        assert ask(root, tmp_path)[0] == f"{commit}-dirty", name
        commit = commit_all(root)
        assert ask(root, tmp_path)[0] == commit


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_copy_below_another_repository_has_no_commit(another_repository: Path) -> None:
    # As in a virtual environment inside somebody's project.
    site = another_repository / ".venv" / "site-packages"
    site.mkdir(parents=True)
    commit, source = ask(copy_package(site), another_repository)
    assert commit is None
    assert source == source_sha256()


def test_the_source_hash_changes_with_every_change_of_a_file(tmp_path: Path) -> None:
    root = copy_package(tmp_path)
    rouge = root / "unlearnbench" / "metrics" / "rouge.py"
    seen = [ask(root, tmp_path)[1]]
    assert seen[0] == source_sha256()
    content = rouge.read_bytes()
    rouge.write_bytes(content + b"#\n")
    seen.append(ask(root, tmp_path)[1])
    rouge.rename(rouge.with_name("rogue.py"))
    seen.append(ask(root, tmp_path)[1])
    rouge.with_name("rogue.py").unlink()
    seen.append(ask(root, tmp_path)[1])
    assert len(set(seen)) == 4
    rouge.write_bytes(content)
    assert ask(root, tmp_path)[1] == seen[0]


def test_the_source_hash_does_not_depend_on_leftovers(tmp_path: Path) -> None:
    root = copy_package(tmp_path)
    cache = root / "unlearnbench" / "__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "rouge.cpython-311.pyc").write_bytes(b"x")
    (root / "unlearnbench" / "notes.txt").write_text("x", encoding="utf-8")
    assert ask(root, tmp_path)[1] == source_sha256()


def test_without_git_there_is_no_commit_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    git_hash.cache_clear()
    try:
        assert git_hash() is None
    finally:
        git_hash.cache_clear()


def test_an_environment_names_what_can_move_a_number() -> None:
    found = describe_environment("cpu", "bf16", 4)
    assert found.unlearnbench == unlearnbench.__version__
    assert found.python == platform.python_version()
    assert found.platform == platform.platform()
    assert found.source_sha256 == source_sha256()
    assert found.device == f"cpu ({platform.machine()})"
    assert (found.dtype, found.batch_size) == ("bf16", "4")
    assert found.threads >= 1
    for name in ("torch", "transformers", "bitsandbytes", "numpy", "rouge-score"):
        assert found.packages[name] == version(name)


def test_an_automatic_batch_size_says_so() -> None:
    assert describe_environment("cpu", "fp32", None).batch_size == "auto"


def test_a_package_that_is_not_there_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def nowhere(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("unlearnbench.runs.provenance.version", nowhere)
    monkeypatch.setattr(
        "unlearnbench.runs.provenance.package_version", environment.package_version.__wrapped__
    )
    assert describe_environment("cpu", "fp32", None).packages == {}
