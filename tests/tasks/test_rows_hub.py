"""The real hub is out of reach of tests: a stub of its HTTP API serves a data set instead, to the
real client libraries in a process of their own, which read their settings as they are imported.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.hub_stub import HubStub, serve
from unlearnbench.errors import DataError
from unlearnbench.tasks.kinds.likelihood import LikelihoodTask
from unlearnbench.tasks.rows import DataOptions, load_splits, rows_sha256

REPO = "muse-bench/toy"
FORMATS = {"main": "jsonl", "v1": "parquet", "v2": "parquet"}
SUBSETS = ("texts", "others")
SPLITS = ("forget", "holdout")

# What the process does: each job is one load_splits, its answer one entry of a JSON list.
DRIVER = """
import json, os, sys
from pathlib import Path
from unlearnbench.tasks.rows import DataOptions, load_splits
from unlearnbench.errors import DataError
from unlearnbench.tasks.kinds.likelihood import LikelihoodTask

answers = []
for job in json.load(sys.stdin):
    os.chdir(job["cwd"])
    folder = job["data_dir"] and Path(job["data_dir"])
    try:
        found = load_splits(LikelihoodTask.model_validate(job["task"]), DataOptions(folder))
    except DataError as error:
        answers.append({"error": str(error)})
    else:
        answers.append({name: vars(split) for name, split in found.items()})
