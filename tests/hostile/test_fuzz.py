"""Fuzzers: whatever a stranger's file holds, the loaders read it or raise the one error type.

Seconds in the default suite; ``make fuzz`` tries FUZZ_EXAMPLES files with each, for ten minutes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import TOY_TASKS
from tests.hostile.strategies import json_values, mutated, mutated_bytes, texts
from tests.importing.test_base import SCORES, history
from tests.importing.test_base import texts as scored_texts
from unlearnbench.boards.entry import read_entry
from unlearnbench.checkpoints.adapter import check_adapter_config
from unlearnbench.checkpoints.find import find_checkpoint
from unlearnbench.checkpoints.gguf import read_gguf_head
from unlearnbench.checkpoints.limits import check_config
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import UnlearnbenchError, one_line
from unlearnbench.importing import ImportOptions, import_runs
from unlearnbench.importing.base import Format
from unlearnbench.runs.entries import load_entries
from unlearnbench.tasks.registry import load_registry, read_task
from unlearnbench.tasks.templates import LONGEST, render_field

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
GOOD = Path(__file__).parents[1] / "golden" / "results" / "good"
Load = Callable[[], object]

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)


class Counter:
    """Counts what was tried and what was refused."""

    def __init__(self) -> None:
        self.tried = self.refused = 0

    def take(self, load: Load) -> None:
        """Load; anything but our own error, of one clean line, is a find."""
        self.tried += 1
        message = _refusal(load)
        if message is not None:
            self.refused += 1
            assert message.isprintable()
            assert message


def _refusal(load: Load) -> str | None:
    try:
        load()
    except UnlearnbenchError as error:
        return str(error)
    return None


@pytest.fixture
def counter(request: pytest.FixtureRequest) -> Iterator[Counter]:
    made = Counter()
    yield made
    print(f"{request.node.name}: {made.tried:,} tried, {made.refused:,} refused")


@pytest.fixture
def _tasks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own tasks and the environment are read once, not for every file."""
    from unlearnbench.runs.fingerprint import describe_environment

    registry, environment = load_registry(), describe_environment("unknown", "unknown", None)
    monkeypatch.setattr("unlearnbench.importing.base.load_registry", lambda _: registry)
    monkeypatch.setattr("unlearnbench.importing.base.describe_environment", lambda *_: environment)


def task_texts() -> list[bytes]:
    return [f"task: fuzzed\n{text}".encode() for text in TOY_TASKS.values()]


@fuzzed
@given(content=st.sampled_from(task_texts()).flatmap(mutated_bytes) | st.binary(max_size=200))
def test_task_files(tmp_path: Path, counter: Counter, content: bytes) -> None:
    path = tmp_path / "fuzzed.yaml"
    path.write_bytes(content)
    counter.take(lambda: read_task(path))


PIECES = (
    *("{{", "}}", "{%", "%}", "q", "n", "'a'", "|", "~", "+", "*", "**", "%", "(", ")", "[", "]"),
    *(".", "replace", "join", "upper", "trim", "center", "split", "format", "__class__", "if"),
    *("else", "endif", "for", "in", "range", "set", "=", "==", ",", "9999999999", "0", ":", " "),
    *("default", "length", "is", "defined", "string", "first", "last", "int", "{{q}}", "{#", "#}"),
)


@fuzzed
@given(
    template=st.lists(st.sampled_from(PIECES) | texts, max_size=16).map(" ".join)
    | st.lists(st.sampled_from(PIECES), max_size=16).map("".join),
    row=st.fixed_dictionaries({"q": texts | st.floats() | st.integers(), "n": st.integers()}),
)
def test_templates(counter: Counter, template: str, row: dict[str, object]) -> None:

    def load() -> None:
        assert len(render_field(template, row, "fuzz")) <= LONGEST + len(template)

    counter.take(load)


RUN = json.loads((GOOD / "run.json").read_text())
RECORDS = next((GOOD / "samples").iterdir())


