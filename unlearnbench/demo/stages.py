"""Stages of work that are done once: what one made is known again by its content's hash."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from unlearnbench.errors import OptionError


def stage_key(facts: Mapping[str, object], *before: str) -> str:
    """The hash of all that decides what a stage makes: its options, this package's files, the
    packages that compute, and the keys of the stages it starts from.
    """
    from unlearnbench.runs.fingerprint import Fingerprint, describe_environment

    decisive = {
        "stage": facts,
        "before": before,
        "source": _own_files(),
        "package": describe_environment("cpu", "", None).packages,
    }
    return Fingerprint.of(decisive).sha256


@cache
def _own_files() -> str:
    from unlearnbench.tasks.registry import builtin_task_dir

    return files_sha256(Path(__file__).resolve().parent.parent, builtin_task_dir())


def files_sha256(package: Path, tasks: Path) -> str:
    """Of every file of the package, its data and page among them, and of the demo's task files."""
    shipped = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    own, data = _digest(package, shipped), _digest(tasks, tasks.glob("demo_*.yaml"))
    return hashlib.sha256(f"{own}{data}".encode()).hexdigest()


def _digest(root: Path, files: Iterable[Path]) -> str:
    """The hash over files: their names below ``root``, their sizes and their content."""
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True)
class DemoStage:
    """One piece of work of the demo."""

    home: Path
    """The folder that all stages write below."""
    name: str
    key: str
    """See ``stage_key``."""
    made: tuple[str, ...]
    """What it leaves, files or folders below ``home``; all is removed before it starts anew."""
    needs: tuple[str, ...] = ()
    """The stages that must be done before."""

    @property
    def _record(self) -> Path:
        return self.home / "stages" / f"{self.name}.json"

    @property
    def seconds(self) -> float:
        """How long it took, when it was done."""
        return float(self._read().get("seconds", 0))  # type: ignore[arg-type]

    def is_done(self) -> bool:
        """Whether everything is there, as this stage left it."""
        found = self._read()
        return found.get("key") == self.key and found.get("sha256") == self._content()

    def begin(self) -> None:
        """Remove what another stage of this name left; what this one left half done stays, for
        those stages that can go on with it.

        Raises:
            OptionError: something is in the way that no stage made.
        """
        if self._read() == {"begun": self.key}:
            return
        self.require_own()
        for path in self._paths():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self._write({"begun": self.key})

    def require_own(self) -> None:
        """Refuse to remove files that are not ours.

        Raises:
            OptionError: what the stage makes is there, and no record of it.
        """
        foreign = next((path for path in self._paths() if path.exists()), None)
        if foreign is not None and not self._record.exists():
            raise OptionError(f"{foreign} is in the way and not the demo's; use another --out")

    def finish(self, started: float) -> None:
        """Record what was made. ``started``: of ``time.monotonic``."""
        seconds = round(time.monotonic() - started, 1)
        self._write({"key": self.key, "sha256": self._content(), "seconds": seconds})

    def _paths(self) -> list[Path]:
        return [self.home / name for name in self.made]

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads(self._record.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, content: Mapping[str, object]) -> None:
        self._record.parent.mkdir(parents=True, exist_ok=True)
        beside = self._record.with_suffix(".new")
        beside.write_text(json.dumps(content), encoding="ascii")
        beside.replace(self._record)

    def _content(self) -> str | None:
        """The hash over all files; None where one of ``made`` is missing."""
        paths = self._paths()
        if not all(path.exists() for path in paths):
            return None
        files = [f for p in paths for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()]
        return _digest(self.home, files)
