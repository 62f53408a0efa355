"""What was computed once and may be asked for again, within bounds."""

from __future__ import annotations

import hashlib
from array import array
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

V = TypeVar("V")


class KnownValues(Generic[V]):
    """Values by key, until their sizes reach ``most``. What comes then is not kept: dropping old
    ones instead would drop each of them before its turn comes again.
    """

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._values: dict[bytes, V] = {}

    def find(self, key: bytes) -> V | None:
        """What was kept under ``key``."""
        return self._values.get(key)

    def keep(self, key: bytes, value: V, size: int) -> V:
        """Keep ``value`` if there is room; returns it."""
        if key not in self._values and self._size + size <= self._most:
            self._values[key] = value
            self._size += size
        return value


class KnownIds:
    """Token ids of texts, 16 MiB of them: precisions of one checkpoint share its tokenizer."""

    def __init__(self) -> None:
        self._known: KnownValues[array[int]] = KnownValues(2**22)

    def find(self, text: str) -> list[int] | None:
        """Token ids of ``text``, if they are known."""
        found = self._known.find(_key(text))
        return None if found is None else found.tolist()

    def keep(self, text: str, ids: list[int]) -> list[int]:
        """Keep the ids of ``text`` if there is room; returns them."""
        self._known.keep(_key(text), array("i", ids), len(ids))
        return ids


_OF_TOKENIZERS: WeakKeyDictionary[Any, KnownIds] = WeakKeyDictionary()


def known_ids(tokenizer: Any) -> KnownIds:
    """What is known of ``tokenizer``, for as long as it is there."""
    return _OF_TOKENIZERS.setdefault(tokenizer, KnownIds())


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
