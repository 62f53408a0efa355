"""An entry's file in format 3: a task's samples as columns in place of records, and of every run
but the first only what differs from the first (a JSON merge patch, RFC 7396).

A column of numbers or hashes is one text with a word a sample: ``13/70`` and ``1.`` are numbers
with a fraction, ``12`` is a whole one, ``0.5,2.,`` a list, ``-`` nothing; hashes come behind
``sha256:``. Any other column is a list as JSON has it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from typing import Any

from unlearnbench.errors import ResultError, one_line
from unlearnbench.recovery.utility import retained_figures
from unlearnbench.results import GenerationRecord, LikelihoodRecord, SampleRecord, TaskResult

Content = dict[str, Any]

MOST = 5_000_000
"""Values of all runs together: a patch of a few bytes stands for a whole run."""
_DIGITS = 12
_LARGEST_DENOMINATOR = 999
_NESTED = ("scores", "facts", "asked")
_HASH = "sha256:"
_LONG, _SHORT = (re.compile(rf"{_HASH}{c}") for c in ("[0-9a-f]{64}", "[A-Za-z0-9_-]{6}"))
_RANGE = re.compile(r"(0|[1-9]\d{0,8})(?:-([1-9]\d{0,8}))?")
_WHOLE = re.compile(r"-?\d{1,20}")
_FRACTION = re.compile(rf"(\d{{1,{len(str(_LARGEST_DENOMINATOR))}}})/([1-9]\d{{0,2}})")
_DECIMAL = re.compile(r"-?\d{1,20}(\.\d{0,25})?(e[+-]?\d{1,3})?")


def shorten(text: str) -> str:
    """A hash's first 36 bits, by which two of an entry's some thousand texts are taken for one in
    one entry of a million; any other text as it is.
    """
    if not _LONG.fullmatch(text):
        return text
    first = bytes.fromhex(text.removeprefix(_HASH)[:10])
    return _HASH + base64.urlsafe_b64encode(first).decode("ascii")[:6]


def is_short(text: str) -> bool:
    """Whether it is what ``shorten`` makes of a hash."""
    return _SHORT.fullmatch(text) is not None


def decisive_result(task: TaskResult) -> TaskResult:
    """A task's result with what follows from the scores that decide: its own figure, and those
    beside it that utility is made of.
    """
    kept = retained_figures(task)
    return task.model_copy(update={"scores": {k: task.scores[k] for k in kept}, "attacks": None})


def decisive(record: SampleRecord, task: TaskResult, texts: bool) -> SampleRecord:
    """A record with the scores that decide alone, as an entry holds it; ``task``: its task's
    ``decisive_result``. Raises ResultError where a text has no score of its task's attack.
    """
    if isinstance(record, LikelihoodRecord):
        if task.attack not in record.scores:
            raise ResultError(f"{one_line(record.id)} has no score of the attack {task.attack}")
        return record.model_copy(update={"scores": {task.attack: record.scores[task.attack]}})
    new: dict[str, object] = {
        "scores": {k: v for k, v in record.scores.items() if k in task.scores}
    }
    if isinstance(record, GenerationRecord) and not texts:
        new["n_tokens"] = None
    short = record if texts else record.with_texts(shorten)
    return short.model_copy(update=new)


def packed(entry: Content) -> Content:
    """An entry's content with records as its file has it. Where it holds texts, numbers that no
    text gives keep all their digits, so that the records' hash can be computed. Raises ValueError
    where a task's samples are not numbered rows, one split after another, or where there are more
    than ``MOST`` values.
    """
    runs, room = list[Content](), MOST
    for part in entry["runs"]:
        tables = {t: _table(t, rs, entry["texts"]) for t, rs in part["samples"].items()}
        runs.append(part | {"samples": tables})
        room -= _weight(runs[-1], room)
    first, *others = runs
    return entry | {"runs": [first, *(_difference(first, other) for other in others)]}


def unpacked(entry: Content) -> Content:
    """The content of a file with records. Raises ValueError where it is no such file, or stands
    for more than ``MOST`` values.
    """
    runs, room = entry.get("runs"), MOST
    if not isinstance(runs, list) or not runs:
        raise ValueError("runs: no list of runs")
    parts, whole = [], []
    for number, change in enumerate(runs):
        parts.append(_patched(runs[0], change) if number else change)
        room -= _weight(parts[-1], room)
    for number, part in enumerate(parts):
        samples = part.get("samples") if isinstance(part, dict) else None
        if not isinstance(samples, dict):
            raise ValueError(f"runs.{number}: no samples")
        try:
            records = {task: _records(task, table) for task, table in samples.items()}
        except ValueError as error:
            raise ValueError(f"runs.{number}.samples: {error}") from None
        whole.append(part | {"samples": records})
    return entry | {"runs": whole}


def _weight(value: object, room: int) -> int:
    """How many values it has, columns' words too; ValueError where they are more than ``room``."""
    total, inner = 0, [value]
    while inner:
        each = inner.pop()
        total += 1 + (each.count(" ") + each.count(",") if isinstance(each, str) else 0)
        if isinstance(each, dict):
            inner += each.values()
        elif isinstance(each, (list, tuple)):  # whose texts are no columns
            inner += [None if isinstance(part, str) else part for part in each]
        if total > room:
            raise ValueError(f"runs: more than {MOST} values, which are too many for an entry")
    return total


