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
from tests.test_results import SHA, make_result
from unlearnbench.results import SplitData
from unlearnbench.runs.fingerprint import (
    Fingerprint,
    across_sha256,
    describe_environment,
    differences,
    git_hash,
    package_version,
    source_sha256,
    tokenizer_sha256,
)

OTHER = "f" * 64
PACKAGE = Path(unlearnbench.__file__).resolve().parent
ROOT = PACKAGE.parent

in_a_checkout = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a git checkout"
)


def part(split: str, sha256: str = SHA, **changes: object) -> SplitData:
    facts = {"split": split, "rows": 3, "sha256": sha256, "source": "local"}
    return SplitData.model_validate(facts | changes)


def task(*parts: SplitData, version: float = 1.0, definition: str = SHA) -> Fingerprint:
    return Fingerprint.of_task(version, definition, parts)


def test_a_fingerprint_that_was_written_and_read_is_the_same() -> None:
    facts = {"limit": 0.5, "seed": 0, "ids": ("a", "b"), "gone": None, "lone": "\ud800"}
    made = Fingerprint.of(facts)
    again = Fingerprint(json.loads(json.dumps(dict(made.facts))))
    assert again == made
    assert again.sha256 == made.sha256
    assert Fingerprint.of({**facts, "seed": 1}).sha256 != made.sha256
    assert differences(made, again) == []


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({"seed": 0}, {"seed": 7}, "seed is 0 there and 7 here"),
        ({}, {"limit": 2}, "limit is absent there and 2 here"),
        ({"limit": 2}, {"limit": None}, "limit is 2 there and absent here"),
        (
            {"weights": SHA},
            {"weights": OTHER},
            f"weights is {SHA[:12]} there and ffffffffffff here",
        ),
        ({"note": "a\nb"}, {"note": "x" * 99}, f"note is a b there and {'x' * 77}... here"),
    ],
)
def test_what_differs_is_said_in_one_line(
    there: dict[str, object], here: dict[str, object], said: str
) -> None:
    same = {"protocol": "muse"}
    assert differences(Fingerprint.of(same | there), Fingerprint.of(same | here)) == [said]


def test_all_that_differs_is_said() -> None:
    there, here = Fingerprint.of({"a": 1, "b": 2, "c": 3}), Fingerprint.of({"b": 1, "c": 3, "d": 4})
    assert [line.split(" is ")[0] for line in differences(there, here)] == ["b", "d", "a"]


def test_where_rows_came_from_does_not_matter_and_their_content_does() -> None:
    assert task(part("a"), part("b")) == task(part("b"), part("a", source="hub", drift="some"))
    for other, said in [
        (task(part("a", OTHER), part("b")), "data of split 'a' is ffffffffffff there and"),
        (task(part("b")), "data of split 'a' is absent there and 0123456789ab here"),
        (task(part("a"), part("b"), part("c")), "data of split 'c' is 0123456789ab there and abse"),
        (task(part("a"), part("b"), version=2.0), "task version is 2.0 there and 1.0 here"),
        (task(part("a"), part("b"), definition=OTHER), "task definition is ffffffffffff there"),
    ]:
        (line,) = differences(other, task(part("a"), part("b")))
        assert line.startswith(said)


def test_samples_are_the_same_in_one_order() -> None:
    made = Fingerprint.of_samples("texts", ["a", "b"])
    assert made == Fingerprint.of_samples("texts", ("a", "b"))
    assert differences(Fingerprint.of_samples("texts", ["b", "a"]), made) == [
        "number 1 of the texts is b there and a here",
        "number 2 of the texts is a there and b here",
    ]
    first = differences(Fingerprint.of_samples("texts", ["a"]), made)[0]
    assert first == "number of texts is 1 there and 2 here"


def test_the_kernel_is_a_part_of_a_run_and_not_of_what_was_done_to_the_weights() -> None:
    found = make_result()
    dense = found.condition.options.model_copy(update={"kernel": "dequantized"})
    other = found.condition.model_copy(update={"options": dense})
    assert Fingerprint.of_condition(other) == Fingerprint.of_condition(found.condition)
    there, here = (
        Fingerprint.of_run(found.checkpoint, found.settings, how)
        for how in (found.condition, other)
    )
    assert differences(there, here) == ["quant-kernel is absent there and dequantized here"]


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
        "import json; from unlearnbench.runs.fingerprint import git_hash, source_sha256; "
        "print(json.dumps([git_hash(), source_sha256()]))"
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


@pytest.mark.slow
@pytest.mark.ci
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
    for name in ("torch", "transformers", "bitsandbytes", "numpy", "rouge-score", "scikit-learn"):
        assert found.packages[name] == version(name)


def test_an_automatic_batch_size_says_so() -> None:
    assert describe_environment("cpu", "fp32", None).batch_size == "auto"


def test_a_package_that_is_not_there_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError

    def nowhere(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("unlearnbench.runs.fingerprint.version", nowhere)
    monkeypatch.setattr(
        "unlearnbench.runs.fingerprint.package_version", package_version.__wrapped__
    )
    assert describe_environment("cpu", "fp32", None).packages == {}


def test_tokenizers_are_compared_by_what_they_do_where_both_runs_say_it() -> None:
    """Files of before know their content alone, and compare with new ones as they did."""
    a, b, c = ("a" * 64, "b" * 64, "c" * 64)
    checkpoint = make_result().checkpoint.model_copy(update={"tokenizer_sha256": a})
    old = checkpoint.model_copy(update={"tokenizer_probe_sha256": None})
    new = checkpoint.model_copy(update={"tokenizer_probe_sha256": c})
    other = new.model_copy(update={"tokenizer_sha256": b})
    for ours, theirs, same in ((old, new, True), (new, other, True), (old, other, False)):
        assert (tokenizer_sha256(ours, theirs) == tokenizer_sha256(theirs, ours)) is same
    parted = new.model_copy(update={"tokenizer_probe_sha256": b})
    assert tokenizer_sha256(new, parted) != tokenizer_sha256(parted, new)


def test_tokens_that_steer_make_no_difference_between_two_checkpoints_but_in_one_run() -> None:
    a, b, c = ("a" * 64, "b" * 64, "c" * 64)
    facts = {"tokenizer_sha256": a, "tokenizer_probe_sha256": a}
    plain = make_result().checkpoint.model_copy(update=facts)
    facts = {"tokenizer_sha256": b, "tokenizer_probe_sha256": b, "tokenizer_unsteered_sha256": a}
    steered = plain.model_copy(update=facts)
    assert across_sha256(plain, steered) == across_sha256(steered, plain)
    assert tokenizer_sha256(plain, steered) != tokenizer_sha256(steered, plain)
    other = steered.model_copy(update={"tokenizer_unsteered_sha256": c})
    assert across_sha256(plain, other) != across_sha256(other, plain)
    old = plain.model_copy(update={"tokenizer_probe_sha256": None})
    assert across_sha256(old, steered) != across_sha256(steered, old), "nobody knows"
