"""A process that dies, or a disk that fills up, at every single operation that writes."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy
from tests.durability.faults import Faults, Gone
from tests.evaluation.test_evaluate import Spy, script
from unlearnbench import evaluate
from unlearnbench.errors import OutputError
from unlearnbench.runs.folder import RunFolder, read_run
from unlearnbench.tasks.registry import load_registry

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="finds files by /proc/self/fd"
)


@pytest.fixture(autouse=True)
def _quick(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of runs: read the task files once, draw few resamples, do not wait for the disk."""
    registry = load_registry([toy.tasks])
    monkeypatch.setattr("unlearnbench.evaluation.evaluate.load_registry", lambda folders: registry)
    monkeypatch.setattr("unlearnbench.metrics.intervals.DRAWS", 50)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


class Counting(Spy):
    """Notes every answer that it worked out."""

    def note(self, requests: Any) -> None:
        self.asked = getattr(self, "asked", [])

    def generate(self, requests: Any, skip: Any = ()) -> Any:
        for answer in super().generate(requests, skip):
            self.asked.append(answer.id)
            yield answer

    def score(self, requests: Any, skip: Any = ()) -> Any:
        for answer in super().score(requests, skip):
            self.asked.append(answer.id)
            yield answer


def go(toy: Toy, model: Spy, output: Path, **options: Any) -> None:
    evaluate(model, "toy", **(toy.options | {"output": output, "ppl_lower": True} | options))


def records(output: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.parent.name == "samples" and ".old" not in path.parts
    }


def names(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*")}


def require_readable(output: Path) -> None:
    """What run.json names is there, whole."""
    for file in output.rglob("run.json"):
        for task, result in read_run(file.parent).tasks.items():
            assert RunFolder(file.parent).read_records(task, result.records_sha256)


def operations(toy: Toy, tmp_path: Path, gone: bool, **options: Any) -> int:
    """How many operations an undisturbed run makes."""
    output = toy.out / "counted"
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(output, None, half=False, gone=gone)
        faults.install(patch)
        go(toy, script(toy, kind=Counting), output, **options)
    assert len(faults.seen) > 30
    return len(faults.seen)


@pytest.mark.parametrize(
    "half",
    [pytest.param(False, marks=pytest.mark.slow, id="before"), pytest.param(True, id="half-way")],
)
@pytest.mark.parametrize("gone", [True, False], ids=["death", "full disk"])
def test_at_every_write_nothing_complete_is_lost(
    toy: Toy, tmp_path: Path, gone: bool, half: bool
) -> None:
    total = operations(toy, tmp_path, gone)
    want, left = records(toy.out / "counted"), names(toy.out / "counted")
    points = 0
    for at in range(1, total + 1):
        output = toy.out / f"at-{at}"
        output.mkdir(parents=True)
        first, second = script(toy, kind=Counting), script(toy, kind=Counting)
        faults = Faults(output, at, half=half, gone=gone)
        with pytest.MonkeyPatch.context() as patch:
            faults.install(patch)
            # What only keeps names through a power failure may fail in silence.
            with suppress(Gone if gone else OutputError):
                go(toy, first, output)
                points -= 1
        points += 1
        require_readable(output)
        kept = kept_answers(output)
        go(toy, second, output)
        where = f"operation {at}: {faults.seen[-1]}"
        assert records(output) == want, where
        assert names(output) == left, where
        assert not kept & set(second.asked), f"{where}: answered again"
        assert len(kept) + len(second.asked) == 3 + 3 + 12, where
        assert len(set(first.asked) - kept) <= 1, f"{where}: more than one answer was lost"
    assert points > total // 2


def kept_answers(output: Path) -> set[str]:
    """Request ids of the answers that are on disk, in journals and in results."""
    found: set[str] = set()
    for path in output.rglob("partial/*.jsonl"):
        content = path.read_text()
        for line in content[: content.rfind("\n") + 1].splitlines()[1:]:
            found.add(line.split('"')[3])
    for file in output.rglob("run.json"):
        for task, result in read_run(file.parent).tasks.items():
            kept = RunFolder(file.parent).read_records(task, result.records_sha256)
            found |= {f"{task}:{record.id}" for record in kept}
            if task == "toy_privleak":
                found |= {f"{task}:{record.id}:lower" for record in kept}
    return found


def test_at_every_write_of_a_fresh_start_the_old_run_is_kept(toy: Toy, tmp_path: Path) -> None:
    go(toy, script(toy, kind=Counting), toy.out / "counted")
    operations(toy, tmp_path, True, fresh=True)
    want = records(toy.out / "counted")
    moved = False
    for at in range(1, 15):  # from the first operation to some after the move
        output = toy.out / f"at-{at}"
        go(toy, script(toy, kind=Counting), output)
        with pytest.MonkeyPatch.context() as patch:
            Faults(output, at, half=False, gone=True).install(patch)
            with pytest.raises(Gone):
                go(toy, script(toy, kind=Counting), output, fresh=True)
        (folder,) = [path for path in output.iterdir() if path.is_dir()]
        aside = folder / ".old" / "none-1"
        old = aside if aside.exists() else folder / "none"
        moved |= aside.exists()
        assert set(read_run(old).tasks) == {"toy_verbmem", "toy_knowmem_f", "toy_privleak"}
        assert {p.name: p.read_bytes() for p in (old / "samples").iterdir()} == want
        go(toy, script(toy, kind=Counting), output)  # without fresh: goes on, or is complete
        assert records(output) == want
    assert moved