def _difference(base: Content, new: Content) -> Content:
    found: Content = {}
    for key in sorted(base.keys() | new.keys()):
        here, there = new.get(key), base.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            if inner := _difference(there, here):
                found[key] = inner
        elif here != there or json.dumps(here) != json.dumps(there):  # 1 is not 1.0, nor true
            found[key] = here
    return found


def _patched(base: Any, change: Any) -> Any:
    if not isinstance(change, dict):
        return change
    whole = dict(base) if isinstance(base, dict) else {}
    for key, value in change.items():
        if value is None:
            whole.pop(key, None)
        else:
            whole[key] = _patched(whole.get(key), value)
    return whole


def _table(task: str, records: Sequence[Content], texts: bool) -> Content:
    """The columns of one task of one run, and how many samples of each split there are."""
    rows: dict[str, list[int]] = {}
    for split, _, number in (record["id"].rpartition("/") for record in records):
        rows.setdefault(split, []).append(int(number) if number.isdecimal() else -1)
    known = [(record["id"], record.get("split")) for record in records]
    whole = [(name, known[i][1] and split) for i, (name, split) in enumerate(_names(rows))]
    if known != whole or any(row < 0 for each in rows.values() for row in each):
        raise ValueError(f"{task}: its samples are not numbered rows, one split after another")
    table: Content = {"ids": {split: _ranges(numbers) for split, numbers in rows.items()}}
    for key in dict.fromkeys(key for record in records for key in record):
        exact = texts and key not in ("score", "scores")  # those follow from the texts
        values = [record.get(key) for record in records]
        if key in _NESTED:
            parts = [value or {} for value in values]
            inner = dict.fromkeys(name for part in parts for name in part)
            columns = {name: _column([part.get(name) for part in parts], exact) for name in inner}
            if columns:
                table[key] = columns
        elif key not in ("task", "id", "split"):
            table[key] = _column(values, exact)
    return table


def _names(rows: Mapping[str, Iterable[int]]) -> list[tuple[str, str]]:
    """Each sample's id and split."""
    return [(f"{split}/{row}", split) for split, numbers in rows.items() for row in numbers]


def _ranges(rows: Sequence[int]) -> str:
    """``0-4 7`` of the rows 0 to 4 and 7."""
    ends = list[list[int]]()
    for row in rows:
        if ends and row == ends[-1][1] + 1:
            ends[-1][1] = row
        else:
            ends.append([row, row])
    return " ".join(f"{a}-{b}" if a < b else str(a) for a, b in ends)


