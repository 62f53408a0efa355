"""The answers of a task that is under way: asked of the model, kept on disk, and made into records.

Answers are kept, not scores: after any interruption the same command goes on with the first answer
that is missing, and records are made again by the same code, so that nobody's edit becomes a score
that its output does not earn. The format is in docs/durability.md.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import JournalError, ModelOutputError, ResultError, one_line
from unlearnbench.models.base import Model
from unlearnbench.requests import Answer, Generate, Generated, Request, Score, Scored
from unlearnbench.results import SampleRecord, Settings
from unlearnbench.runs.fingerprint import Fingerprint, differences
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import Sample
from unlearnbench.util.files import (
    Appender,
    content_sha256,
    read_bytes,
    read_json,
    write_whole,
    writing,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from unlearnbench.evaluation.drafts import Drafts

JOURNAL_VERSION = 2
_REDO = "remove it to do this task anew"


def task_fingerprint(task: TaskSamples) -> Fingerprint:
    """Of a task that is to be measured."""
    return Fingerprint.of_task(task.spec.version, task.spec.definition_sha256, task.data)


def request_ids(
    task: TaskSamples, settings: Settings
) -> tuple[tuple[str, ...], type[Generated] | type[Scored]]:
    """The ids of everything that a task asks, and what answers them."""
    rounds = (each for sample in task.samples for each in task.requests(sample, settings))
    asked = [request for each in rounds for request in each]
    kind = Generated if isinstance(asked[0], Generate) else Scored
    return tuple(request.id for request in asked), kind


def make_records(
    task: TaskSamples,
    model: Model,
    settings: Settings,
    answers: Answers,
    drafts: Drafts | None = None,
) -> list[SampleRecord]:
    """Ask the model for the answers that ``answers`` lacks, and return the records in row order.
    Each new answer is kept; those that are there already are scored again. ``drafts`` gives what
    is known of answers, and takes them.

    Raises:
        ModelOutputError: the model cannot answer, or did not answer each request once.
        MetricError: an answer cannot be scored.
        OutputError: an answer cannot be kept.
    """
    samples = task.spec.fit(task.samples, model.truncate)
    asked = [task.requests(sample, settings) for sample in samples]
    scoring = _Scoring(task, samples, asked)
    for rounds in zip(*asked, strict=True):
        requests = [request for each in rounds for request in each]
        texts = [request for request in requests if isinstance(request, Score)]
        prompts = [request for request in requests if isinstance(request, Generate)]
        if drafts is not None:
            prompts = drafts.give(prompts)
        _ask(prompts, partial(model.generate, prompts), answers, scoring)
        if drafts is not None:
            drafts.take(prompts, answers.found)
        _ask(texts, partial(model.score, texts), answers, scoring)
    return task.spec.of_one_run([scoring.records[place] for place in range(len(samples))])


class _Scoring:
    """Makes a sample's record as soon as a round of its requests is answered."""

    def __init__(
        self,
        task: TaskSamples,
        samples: Sequence[Sample],
        asked: Sequence[Sequence[Sequence[Request]]],
    ) -> None:
        self.records: dict[int, SampleRecord] = {}
        self._task, self._samples, self._asked = task, samples, asked
        self._got: dict[str, Answer] = {}
        self._places = {
            r.id: at for at, rounds in enumerate(asked) for each in rounds for r in each
        }

    def take(self, answer: Answer) -> None:
        """Score an answer. Raises: MetricError where it has no score."""
        self._got[answer.id] = answer
        place = self._places[answer.id]
        known: list[Answer] = []
        for each in self._asked[place]:
            if not all(request.id in self._got for request in each):
                break
            known += [self._got[request.id] for request in each]
        if known:
            self.records[place] = self._task.record(self._samples[place], known)


def _ask(
    requests: Sequence[Request],
    ask: Callable[[Collection[str]], Iterable[Answer]],
    answers: Answers,
    scoring: _Scoring,
) -> None:
    """Have every request answered once, and every answer kept and scored.

    A generated text has a score, whatever it says: it is kept as it comes and scored in a thread,
    while the model goes on; an error there ends the work soon after. Figures of a text may be such
    as give no score, so they are scored first.
    """
    left = {request.id for request in requests}
    known = [answers.found[name] for name in answers.found if name in left]
    for answer in known:
        scoring.take(answer)
    left -= {answer.id for answer in known}
    if not left:
        return
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "scoring") as thread:
        try:
            for answer in ask(frozenset(answer.id for answer in known)):
                if answer.id not in left:
                    raise ModelOutputError(f"the model answered {answer.id} unasked or twice")
                left.remove(answer.id)
                if isinstance(answer, Generated):
                    answers.keep(answer)
                    waiting.append(thread.submit(scoring.take, answer))
                else:
                    scoring.take(answer)
                    answers.keep(answer)
                while waiting and waiting[0].done():
                    waiting.popleft().result()
        except BaseException:  # a signal too: nothing is left to be waited for
            thread.shutdown(wait=False, cancel_futures=True)
            raise
        for future in waiting:
            future.result()
    if left:
        first = next(request.id for request in requests if request.id in left)
        raise ModelOutputError(f"the model gave no answer for {first}")


