"""How a sweep stands: a line that is written over on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearnbench.errors import OptionError, one_line
from unlearnbench.sweep.engine import Tally
from unlearnbench.sweep.home import Home, home_of, require_answer
from unlearnbench.sweep.record import PLAN, read_standing

_EVERY = 30.0
"""Seconds between two lines in a log where nothing else is said."""


def state_line(progress: Tally) -> str:
    """As ``12 of 40 done, 2 running, 1 failed; 3 min left; 41 samples/s``."""
    failed = f", {len(progress.undone)} not done" if progress.undone else ""
    parts = [f"{progress.done} of {progress.total} done, {progress.running} running{failed}"]
    if progress.left is not None and progress.running:
        parts.append(f"{duration(progress.left)} left")
    if progress.samples:
        parts.append(f"{progress.samples / max(progress.elapsed, 1e-9):.1f} samples/s")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """As ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Display:
    """Shows a sweep's progress on standard error."""

    def __init__(self) -> None:
        self._terminal, self._said, self._drawn = sys.stderr.isatty(), time.monotonic(), 0.0

    def __call__(self, progress: Tally, line: str) -> None:
        """The engine's ``show``."""
        now = time.monotonic()
        if self._terminal:
            if line or now - self._drawn > 0.2:
                above = f"\r\033[K{one_line(line)}\n" if line else ""
                sys.stderr.write(f"{above}\r\033[K{state_line(progress)}")
                sys.stderr.flush()
                self._drawn = now
        elif line:
            self._say(f"[{state_line(progress)}] {one_line(line)}")
        elif now - self._said > _EVERY:
            self._say(state_line(progress))

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self._said = time.monotonic()

    def close(self) -> None:
        """Leave the line as it is."""
        if self._terminal:
            sys.stderr.write("\n")


def status(output: str | Path) -> list[str]:
    """How the sweep in a folder or a store stands, from its record alone.

    Raises:
        OptionError: no sweep was begun there. ResultError: its record is damaged. StoreError.
    """
    home = home_of(output)
    require_answer(home)
    if home.read(PLAN) is None:
        raise OptionError(f"{home.where} holds no sweep; give the file's output")
    standing = read_standing(home)
    counts, runs = standing.count(), home.is_led()
    running = counts["running"] if runs else 0
    waiting = counts["waiting"] + counts["running"] - running
    head = f"{counts['done']} of {standing.total} jobs done, {running} running, {waiting} waiting"
    for state in ("failed", "skipped"):
        head += f", {counts[state]} {state}" if counts[state] else ""
    if not runs:
        head += "; not running now" if waiting + counts["failed"] + counts["skipped"] else ""
    spent = max((time.time() if runs else standing.last) - standing.started, 1e-9)
    rate = f", {standing.samples / spent:.1f} samples/s" if standing.samples else ""
    lines = [f"{head}; {duration(spent)} since its last start{rate}"]
    for id, event in standing.states.items():
        if event["is"] == "running" and runs:
            lines.append(f"running: {one_line(id, 80)}{_who(home, id, event)}")
    for id, event in standing.states.items():
        if event["is"] in ("again", "failed", "skipped"):
            word = "tried again" if event["is"] == "again" else event["is"]
            lines.append(f"{word}: {one_line(id, 80)}: {one_line(event.get('error', ''), 300)}")
    return lines


def _who(home: Home, id: str, event: Mapping[str, Any]) -> str:
    since, found = f" for {duration(max(0.0, time.time() - event['t']))}", home.worker(id)
    if not found:
        return since
    return f"{since} on {one_line(found.get('host'), 60)}, process {one_line(found.get('pid'), 12)}"
