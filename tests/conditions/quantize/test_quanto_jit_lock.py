"""quanto's extension is compiled under a lock, which a killed process leaves behind."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unlearnbench import conditions
from unlearnbench.conditions.quantize.quanto import _is_open, require_no_stale_lock
from unlearnbench.errors import PrecisionError

pytest.importorskip("optimum.quanto", reason="pip install 'unlearnbench[quanto]'")


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the lock of a quanto package in a temporary folder would be."""
    folder = tmp_path / "library" / "extensions" / "cpp" / "build"
    folder.mkdir(parents=True)
    found, find = SimpleNamespace(origin=str(tmp_path / "__init__.py")), importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, where=None: found if name == "optimum.quanto" else find(name, where),
    )
    return folder / "lock"


def test_no_lock_is_fine(lock: Path) -> None:
    require_no_stale_lock()
    assert not lock.exists()


def test_a_lock_that_nobody_holds_is_named(lock: Path) -> None:
    lock.touch()
    with pytest.raises(PrecisionError, match=re.escape(f"remove {lock} and run again")):
        require_no_stale_lock()
    assert lock.exists()  # removing it is the user's to decide


def test_a_lock_that_this_process_holds_is_not_stale(lock: Path) -> None:
    with lock.open("w"):
        require_no_stale_lock()
    with pytest.raises(PrecisionError):
        require_no_stale_lock()


def test_a_lock_that_another_process_holds_is_not_stale(lock: Path) -> None:
    code = f"import sys; f = open({str(lock)!r}, 'w'); print('up', flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"up\n"
        require_no_stale_lock()
        child.kill()
    with pytest.raises(PrecisionError):
        require_no_stale_lock()


# Compiles in a folder of the test's own, never in the installed package.
BUILD = """
import sys
from optimum.quanto.library.extensions.cpp import ext
ext.build_directory = sys.argv[1]
ext.lib
"""


@pytest.mark.slow
@pytest.mark.ci
def test_a_build_that_was_killed_does_not_hang_the_next_one(
    lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum.quanto.library.extensions.cpp import ext

    # A compiler that never ends, so that the kill surely falls into the build.
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *--version*|*-dumpversion*|*-v*) exec c++ "$@";; esac\nsleep 60\n'
    )
    compiler.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, "-c", BUILD, str(lock.parent)],
        cwd=tmp_path,
        env={**os.environ, "CXX": str(compiler)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as first:
        try:
            deadline = time.monotonic() + 60
            while not lock.exists():
                assert first.poll() is None, first.communicate()[0]
                assert time.monotonic() < deadline, "no build was begun"
                time.sleep(0.05)
            require_no_stale_lock()  # while it builds, the next one may wait
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    assert lock.exists()

    def wait(baton: object) -> None:
        raise AssertionError("it would wait forever")

    monkeypatch.setattr("torch.utils.file_baton.FileBaton.wait", wait)
    monkeypatch.setattr(ext, "build_directory", str(lock.parent))
    monkeypatch.setattr(ext, "_lib", None)
    spec = conditions.find_condition("quanto-int4")
    deadline = time.monotonic() + 30
    while _is_open(lock) and time.monotonic() < deadline:
        time.sleep(0.05)  # the compiler, which holds the file too, may die a little later
    with pytest.raises(PrecisionError, match=f"was cut off .* remove {re.escape(str(lock))} and"):
        conditions.encode(spec, torch.ones(32, 128))
    lock.unlink()
    require_no_stale_lock()