@fuzzed
@given(data=st.data())
def test_run_folders(tmp_path: Path, counter: Counter, data: st.DataObject) -> None:
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(GOOD, folder)
    if data.draw(st.booleans()):
        (folder / "run.json").write_text(json.dumps(data.draw(mutated(RUN))))
    else:
        content = (GOOD / "run.json").read_bytes()
        (folder / "run.json").write_bytes(data.draw(mutated_bytes(content)))
    if data.draw(st.booleans()):
        import hashlib

        content = data.draw(mutated_bytes(RECORDS.read_bytes()))
        (folder / "samples" / RECORDS.name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        run = json.loads(json.dumps(RUN))
        run["tasks"][RECORDS.stem]["records_sha256"] = digest
        (folder / "run.json").write_text(json.dumps(run))

    def load() -> None:
        for entry in load_entries([tmp_path]):
            for run in entry.runs.values():
                for task in run.result.tasks:
                    run.records(task)

    counter.take(load)


def entry() -> dict[str, Any]:
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    part = {"run": RUN, "samples": {RECORDS.stem: records}}
    return {"name": "fuzzed", "board": "b", "role": "unlearned", "texts": True, "runs": [part]}


@fuzzed
@given(content=mutated(entry()) | json_values)
def test_board_entries(tmp_path: Path, counter: Counter, content: object) -> None:
    path = tmp_path / "fuzzed.json"
    path.write_text(json.dumps(content))
    counter.take(lambda: read_entry(path).loaded())


LM_EVAL = [
    {
        "doc_id": n,
        "target": "the right words",
        "filtered_resps": ["the words"],
        "arguments": {"gen_args_0": {"arg_0": "p"}},
    }
    for n in range(2)
]
OPEN = {
    "forget_verbmem_ROUGE": {
        "agg_value": 0.5,
        "value_by_index": {
            "0": {"rougeL_f1": 0.5, "input": "i", "generation": "g", "ground_truth": "t"}
        },
    },
    "mia_min_k": {
        "auc": 0.5,
        "forget": {"value_by_index": {"0": {"score": 1.0}, "1": {"score": 2.0}}},
        "holdout": {"value_by_index": {"0": {"score": 1.0}, "1": {"score": 2.5}}},
    },
}
TEXTS = scored_texts(SCORES)
FORMATS: dict[Format, dict[str, Any]] = {
    "muse": {
        "m/knowmem_f/log.json": history(rougeL=0.5),
        "m/knowmem_f/agg.json": {"mean_rougeL": 0.5},
        "m/privleak/log.json": {"forget": TEXTS, "holdout": TEXTS, "retain": TEXTS},
        "m/privleak/auc.json": {"forget_holdout": {"Min-40%": 0.5}},
    },
    "lm-eval": {"m/samples_news_verbmem_2026-01-01T00-00-00.0.jsonl": LM_EVAL},
    "open-unlearning": {"m/MUSE_EVAL.json": OPEN},
}


@pytest.mark.usefixtures("_tasks_once")
@pytest.mark.parametrize("kind", FORMATS)
@fuzzed
@given(data=st.data())
def test_imports(tmp_path: Path, counter: Counter, kind: Format, data: st.DataObject) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    for folder in (root, out):
        shutil.rmtree(folder, ignore_errors=True)
    chosen = data.draw(st.sampled_from(sorted(FORMATS[kind])))
    for name, content in FORMATS[kind].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        value = data.draw(mutated(content)) if name == chosen else content
        lines = value if path.suffix == ".jsonl" and isinstance(value, list) else [value]
        path.write_bytes("\n".join(map(json.dumps, lines)).encode())
        if name == chosen and data.draw(st.booleans()):
            path.write_bytes(data.draw(mutated_bytes(path.read_bytes())))
    counter.take(lambda: import_runs(ImportOptions(kind, root, "news", out)))
    written = [path for path in out.rglob("*") if path.is_file()]
    assert all(path.resolve().is_relative_to(out.resolve()) for path in written)


@fuzzed
@given(data=st.data())
def test_checkpoint_files(
    tmp_path: Path, tiny: Path, counter: Counter, data: st.DataObject
) -> None:
    """The checks that come before the libraries."""
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny, folder)
    raw = json.loads((tiny / "config.json").read_text())
    changed = data.draw(mutated(raw))
    (folder / "config.json").write_text(json.dumps(changed))
    weights = (tiny / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(weights[:8], "little")
    if data.draw(st.booleans()):
        start = data.draw(mutated_bytes(weights[:length]))
        (folder / "model.safetensors").write_bytes(start + weights[length:])
    counter.take(lambda: find_checkpoint(str(folder), LoadOptions()))
    if isinstance(changed, dict):
        counter.take(lambda: check_config(changed, 21, "fuzz"))
    gguf = (
        b"GGUF\3\0\0\0" + b"\1" + b"\0" * 7 + b"\1" + b"\0" * 7 + b"\1" + b"\0" * 7 + b"a\4\0\0\0"
    )
    (tmp_path / "a.gguf").write_bytes(data.draw(mutated_bytes(gguf + b"\0" * 40)))
    counter.take(lambda: read_gguf_head(tmp_path / "a.gguf"))


ADAPTER = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "rank_pattern": {"q_proj": 4},
    "layer_replication": [[0, 1]],
}


@fuzzed
@given(content=mutated(ADAPTER))
def test_adapter_configs(tmp_path: Path, counter: Counter, content: object) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    if not (tmp_path / "adapter_model.safetensors").exists():
        tensors = {"a": np.zeros((4, 8), np.float32)}
        save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))

    def load() -> None:
        files = find_checkpoint(str(tmp_path), LoadOptions())
        check_adapter_config(files, ["model.layers.0.q_proj"], kept=False)

    counter.take(load)


def test_one_line_says_something_of_everything() -> None:
    assert one_line("\ud800\n\x00") == "\\ud800 \\x00"
