from __future__ import annotations

import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import Toy
from tests.hostile.corpus import CANARY, CASES, Case, adapter, config
from tests.hostile.watch import snapshot, watched
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.cli import main
from unlearnbench.errors import UnlearnbenchError
from unlearnbench.requests import Generate
from unlearnbench.runs.fingerprint import git_hash
from unlearnbench.util.process import plain_errors

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearnbench.checkpoints.limits._SECONDS", 0.5)


@pytest.fixture(autouse=True, scope="module")
def _controls(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the cases are made from is in order; and the libraries that an adapter makes PEFT import
    have asked the machine for its devices.
    """
    git_hash()  # asks git, once a process
    use(str(tiny), LoadOptions())
    build = Case("adapter", adapter(), "")
    path, _ = lay_out(build, tiny, tmp_path_factory.mktemp("control"))
    use(path, LoadOptions(base=str(tiny)))


def lay_out(found: Case, tiny: Path, root: Path) -> tuple[str, LoadOptions]:
    """The case's folder below ``root``, and the options to open it with."""
    folder = Path(shutil.copytree(tiny, root / "model"))
    path = found.build(folder) or folder
    options = dict(found.options)
    if "base" in options:
        options["base"] = str(tiny)
    return str(path), LoadOptions(**options)


def use(path: str, options: LoadOptions) -> None:
    """As an evaluation does: open, load, answer."""
    from unlearnbench.conditions import find_condition
    from unlearnbench.conditions.load import prepare_all
    from unlearnbench.conditions.options import KernelOptions

    asked = KernelOptions.of({**dict(options), "dtype": "fp32", "device": "cpu"})
    (prepared,) = prepare_all(path, [find_condition("none")], asked)
    model = prepared.load(2)
    with plain_errors():
        list(model.generate([Generate("a", "The harbour of Tellmouth " * 4 + "!", 2)]))


def require_one_line(message: str, said: str) -> None:
    assert message.isprintable(), message
    assert 20 < len(message) < 1000, message
    assert re.search(said, message), (said, message)


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_checkpoint_ends_in_one_line_and_nothing_ran(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    found = CASES[name]
    path, options = lay_out(found, tiny, tmp_path)
    before = snapshot(tmp_path)
    with watched(tmp_path) as seen, pytest.raises(UnlearnbenchError) as caught:
        use(path, options)
    require_one_line(str(caught.value), found.said)
    assert seen == []
    assert snapshot(tmp_path) == before
    assert not (tmp_path / CANARY).exists()


@pytest.mark.slow
def test_memory_stays_bounded(tiny: Path, tmp_path: Path) -> None:
    """Every case that would take memory for as long as there is any, in a process of its own where
    3 GiB more than at the start are the end.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.hungry", str(tiny), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert set(found["said"]) == {name for name, one in CASES.items() if one.hungry}
    for name, message in found["said"].items():
        require_one_line(message, CASES[name].said)
    assert found["grown_mib"] < 700


HUGE_POSITIONS = config(max_position_embeddings=10**12)


def test_a_huge_context_that_nothing_is_made_of_is_allowed(tiny: Path, tmp_path: Path) -> None:
    use(*lay_out(Case("config", HUGE_POSITIONS, ""), tiny, tmp_path))


SPAWNED = (
    "a pickle with a payload",
    "remote code",
    "a missing shard with line breaks and escapes",
)
CALLED = ("tensors that overlap", "10^9 layers", "model.safetensors outside")


@pytest.mark.slow
@pytest.mark.ci
def test_the_command_exits_2_with_one_line(
    tiny: Path, tmp_path: Path, toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes, at once: each takes seconds to import what it needs. More cases in this one
    meanwhile.
    """
    asked = {}
    for number, name in enumerate((*SPAWNED, *CALLED)):
        (tmp_path / f"{number}").mkdir()
        path, _ = lay_out(CASES[name], tiny, tmp_path / f"{number}")
        given = ["--model", path, "--tasks", "toy_verbmem", *toy.arguments[:4]]
        asked[name] = [*given, "--output", str(toy.out / str(number))]
    before = snapshot(tmp_path)
    running = {name: start(asked[name]) for name in SPAWNED}
    for name in CALLED:
        with pytest.raises(SystemExit) as caught:
            main(asked[name])
        require_refused(name, caught.value.code, *capsys.readouterr())
    for name, process in running.items():
        out, err = process.communicate()
        require_refused(name, process.returncode, out, err)
    after = snapshot(tmp_path)
    changed = {place for place in after if after[place] != before.get(place)}
    assert all(place.startswith(str(toy.out)) for place in changed), changed
    assert not list(tmp_path.rglob(CANARY))


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "unlearnbench", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def require_refused(name: str, status: object, out: str, err: str) -> None:
    assert (status, out) == (2, ""), (name, err)
    assert err.startswith("unlearnbench: error: ")
    require_one_line(err.removesuffix("\n"), CASES[name].said)


@pytest.fixture(scope="module")
def _compiled() -> None:
    """A module's first import writes bytecode, which ``watched`` would see as a file written."""
    for room in ("cli", "conditions", "training"):
        package = import_module(f"unlearnbench.{room}")
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            import_module(found.name)


ELSEWHERE = (
    "a pickle with a payload",
    "remote code",
    "a header longer than the file",
    "tensors that overlap",
    "a missing shard",
    "an index that climbs",
    "model.safetensors outside",
    "a pipe as the config",
    "10^9 layers",
    "a million rows",
    "four terabytes of nothing",
    "one infinity",
    "an unknown scheme",
    "2^63 tensors",
)


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("name", ELSEWHERE)
def test_inspect_quants_and_unlearn_refuse_it_too(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path, _ = lay_out(CASES[name], tiny, tmp_path)
    (tmp_path / "forget.jsonl").write_text('{"text": "one two three four"}\n' * 2)
    training = ["--method", "ga", "--forget", str(tmp_path / "forget.jsonl"), "--out", "x"]
    commands = (
        ["inspect", "--model", path, "--target", str(tiny), "--quant", "rtn-int4"],
        ["inspect", "--model", str(tiny), "--target", path, "--quant", "rtn-int4"],
        ["quants", "--model", path, "--quant", "rtn-int4"],
        ["unlearn", "--model", path, *training, "--batch-size", "2"],
    )
    for command in commands:
        capsys.readouterr()
        with watched(tmp_path) as seen, pytest.raises(SystemExit) as caught:
            main(command)
        said = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2, (command, said)
        assert said[-1].startswith("unlearnbench: error: ")
        require_one_line(said[-1], CASES[name].said)
        assert seen == []
    assert not (tmp_path / CANARY).exists()


AS_TOKENIZER = (
    "remote code of a tokenizer",
    "tokenizer.json outside",
    "templates outside",
    "a pipe as the tokenizer",
    "10^9 layers",
    "a tokenizer nested deeply",
    "a pattern that never ends",
    "a tokenizer of a terabyte",
)


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("name", AS_TOKENIZER)
def test_a_hostile_folder_given_as_tokenizer_ends_in_one_line_too(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    path, options = lay_out(CASES[name], tiny, tmp_path)
    given = options.model_copy(update={"tokenizer": path})
    before = snapshot(tmp_path)
    with watched(tmp_path) as seen, pytest.raises(UnlearnbenchError) as caught:
        use(str(tiny), given)
    require_one_line(str(caught.value), CASES[name].said)
    assert seen == []
    assert snapshot(tmp_path) == before
    assert not (tmp_path / CANARY).exists()


def test_the_corpus_is_as_the_docs_say() -> None:
    counts = Counter(found.kind for found in CASES.values())
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    for kind, count in counts.items():
        assert f"| {kind} | {count} |" in text
    assert f"{len(CASES)} checkpoint folders" in text
