"""What the demo took: its time, and the memory of all its processes."""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType

_EVERY = 0.2


class Meter:
    """A context that measures itself."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """From its beginning to its end."""
        self.peak = 0
        """Bytes; the most that this process and those below it held together, looked at five times
        a second (resident memory; pages that several share count for each)."""
        self._started = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Meter:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._started

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, _held())
            if self._ended.wait(_EVERY):
                return

    def __str__(self) -> str:
        return f"took {self.seconds:.0f} s and at most {self.peak / 1e9:.1f} GB"


def _held() -> int:
    """Resident bytes of this process and all below it."""
    import psutil

    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it has just ended
            total += process.memory_info().rss
    return total