class Answers:
    """The answers of one task by request id: in memory alone, or (``Journal``) on disk too."""

    def __init__(self) -> None:
        self.found: dict[str, Answer] = {}
        self.tick: Callable[[int], object] = lambda count: None
        """Called with 1 after each new answer."""

    def keep(self, answer: Answer) -> None:
        """Add an answer."""
        self.found[answer.id] = answer
        self.tick(1)


class Journal(Answers):
    """A task's answers in a file that grows by a line each; it is made with the first answer."""

    def __init__(
        self, path: Path, fingerprint: Fingerprint, asked: Collection[str], kind: type[Answer]
    ) -> None:
        """``fingerprint``: of all that may move an answer; the first line holds it. ``asked``: the
        ids that may be answered, each by a ``kind``.
        """
        super().__init__()
        self.path, self._search = path, path.with_suffix(".search.json")
        self._fingerprint, self._asked, self._kind = fingerprint, frozenset(asked), kind
        self._file: Appender | None = None
        self._end = 0
        self._sum = ""

    def read(self) -> None:
        """Take over what an interrupted run left; half a last line is not counted.

        Raises:
            ResultError: the journal is of another configuration (names what differs), of another
                version, or damaged.
        """
        if not self.path.exists():
            return
        try:
            content = read_bytes(self.path, ResultError)
        except ResultError as error:
            raise ResultError(f"{error}; {_REDO}") from None
        self._end = content.rfind(b"\n") + 1
        number = 0
        try:
            for number, line in enumerate(content[: self._end].split(b"\n")[:-1], start=1):
                self._take(number, line)
        except (ValueError, RecursionError) as error:
            raise ResultError(
                f"{self.path}:{number}: damaged or changed: {one_line(error, 120)}; {_REDO}"
            ) from None

    def _take(self, number: int, line: bytes) -> None:
        content = json.loads(line)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        stated = content.pop("sum", None)
        self._sum = _checksum(self._sum, content)
        if number == 1:
            self._require_own(content)
        if stated != self._sum:
            raise ValueError("its checksum does not fit")
        if number == 1:
            return
        answer = _decode(content)
        if answer.id not in self._asked or not isinstance(answer, self._kind):
            raise ValueError(f"{answer.id!r} is no answer that this task asks for")
        if answer.id in self.found:
            raise ValueError(f"{answer.id!r} is answered twice")
        self.found[answer.id] = answer

    def _require_own(self, header: Mapping[str, object]) -> None:
        stated = header.get("journal")
        if type(stated) is int and stated != JOURNAL_VERSION:
            raise JournalError(
                f"{self.path} is half a task of another version of unlearnbench (journal {stated}, "
                f"here {JOURNAL_VERSION}), and cannot be gone on with; {_REDO}, or use --fresh"
            )
        facts = header.get("facts")
        if stated != JOURNAL_VERSION or not isinstance(facts, dict):
            raise ValueError(f"no journal of version {JOURNAL_VERSION}")
        there = Fingerprint(facts)
        if there != self._fingerprint:
            differing = "; ".join(differences(there, self._fingerprint))
            raise JournalError(
                f"{self.path} holds half a task of another configuration: "
                f"{one_line(differing, 400)}; run it as it was begun, or {_REDO}, or use --fresh "
                "or another --output"
            )

    def keep(self, answer: Answer) -> None:
        """Add an answer, which is with the operating system when this returns.

        Raises:
            OutputError: the file cannot be written; it holds all answers before this one.
            ModelOutputError: a figure of the answer is not finite.
        """
        content = _encode(answer)
        lines = b""
        if self._file is None:
            if self._end == 0:
                facts = dict(self._fingerprint.facts)
                lines = self._line({"journal": JOURNAL_VERSION, "facts": facts})
            self._file = Appender(self.path, self._end)
        self._file.add(lines + self._line(content))
        super().keep(answer)

    def _line(self, content: dict[str, object]) -> bytes:
        self._sum = _checksum(self._sum, content)
        return _dump({**content, "sum": self._sum}) + b"\n"

    def state(self) -> Mapping[str, Any] | None:
        """What an interrupted search of the same configuration kept; None for nothing.

        Raises:
            ResultError: it is damaged.
        """
        if not self._search.exists():
            return None
        content: Any = read_json(self._search, ResultError)
        state = content.get("state") if isinstance(content, dict) else None
        if not isinstance(state, dict) or content.get("sum") != content_sha256(state):
            raise ResultError(f"{self._search}: damaged or changed; {_REDO}")
        return state if content.get("facts") == self._fingerprint.sha256 else None

    def keep_state(self, state: Mapping[str, Any]) -> None:
        """Keep what a search has found so far. Raises: OutputError where it cannot be written."""
        facts = {"facts": self._fingerprint.sha256, "sum": content_sha256(state), "state": state}
        with writing(self._search):
            self._search.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._search, _dump(facts))

    def close(self) -> None:
        """Have the answers on the disk."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def remove(self) -> None:
        """Remove the file: the task's records are whole and in ``run.json``."""
        with contextlib.suppress(OSError):  # then the next run removes it
            self.path.unlink(missing_ok=True)
            self._search.unlink(missing_ok=True)
            self.path.parent.rmdir()  # fails where another task is under way


