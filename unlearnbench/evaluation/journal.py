"""What a model answered so far, kept while a task is under way: after any interruption the same
command goes on with the first answer that is missing.

Answers are kept, not scores: records are made from them again, by the same code, so that nobody's
edit becomes a score that its output does not earn, and the two passes of PrivLeak's PPL/lower need
nothing of their own. The format is in docs/durability.md.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from unlearnbench.errors import ModelOutputError, ResultError, one_line
from unlearnbench.requests import Generated, Scored
from unlearnbench.util.files import Appender, first_fault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Answer: TypeAlias = Generated | Scored
JOURNAL_VERSION = 1
_REDO = "remove it to do this task anew"


def _ignore(count: int) -> object:
    return None


class Answers:
    """The answers of one task by request id: in memory alone, or (``Journal``) on disk too.

    ``tick(1)`` follows each new answer.
    """

    def __init__(self) -> None:
        self.found: dict[str, Answer] = {}
        self.tick: Callable[[int], object] = _ignore

    def keep(self, answer: Answer) -> None:
        """Add an answer."""
        self.found[answer.id] = answer
        self.tick(1)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: str


class _GeneratedLine(_Line):
    text: str
    n_tokens: int = Field(ge=0)


class _ScoredLine(_Line):
    """Three arrays of float64, little-endian, base64."""

    logprobs: str
    mean: str
    std: str


_LINE: TypeAdapter[_GeneratedLine | _ScoredLine] = TypeAdapter(_GeneratedLine | _ScoredLine)


class Journal(Answers):
    """A task's answers in a file that grows by a line each.

    path: the file; it is made with the first answer. identity: everything that may move an answer,
    by name; the first line holds it. asked: the ids that may be answered, each by a ``kind``.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, str], asked: Collection[str], kind: type[Answer]
    ) -> None:
        super().__init__()
        self.path = path
        self._identity, self._asked, self._kind = dict(identity), frozenset(asked), kind
        self._file: Appender | None = None
        self._end = 0
        self._sum = ""

    def read(self) -> None:
        """Take over what an interrupted run left; half a last line is not counted.

        Raises:
            ResultError: the journal is of another configuration (names what differs), or damaged.
        """
        if self.path.exists() and not self.path.is_file():  # a pipe would never end
            raise ResultError(f"{self.path} is no file; {_REDO}")
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ResultError(f"{self.path} cannot be read ({error.strerror}); {_REDO}") from None
        content = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            with self._naming(number):
                self._take(number, line)
        self._end = len(content)

    @contextlib.contextmanager
    def _naming(self, number: int) -> Iterator[None]:
        try:
            yield
        except ValidationError as error:
            reason = first_fault(error)
        except (ValueError, RecursionError) as error:
            reason = str(error)
        else:
            return
        raise ResultError(
            f"{self.path}:{number}: damaged or changed: {one_line(reason, 120)}; {_REDO}"
        )

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
        if number > 1:
            self._add(_decode(content))

    def _require_own(self, header: Mapping[str, object]) -> None:
        if header.get("journal") != JOURNAL_VERSION:
            raise ValueError(f"no journal of version {JOURNAL_VERSION}")
        there = header.get("identity")
        if not isinstance(there, dict):
            raise ValueError("no identity")
        names = sorted({**there, **self._identity})
        differences = [
            f"{name} is {there.get(name, 'absent')} there and {self._identity.get(name, 'absent')} "
            "here"
            for name in names
            if there.get(name) != self._identity.get(name)
        ]
        if differences:
            raise ResultError(
                f"{self.path} holds half a task of another configuration: "
                f"{one_line('; '.join(differences), 400)}; run it as it was begun, or {_REDO}, or "
                "use --fresh or another --output"
            )

    def _add(self, answer: Answer) -> None:
        if answer.id not in self._asked or not isinstance(answer, self._kind):
            raise ValueError(f"{answer.id!r} is no answer that this task asks for")
        if answer.id in self.found:
            raise ValueError(f"{answer.id!r} is answered twice")
        self.found[answer.id] = answer

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
                lines = self._line({"journal": JOURNAL_VERSION, "identity": self._identity})
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
    if isinstance(answer, Generated):
        return {"id": answer.id, "text": answer.text, "n_tokens": answer.n_tokens}
    arrays = {"logprobs": answer.logprobs, "mean": answer.mean, "std": answer.std}
    return {"id": answer.id, **{name: _pack(answer.id, a) for name, a in arrays.items()}}


def _pack(name: str, array: NDArray[np.float64]) -> str:
    import numpy as np

    if not np.isfinite(array).all():
        raise ModelOutputError(f"{name}: a log-probability or its spread is not finite")
    return base64.b64encode(array.astype("<f8").tobytes()).decode("ascii")


def _decode(content: dict[str, object]) -> Answer:
    line = _LINE.validate_python(content)
    if isinstance(line, _GeneratedLine):
        return Generated(line.id, line.text, line.n_tokens)
    arrays = [_unpack(packed) for packed in (line.logprobs, line.mean, line.std)]
    if len({len(array) for array in arrays}) != 1 or not len(arrays[0]):
        raise ValueError("arrays of different lengths, or empty ones")
    return Scored(line.id, *arrays)


def _unpack(packed: str) -> NDArray[np.float64]:
    import numpy as np

    array = np.frombuffer(base64.b64decode(packed, validate=True), dtype="<f8").astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a figure is not finite")
    return array
