"""One evaluation over the processes of an ``accelerate launch -m unlearnbench ...``.

The main process runs the evaluation as if it were alone: it alone reads tasks, owns run folders
and prints. The others load the same checkpoint and answer a share of its requests. An answer
travels as soon as it is there, so that the main process journals it; a process that dies closes
its connection, which is an error at once.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any, TypeVar

from unlearnbench.errors import CheckpointError, OptionError, UnlearnbenchError, one_line
from unlearnbench.models.base import Delegate
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.util.process import process_count, set_threads

if TYPE_CHECKING:
    from unlearnbench.conditions.base import ConditionSpec
    from unlearnbench.conditions.options import KernelOptions
    from unlearnbench.models.base import Model

log = logging.getLogger("unlearnbench")

R = TypeVar("R", Generate, Score)

_PATIENCE = 600  # seconds until all processes must have started


@dataclass(frozen=True)
class Loading:
    """What a worker needs to load what the main process loads."""

    model: str
    options: KernelOptions
    """The device is the main process's."""
    spec: ConditionSpec
    batch_size: int | None

    def load(self) -> Model:
        """In a worker: on its own GPU, where there are several."""
        from unlearnbench.conditions.load import prepare_all

        options = self.options
        if (options.device or "").startswith("cuda"):
            options = options.updated({"device": f"cuda:{os.environ.get('LOCAL_RANK', '0')}"})
        (prepared,) = prepare_all(self.model, [self.spec], options)
        return prepared.load(self.batch_size)


class Team:
    """The main process's side of its workers. It sends ``(number, kind, payload)``; a worker
    answers with the same number and ``answer``, at the end with ``end`` or ``error``.
    """

    def __init__(self, workers: Sequence[Connection]) -> None:
        self._workers = workers
        self._number = 0
        self._reports: queue.SimpleQueue[tuple[int, str, Any] | None] = queue.SimpleQueue()
        for connection in workers:
            threading.Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: Connection) -> None:
        try:
            while True:
                self._reports.put(connection.recv())
        except Exception:  # it ended, or what it sent cannot be read; to wait for more is to hang
            self._reports.put(None)
            connection.close()  # here: closed by another thread, a waiting recv would fail oddly

    @property
    def size(self) -> int:
        """Processes, the main one too."""
        return 1 + len(self._workers)

    def ask(self, kind: str, payloads: Sequence[Any], own: Iterable[Any]) -> Iterator[Any]:
        """Send every worker its payload; yields the main process's ``own`` answers and, as they
        come, the workers'.

        Raises:
            UnlearnbenchError: a worker's error.
            OptionError: a worker is gone.
        """
        self._number += 1
        try:
            for connection, payload in zip(self._workers, payloads, strict=True):
                connection.send((self._number, kind, payload))
        except OSError:
            raise _gone() from None
        waiting = len(self._workers)
        for answer in own:
            yield answer
            while not self._reports.empty():
                kind, answers = self._next()
                waiting -= kind == "end"
                yield from answers
        while waiting:
            kind, answers = self._next()
            waiting -= kind == "end"
            yield from answers

    def _next(self) -> tuple[str, list[Any]]:
        report = self._reports.get()
        if report is None:
            raise _gone()
        number, kind, content = report
        if number != self._number:  # of a task that failed meanwhile
            return "late", []
        if kind == "error":
            raise content
        return kind, [content] if kind == "answer" else []

    def load(self, asked: Loading, load: Callable[[], Model]) -> SharedModel:
        """Load in all processes at once; ``load`` is the main process's own.

        Raises:
            CheckpointError: they did not load the same.
        """
        if asked.spec.calibrated or asked.spec.learns:
            raise OptionError(
                f"{asked.spec.name} would be made anew in each process, and not the same; use one "
                "process"
            )
        models: list[Model] = []

        def own() -> Iterator[object]:
            models.append(load())
            yield _identity(models[0])

        for identity in self.ask("load", [asked] * len(self._workers), own()):
            if identity != _identity(models[0]):
                raise CheckpointError(
                    f"the processes of this launch loaded different weights: {asked.model} is not "
                    "the same on every machine"
                )
        return SharedModel(models[0], self)

    def close(self) -> None:
        """Let the workers end."""
        for connection in self._workers:
            with suppress(OSError):  # it has ended by itself
                connection.send((0, "end", None))