def _dump(content: Mapping[str, object]) -> bytes:
    # ASCII with escapes: no odd line separator, and lone surrogates survive.
    return json.dumps(content, allow_nan=False).encode("ascii")


def _checksum(before: str, content: Mapping[str, object]) -> str:
    """Of a line and all before it: a line that is changed, lost or moved shows."""
    return hashlib.sha256(before.encode() + _dump(content)).hexdigest()[:16]


def _encode(answer: Answer) -> dict[str, object]:
    """An answer's line. Figures: float64, little-endian, base64."""
    if isinstance(answer, Generated):
        line: dict[str, object] = {"id": answer.id, "text": answer.text}
        line["n_tokens"] = answer.n_tokens
        counts = {"passes": answer.passes, "drafted": answer.drafted, "accepted": answer.accepted}
        return line | (counts if answer.passes else {})
    import numpy as np

    arrays = {"logprobs": answer.logprobs, "mean": answer.mean, "std": answer.std}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ModelOutputError(f"{answer.id}: a log-probability or its spread is not finite")
    packed = {n: base64.b64encode(a.astype("<f8").tobytes()).decode() for n, a in arrays.items()}
    if answer.matches is not None:
        packed["matches"] = "".join("1" if match else "0" for match in answer.matches)
    norm = {} if answer.gradient is None else {"gradient": answer.gradient}
    return {"id": answer.id, **packed, **norm}


def _decode(content: dict[str, object]) -> Answer:
    match content:
        case {"id": str(name), "text": str(text), "n_tokens": int(count), **rest}:
            counts: list[Any] = [rest.pop(n, 0) for n in ("passes", "drafted", "accepted")]
            if rest or any(type(n) is not int or n < 0 for n in (count, *counts)):
                raise ValueError("no generated answer")
            return Generated(name, text, count, *counts)
        case {"id": str(name), "logprobs": str(a), "mean": str(b), "std": str(c), **rest}:
            arrays = [_unpack(packed) for packed in (a, b, c)]
            matches = _matches(rest.pop("matches")) if "matches" in rest else None
            norm: Any = rest.pop("gradient", None)
            if norm is not None and (type(norm) is not float or not 0 <= norm < math.inf):
                raise ValueError("the norm of a gradient is no number from 0 up")
            lengths = {len(array) for array in (*arrays, arrays[0] if matches is None else matches)}
            if rest or len(lengths) != 1 or not len(arrays[0]):
                raise ValueError("no scored answer: arrays of different lengths, or empty ones")
            return Scored(name, arrays[0], arrays[1], arrays[2], matches, norm)
    raise ValueError("no answer")


def _matches(packed: object) -> NDArray[np.bool_]:
    import numpy as np

    if not isinstance(packed, str) or set(packed) - {"0", "1"}:
        raise ValueError("matches are written as 0 and 1")
    return np.array([mark == "1" for mark in packed], dtype=np.bool_)


def _unpack(packed: str) -> NDArray[np.float64]:
    import numpy as np

    array = np.frombuffer(base64.b64decode(packed, validate=True), dtype="<f8").astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a figure is not finite")
    return array
