"""The folder that a mended checkpoint goes to, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unlearnbench.errors import OptionError, OutputError
from unlearnbench.util.files import share

# Left on the disk beside what is written.
_SPARE = 64 * 2**20


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out``, which becomes it where nothing fails and is removed else.

    Raises:
        OptionError: ``out`` is in the way.
        OutputError: it cannot be written.
    """
    place = out.absolute()
    made: list[Path] = []
    work = place.parent / f".{place.name}.repairing-{os.getpid()}"
    try:
        if not place.name or place.is_symlink() or place == Path.cwd():
            raise OptionError(f"{out} is no folder that can be made new; use another --out")
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise OptionError(f"{out} is in the way; use another --out")
        made = [folder for folder in place.parents if not folder.exists()]
        work.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(work.parent, place.name)
        work.mkdir()
        yield work
        for path in work.rglob("*"):
            if path.is_file():
                share(path)
        work.replace(place)
        made = []
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written ({error.strerror or error}); free some space or use another "
            "--out"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):  # something else is in it by now
            for folder in made:
                folder.rmdir()


def _remove_left(folder: Path, name: str) -> None:
    """Remove what killed processes have left."""
    import psutil

    start = f".{name}.repairing-"
    for path in folder.iterdir():
        pid = path.name.removeprefix(start)
        if path.name.startswith(start) and pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def require_apart(out: Path, *sources: Path) -> None:
    """Refuse to write into a checkpoint's folder."""
    for source in sources:
        if source.is_dir() and source.resolve() in out.absolute().resolve().parents:
            raise OptionError(f"{out} is inside of {source}; use another --out")


def require_room(out: Path, size: int) -> None:
    """Refuse where ``size`` bytes do not fit."""
    need = size + _SPARE
    free = shutil.disk_usage(out.absolute().parent).free
    if free < need:
        raise OptionError(
            f"{out}: the mended checkpoint needs {need / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free; free some space or use another --out"
        )
