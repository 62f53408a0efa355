"""Processes that take turns on one machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

__all__ = ["TURN", "Turns", "active", "begin", "run_in_turns"]

TURN = 5.0  # seconds: short against what changes a machine's speed, long against a change of turns
_READY = "ready"
Turns = list[tuple[float, float]]


def run_in_turns(
    commands: Mapping[str, Sequence[str]], seconds: Mapping[str, float] | None
) -> dict[str, Turns]:
    """Run all of ``commands``, each for its ``seconds`` and then stopped while the others have
    theirs, so that whatever changes the machine's speed within minutes meets all alike. None: one
    after another, where stopping a process does not stop its work (a GPU). Each calls ``begin``.

    Returns:
        When each ran: pairs of ``time.time()``.
    """
    turns: dict[str, Turns] = {name: [] for name in commands}
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, command in commands.items():
            processes[name] = _start(command)
        waiting = list(commands)
        while waiting:
            for name in list(waiting):
                turn = None if seconds is None else seconds[name]
                turns[name].append(_run(processes[name], turn))
                if processes[name].returncode is not None:
                    waiting.remove(name)
    finally:
        for process in processes.values():
            process.kill()
    return turns


def begin() -> None:
    """Called by a command when it has all it needs in place: waits for its first turn."""
    print(_READY, flush=True)
    sys.stdin.readline()


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == _READY:
            break
    else:
        raise subprocess.CalledProcessError(process.wait(), list(command))
    process.send_signal(signal.SIGSTOP)
    process.stdin.write("\n")
    return process


def _run(process: subprocess.Popen[str], seconds: float | None) -> tuple[float, float]:
    start = time.time()
    process.send_signal(signal.SIGCONT)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGSTOP)
    end = time.time()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return start, end


def active(turns: Turns, start: float, end: float) -> float:
    """Seconds of ``turns`` between ``start`` and ``end``."""
    return sum(max(0.0, min(end, last) - max(start, first)) for first, last in turns)
