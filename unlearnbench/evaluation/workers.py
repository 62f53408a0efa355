"""One evaluation over the processes of an ``accelerate launch -m unlearnbench ...``.

The main process runs the evaluation as if it were alone: it alone reads tasks, owns run folders
and prints. The others load the same checkpoint and answer a share of its requests.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any, TypeVar

from unlearnbench.errors import CheckpointError, OptionError, UnlearnbenchError, one_line
from unlearnbench.models.base import Delegate
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.util.process import process_count, set_threads

if TYPE_CHECKING:
    from unlearnbench.checkpoints.options import LoadOptions
    from unlearnbench.conditions.base import How, PrecisionSpec
    from unlearnbench.models.base import Model

log = logging.getLogger("unlearnbench")

R = TypeVar("R", Generate, Score)

_PATIENCE = 600  # seconds until all processes must have started


@dataclass(frozen=True)
class Loading:
    """What a worker needs to load what the main process loads."""

    model: str
    options: LoadOptions
    spec: PrecisionSpec
    how: How
    batch_size: int | None


@dataclass(frozen=True)
class _Order:
    """What the main process asks of the workers. number: which order an answer belongs to."""

    number: int
    kind: str
    payload: Any = None


@dataclass(frozen=True)
class _Report:
    """What a worker sends back: an answer, the end of an order, or the error that ended it."""

    number: int
    answer: Any = None
    error: UnlearnbenchError | None = None
    is_last: bool = False


@dataclass
class Team:
    """The main process's side of its workers."""

    workers: list[Connection]
    _number: int = 0
    _reports: queue.SimpleQueue[_Report | None] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        for connection in self.workers:
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
        return 1 + len(self.workers)

    def order(self, kind: str, payloads: Sequence[Any]) -> int:
        """Tell every worker its own part; returns the order's number.

        Raises:
            OptionError: one of them is gone.
        """
        self._number += 1
        try:
            for connection, payload in zip(self.workers, payloads, strict=True):
                connection.send(_Order(self._number, kind, payload))
        except OSError:
            raise _gone() from None
        return self._number

    def answers(self, number: int, own: Iterator[Any]) -> Iterator[Any]:
        """The main process's own answers and, as they come, those of the workers.

        Raises:
            UnlearnbenchError: a worker's error, or a worker is gone.
        """
        waiting = len(self.workers)
        for answer in own:
            yield answer
            while not self._reports.empty():
                report = self._next(number)
                waiting -= report.is_last
                if report.answer is not None:
                    yield report.answer
        while waiting:
            report = self._next(number)
            waiting -= report.is_last
            if report.answer is not None:
                yield report.answer

    def _next(self, number: int) -> _Report:
        report = self._reports.get()
        if report is None:
            raise _gone()
        if report.number != number:  # of a task that failed meanwhile
            return _Report(number)
        if report.error is not None:
            raise report.error
        return report

    def load(self, asked: Loading, load: Callable[[], Model]) -> SharedModel:
        """Load in all processes at once; ``load`` is the main process's own.

        Raises:
            CheckpointError: they did not load the same.
        """
        if asked.spec.calibrated:
            raise OptionError(
                f"{asked.spec.name} would be made anew in each process, and not the same; use one "
                "process"
            )
        number = self.order("load", [asked] * len(self.workers))
        model = load()
        for checkpoint, condition in self.answers(number, iter(())):
            if (checkpoint, condition) != (model.checkpoint, model.condition):
                raise CheckpointError(
                    f"the processes of this launch loaded different weights: {asked.model} is not "
                    "the same on every machine"
                )
        return SharedModel(model, self)

    def close(self) -> None:
        """Let the workers end."""
        for connection in self.workers:
            with suppress(OSError):  # it has ended by itself
                connection.send(_Order(0, "end"))


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
        number = self._team.order("generate", [(share, frozenset(skip)) for share in theirs])
        yield from self._team.answers(number, self.own.generate(mine, skip))

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        """See ``Model``."""
        mine, *theirs = _shares(requests, [len(r.text) for r in requests], self._team.size)
        number = self._team.order("score", [(share, frozenset(skip)) for share in theirs])
        yield from self._team.answers(number, self.own.score(mine, skip))


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
        _share((listener.address, key))
        workers = [listener.accept() for _ in range(process_count() - 1)]
    team = Team(workers)
    try:
        yield team
    finally:
        team.close()


def _share(fact: Any) -> Any:
    """The main process's ``fact`` in every process."""
    from datetime import timedelta

    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=_PATIENCE))
        facts = [fact]
        dist.broadcast_object_list(facts, src=0)
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        raise OptionError(
            f"the {process_count()} processes of this launch did not find each other: "
            f"{one_line(error, 150)}"
        ) from None
    return facts[0]


def serve(threads: int | None = None) -> None:
    """Answer the main process's orders until it ends. threads: of this process; None: torch's.

    Raises:
        OptionError: the main process was not found.
    """
    log.setLevel(logging.ERROR)  # one process speaks
    address, key = _share(None)
    set_threads(threads)
    with Client(tuple(address), authkey=key) as main:
        worker = _Worker(main)
        try:
            while (order := main.recv()).kind != "end":
                worker.obey(order)
        except (EOFError, OSError):
            return  # the main process says why it ended


class _Worker:
    def __init__(self, main: Connection) -> None:
        self._main = main
        self._model: Any = None

    def obey(self, order: _Order) -> None:
        """Answer ``order``. Raises: OSError where the main process is gone, and only there."""
        for report in self._reports(order):
            self._main.send(report)

    def _reports(self, order: _Order) -> Iterator[_Report]:
        """An error is the last report, whatever it is: sending is not done in here, so an OSError
        is a file's.
        """
        try:
            for answer in self._answers(order):
                yield _Report(order.number, answer)
        except UnlearnbenchError as error:
            yield _Report(order.number, error=error)
        except Exception as error:  # a bug of ours, or a library's: the main process says it
            said = UnlearnbenchError(f"in a worker: {type(error).__name__}: {one_line(error)}")
            yield _Report(order.number, error=said)
        else:
            yield _Report(order.number, is_last=True)

    def _answers(self, order: _Order) -> Iterator[Any]:
        if order.kind == "load":
            self._model = None  # before the next takes its memory
            self._model = _load(order.payload)
            yield self._model.checkpoint, self._model.condition
        else:
            requests, skip = order.payload
            yield from getattr(self._model, order.kind)(requests, skip)


def _load(asked: Loading) -> Model:
    from dataclasses import replace

    from unlearnbench.checkpoints.source import open_source
    from unlearnbench.conditions.load import load_model

    how = asked.how
    if how.device.startswith("cuda"):
        how = replace(how, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    source = open_source(asked.model, asked.options, keep=False)
    return load_model(source, asked.spec, how, asked.batch_size)