def _identity(model: Model) -> object:
    return model.checkpoint, model.condition


def _gone() -> OptionError:
    return OptionError(
        "a worker process of this launch ended; its own message is above. The same command goes on"
    )


class SharedModel(Delegate):
    """A model whose requests are spread over a team; implements ``Model``."""

    def __init__(self, own: Model, team: Team) -> None:
        super().__init__(own)
        self._team = team

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        """See ``Model``."""
        mine, *theirs = _shares(requests, [len(r.prompt) for r in requests], self._team.size)
        payloads = [(share, frozenset(skip)) for share in theirs]
        return self._team.ask("generate", payloads, self.own.generate(mine, skip))

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        """See ``Model``."""
        mine, *theirs = _shares(
            requests, [len(r.prompt + r.text) for r in requests], self._team.size
        )
        payloads = [(share, frozenset(skip)) for share in theirs]
        return self._team.ask("score", payloads, self.own.score(mine, skip))


def _shares(requests: Sequence[R], lengths: Sequence[int], size: int) -> list[tuple[R, ...]]:
    """As much work for each, by the texts' lengths; the same shares whatever was done before."""
    order = sorted(range(len(requests)), key=lambda at: -lengths[at])
    return [tuple(requests[at] for at in order[rank::size]) for rank in range(size)]


@contextmanager
def launched() -> Iterator[Team | None]:
    """In the main process of several: its team. None where there is one process.

    Raises:
        OptionError: not all processes of the launch started.
    """
    if process_count() == 1:
        yield None
        return
    key = secrets.token_bytes(32)
    with Listener((os.environ.get("MASTER_ADDR", "127.0.0.1"), 0), authkey=key) as listener:
        _broadcast((listener.address, key))
        team = Team([listener.accept() for _ in range(process_count() - 1)])
    try:
        yield team
    finally:
        team.close()


def _broadcast(fact: Any) -> Any:
    """The main process's ``fact``, in every process."""
    from datetime import timedelta

    import torch.distributed as dist

    facts = [fact]
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=_PATIENCE))
        dist.broadcast_object_list(facts, src=0)
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        raise OptionError(
            f"the {process_count()} processes of this launch did not find each other: "
            f"{one_line(error, 150)}"
        ) from None
    return facts[0]


def serve(threads: int | None = None) -> None:
    """Be a worker until the main process ends, with so many ``threads``; None: torch's choice.

    Raises:
        OptionError: the main process was not found.
    """
    log.setLevel(logging.ERROR)  # one process speaks
    address, key = _broadcast(None)
    set_threads(threads)
    with Client(tuple(address), authkey=key) as main, suppress(EOFError, OSError):
        obey(main)  # where the main process is gone, it says why itself


def obey(main: Connection, model: Any = None) -> None:
    """Answer the main process's orders with ``model`` until it sends the last one.

    Raises:
        EOFError, OSError: the main process is gone.
    """

    def answers(kind: str, payload: Any) -> Iterator[Any]:
        nonlocal model
        if kind == "load":
            model = None  # before the next takes its memory
            model = payload.load()
            yield _identity(model)
        else:
            requests, skip = payload
            yield from getattr(model, kind)(requests, skip)

    def reports(kind: str, payload: Any) -> Iterator[tuple[str, Any]]:
        # Nothing is sent in here, so that an OSError is a file's.
        try:
            for answer in answers(kind, payload):
                yield "answer", answer
        except UnlearnbenchError as error:
            yield "error", error
        except Exception as error:  # a bug of ours, or a library's: the main process says it
            said = f"in a worker: {type(error).__name__}: {one_line(error)}"
            yield "error", UnlearnbenchError(said)
        else:
            yield "end", None

    while True:
        number, kind, payload = main.recv()
        if kind == "end":
            return
        for report in reports(kind, payload):
            main.send((number, *report))