def _rows(task: str, ranges: object) -> list[range]:
    """The rows of ``_ranges``, not yet written out. Raises ValueError where it is none."""
    found = (
        [_RANGE.fullmatch(word) for word in ranges.split(" ")] if isinstance(ranges, str) else []
    )
    ends = [range(int(each[1]), int(each[2] or each[1]) + 1) for each in found if each]
    if not all(ends) or not ends or len(ends) < len(found):
        raise ValueError(f"{task}: ids are no rows")
    return ends


def _records(task: str, table: object) -> list[Content]:
    """The records of a task's columns."""
    if not isinstance(table, dict) or not isinstance(table.get("ids"), dict):
        raise ValueError(f"{task}: no columns with ids")
    rows = {split: _rows(task, ranges) for split, ranges in table["ids"].items()}
    n, columns = sum(map(len, chain(*rows.values()))), list[tuple[tuple[str, ...], list[Any]]]()
    for key, column in table.items():
        inner = column.items() if key in _NESTED and isinstance(column, dict) else None
        if key != "ids":
            named = [((key,), column)] if inner is None else [((key, k), c) for k, c in inner]
            columns += [(place, _values(found)) for place, found in named]
    if not columns or any(len(values) != n for _, values in columns):
        raise ValueError(f"{task}: a column has not a value for each of {n} samples")
    # Not before: a few digits stand for a billion rows, and the values of columns are counted.
    names = _names({split: chain(*ranges) for split, ranges in rows.items()})
    likelihoods = "score" not in table
    made: list[Content] = [
        {"task": task, "id": name, "scores": {}} | ({"split": split} if likelihoods else {})
        for name, split in names
    ]
    for place, values in columns:
        for record, value in zip(made, values, strict=True):
            if value is not None:
                into = record if len(place) == 1 else record.setdefault(place[0], {})
                into[place[-1]] = value
    return made


def _column(values: Sequence[Any], exact: bool) -> Any:
    """One text where every value is a number, a hash, or a list of them; else the values."""
    flat = [x for v in values for x in (v if isinstance(v, (list, tuple)) else [v])]
    known = [x for x in flat if x is not None]
    if known and all(isinstance(x, str) and is_short(x) for x in known):
        return _HASH + " ".join(_word(value, exact) for value in values)
    if all(isinstance(x, (int, float)) for x in known):
        return " ".join(_word(value, exact) for value in values)
    return list(values)


def _word(value: Any, exact: bool) -> str:
    if isinstance(value, (list, tuple)):
        return "".join(f"{_word(part, exact)}," for part in value) or ","
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _decimal(value, exact)
    return str(value).removeprefix(_HASH)


def _decimal(value: float, exact: bool) -> str:
    """A number that reads as a fraction, not as a whole number: in 12 digits, or exactly."""
    if not exact:
        if value == round(value) and abs(value) < 1e6:
            return f"{int(value)}."
        near = Fraction(value).limit_denominator(_LARGEST_DENOMINATOR)
        if 0 < value < 1 and abs(near - Fraction(value)) < 1e-12:
            return f"{near.numerator}/{near.denominator}"
        value = float(f"{value:.{_DIGITS}g}")
    return repr(value)


def _values(column: object) -> list[Any]:
    """The values of a column. Raises ValueError where it is none."""
    if isinstance(column, list):
        return column
    if not isinstance(column, str):
        raise ValueError("a column is neither a text nor a list")
    words = column.removeprefix(_HASH).split(" ")
    return [_value(word, column.startswith(_HASH)) for word in words]


def _value(word: str, hashes: bool) -> Any:
    if word.endswith(","):
        return [_value(part, hashes) for part in word[:-1].split(",")] if word != "," else []
    if word == "-":
        return None
    if hashes:
        return _HASH + word
    if word in ("true", "false"):
        return word == "true"
    if found := _FRACTION.fullmatch(word):
        return int(found[1]) / int(found[2])
    if _WHOLE.fullmatch(word):
        return int(word)
    if not _DECIMAL.fullmatch(word):
        raise ValueError(f"no number: {word[:40]!r}")
    return float(word)
