from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import CORPUS, write_jsonl
from tests.training.helpers import QUICK
from unlearnbench.training.job import Job


@pytest.fixture(scope="module")
def job(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A quick job on a tiny target; ``out`` is to be replaced."""
    root = tmp_path_factory.mktemp("texts")
    write_jsonl(root / "forget.jsonl", [{"text": t} for t in CORPUS[:6]])
    write_jsonl(root / "retain.jsonl", [{"text": t} for t in CORPUS[20:30]])
    texts = (str(root / "forget.jsonl"),), (str(root / "retain.jsonl"),)
    return Job(str(tiny), root / "none", *texts, options=QUICK)
