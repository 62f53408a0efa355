"""The answers of a task that is under way, kept on disk: after any interruption the same command
goes on with the first answer that is missing.

Answers are kept, not scores. Records are made from them again, by the same code, so that nobody's
edit becomes a score that its output does not earn. The format is in docs/durability.md.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from unlearnbench.errors import ModelOutputError, ResultError, one_line
from unlearnbench.requests import Generated, Scored
from unlearnbench.runs.fingerprint import Fingerprint, differences
from unlearnbench.util.files import Appender, read_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Answer: TypeAlias = Generated | Scored
JOURNAL_VERSION = 2
_REDO = "remove it to do this task anew"


def _ignore(count: int) -> object:
    return None


class Answers:
    """The answers of one task by request id: in memory alone, or (``Journal``) on disk too."""

    def __init__(self) -> None:
        self.found: dict[str, Answer] = {}
        self.tick: Callable[[int], object] = _ignore
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
        self.path = path
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
            raise ResultError(
                f"{self.path} is half a task of another version of unlearnbench (journal {stated}, "
                f"here {JOURNAL_VERSION}), and cannot be gone on with; {_REDO}, or use --fresh"
            )
        facts = header.get("facts")
        if stated != JOURNAL_VERSION or not isinstance(facts, dict):
            raise ValueError(f"no journal of version {JOURNAL_VERSION}")
        there = Fingerprint(facts)
        if there != self._fingerprint:
            differing = "; ".join(differences(there, self._fingerprint))
            raise ResultError(
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

    def close(self) -> None:
        """Have the answers on the disk."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def remove(self) -> None:
        """Remove the file: the task's records are whole and in ``run.json``."""
        with contextlib.suppress(OSError):  # then the next run removes it
            self.path.unlink(missing_ok=True)
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
        return {"id": answer.id, "text": answer.text, "n_tokens": answer.n_tokens}
    import numpy as np

    arrays = {"logprobs": answer.logprobs, "mean": answer.mean, "std": answer.std}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ModelOutputError(f"{answer.id}: a log-probability or its spread is not finite")
    packed = {n: base64.b64encode(a.astype("<f8").tobytes()).decode() for n, a in arrays.items()}
    return {"id": answer.id, **packed}


def _decode(content: dict[str, object]) -> Answer:
    match content:
        case {"id": str(name), "text": str(text), "n_tokens": int(count), **rest}:
            if rest or count < 0 or isinstance(count, bool):
                raise ValueError("no generated answer")
            return Generated(name, text, count)
        case {"id": str(name), "logprobs": str(a), "mean": str(b), "std": str(c), **rest}:
            arrays = [_unpack(packed) for packed in (a, b, c)]
            if rest or len({len(array) for array in arrays}) != 1 or not len(arrays[0]):
                raise ValueError("no scored answer: arrays of different lengths, or empty ones")
            return Scored(name, *arrays)
    raise ValueError("no answer")


def _unpack(packed: str) -> NDArray[np.float64]:
    import numpy as np

    array = np.frombuffer(base64.b64decode(packed, validate=True), dtype="<f8").astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a figure is not finite")
    return array