print(json.dumps(answers))
"""


def rows_of(revision: str, subset: str, split: str) -> list[dict[str, Any]]:
    return [{"text": f"{revision} {subset} {split} {i} \u2028 é"} for i in range(3)]


def files_of(revision: str, suffix: str) -> dict[str, bytes]:
    """The files of a data set of two subsets, by path."""
    files: dict[str, bytes] = {}
    configs = ""
    for subset in SUBSETS:
        configs += f"- config_name: {subset}\n  data_files:\n"
        for split in SPLITS:
            path = f"{subset}/{split}.{suffix}"
            configs += f"  - split: {split}\n    path: {path}\n"
            files[path] = encode(suffix, rows_of(revision, subset, split))
    return {"README.md": f"---\nconfigs:\n{configs}---\n# A toy\n".encode(), **files}


def encode(suffix: str, rows: list[dict[str, Any]]) -> bytes:
    if suffix == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [row["text"] for row in rows]}), buffer)
    return buffer.getvalue()


def task(**changes: Any) -> dict[str, Any]:
    """The fields of a task over ``REPO``; ``changes`` replace some."""
    nonmember = changes.get("nonmember_split", "holdout")
    fields = {
        "task": "toy",
        "description": "A toy.",
        "dataset_path": REPO,
        "dataset_name": "texts",
        "output_type": "token_loglikelihood",
        "member_split": "forget",
        "nonmember_split": nonmember,
        "doc_to_text": "{{text}}",
        "attack": "Min-40%",
        "metric": "privleak",
        "want": "zero",
        "splits": {"forget": {"rows": 3}, nonmember: {"rows": 3}},
        "metadata": {"version": 1},
    }
    return fields | changes


def at(revision: str, **changes: Any) -> dict[str, Any]:
    return task(dataset_kwargs={"revision": revision}, **changes)


@dataclass(frozen=True)
class Client:
    """Runs jobs against ``endpoint`` with its own cache."""

    home: Path
    endpoint: str

    def run(self, jobs: dict[str, dict[str, Any]], offline: bool) -> dict[str, Any]:
        """Answers by the names of ``jobs``; a job may set ``cwd`` and ``data_dir`` too."""
        root = Path(__file__).resolve().parents[2]
        env = {
            **os.environ,
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HOME": str(self.home),
            "PYTHONPATH": str(root),
            "NO_PROXY": "127.0.0.1",
        }
        plain = {"cwd": str(self.home), "data_dir": None}
        wanted = [{**plain, **job} for job in jobs.values()]
        self.home.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input=json.dumps(wanted),
            capture_output=True,
            text=True,
            env=env,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        answers = dict(zip(jobs, json.loads(done.stdout.splitlines()[-1]), strict=True))
        return {**answers, "stderr": done.stderr}


@dataclass(frozen=True)
class Hub:
    """A client whose cache has been filled, its answers so far, and what the stub was asked."""

    client: Client
    answers: dict[str, Any]
    asked: list[str]


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """Answers while the hub can be reached."""
    root = tmp_path_factory.mktemp("hub")
    (root / "empty").mkdir()
    for path, content in files_of("shadow", "parquet").items():
        file = root / "shadow" / REPO / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    jobs: dict[str, dict[str, Any]] = {
        "main": {"task": task()},
        "others": {"task": at("v1", dataset_name="others")},
        "empty folder": {"task": at("v1"), "data_dir": str(root / "empty")},
        # A folder of the data set's name in the working directory is not the data set.
        "shadow": {"task": at("v1"), "cwd": str(root / "shadow")},
        "no revision": {"task": at("v9")},
        "no subset": {"task": at("v1", dataset_name="none")},
        "no split": {"task": at("v1", nonmember_split="retain")},
        "no set": {"task": at("v1", dataset_path="muse-bench/none")},
        "v1": {"task": at("v1")},
    }
    files = {name: files_of(name, suffix) for name, suffix in FORMATS.items()}
    with serve(HubStub(REPO, files)) as stub:
        client = Client(root / "home", stub.endpoint)
        return Hub(client, client.run(jobs, offline=False), stub.asked)


@pytest.fixture(scope="module")
def cached(online: Hub) -> dict[str, Any]:
    """Answers afterwards, from the cache alone."""
    jobs = {name: {"task": at(name)} for name in ("main", "v1", "v2")}
    return online.client.run(jobs, offline=True)


def check_rows(answer: dict[str, Any], revision: str, subset: str) -> None:
    expected = {}
    for split in SPLITS:
        rows = rows_of(revision, subset, split)
        digest = rows_sha256(rows)
        fixed = {"split": split, "source": "hub", "drift": None}
        expected[split] = {**fixed, "rows": rows, "sha256": digest}
    assert answer == expected


def check_error(answer: dict[str, Any], data_set: str, path: str) -> None:
    message = answer.get("error", f"no error but {answer}")
    assert "could not be loaded from the hub" in message
    assert data_set in message
    assert message.endswith(f"pass --data-dir FOLDER with {path}")
    assert message.isprintable()


@pytest.mark.parametrize(
    ("name", "revision", "subset"),
    [
        ("main", "main", "texts"),
        ("others", "v1", "others"),
        ("v1", "v1", "texts"),
        ("empty folder", "v1", "texts"),
        ("shadow", "v1", "texts"),
    ],
)
def test_rows_of_the_revision_and_subset(
    online: Hub, name: str, revision: str, subset: str
) -> None:
    check_rows(online.answers[name], revision, subset)


@pytest.mark.parametrize(
    ("name", "data_set", "path"),
    [
        ("no revision", f"{REPO}@v9", f"{REPO}/texts/forget.jsonl"),
        ("no subset", f"{REPO}@v1", f"{REPO}/none/forget.jsonl"),
        ("no split", f"{REPO}@v1", f"{REPO}/texts/retain.jsonl"),
        ("no set", "muse-bench/none@v1", "muse-bench/none/texts/forget.jsonl"),
    ],
)
def test_what_the_hub_does_not_have(online: Hub, name: str, data_set: str, path: str) -> None:
    check_error(online.answers[name], data_set, path)


def test_the_stub_was_asked_for_files_of_the_revision(online: Hub) -> None:
    commit = HubStub.commit("v1")
    assert f"GET /datasets/{REPO}/resolve/{commit}/texts/forget.parquet" in online.asked
    assert f"GET /datasets/{REPO}/resolve/{commit}/others/holdout.parquet" in online.asked


@pytest.mark.parametrize("revision", ["main", "v1"])
def test_the_cache_gives_the_revision_that_is_asked_for(
    cached: dict[str, Any], revision: str
) -> None:
    check_rows(cached[revision], revision, "texts")


def test_the_cache_does_not_stand_in_for_another_revision(cached: dict[str, Any]) -> None:
    check_error(cached["v2"], f"{REPO}@v2", f"{REPO}/texts/forget.jsonl")


def test_nothing_is_printed(online: Hub) -> None:
    assert online.answers["stderr"] == ""


def test_an_unreachable_hub_is_one_error_at_once(tmp_path: Path) -> None:
    # conftest.py has put the hub out of reach.
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    import datasets  # its import takes seconds, and is not what is timed

    assert datasets.config.HF_HUB_OFFLINE
    spec = LikelihoodTask.model_validate(at("v7", dataset_path="nobody/nothing"))
    for options, tried in (
        (DataOptions(), "no data folder was given"),
        (DataOptions(tmp_path), f"{tmp_path} has no nobody/nothing"),
    ):
        start = time.monotonic()
        with pytest.raises(DataError) as caught:
            load_splits(spec, options)
        assert time.monotonic() - start < 2
        message = str(caught.value)
        assert message.startswith("toy: split 'forget' could not be loaded from the hub")
        assert "nobody/nothing@v7" in message
        remedy = "pass --data-dir FOLDER with nobody/nothing/texts/forget.jsonl"
        assert message.endswith(f"and {tried}; {remedy}")
        assert message.isprintable()
