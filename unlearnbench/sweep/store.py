"""An object store: objects below one address, read, written, and replaced only as they were seen.

Who replaces an object says which version of it was seen, and a store that has another by then
refuses (``If-None-Match``, ``If-Match``). All that keeps two writers apart rests on that.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from unlearnbench.errors import OptionError, OutputError, StoreError, one_line
from unlearnbench.sweep.refusals import advice, reason

Tag: TypeAlias = Mapping[str, Any]
"""Which version of an object: its ``e_tag`` and ``version``."""
T = TypeVar("T")
R = TypeVar("R")

INSTALL = "install it with: pip install 'unlearnbench[sweep]'"
_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9!_.*'()+=@,-]+)*)/?")
PATIENCE = 120.0
"""Seconds for which a request that fails is made again, with longer and longer pauses."""
FIRST_PATIENCE = 10.0
"""The same for the first look, by somebody who waits for the answer."""
LEASE_PATIENCE = 20.0
"""The same for a sign of life, which another one follows."""
_TRIES = 12
_AT_ONCE = 16
_PART = 16 * 2**20
_READ = 2**30
"""Bytes of the largest object that is read at once."""
_COPIED = 5 * 2**30
"""Bytes of the largest object that a store copies by itself."""


class TakenError(Exception):
    """The object is not as it was seen: somebody else was there."""


def is_address(given: str) -> bool:
    """Whether it is meant as a store's address, right or wrong, and not as a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", given) is not None


def require_address(given: str) -> str:
    """The address without a slash at its end.

    Raises:
        OptionError: it is none of a store that can be used, or the package for it is missing.
    """
    shown = one_line(given, 200)
    if given.startswith("hf://"):
        raise OptionError(
            f"{shown}: a sweep cannot write to the hub: every write there is a commit, "
            "and a conditional one locks the whole repo, so workers would wait for each other; "
            "use s3://BUCKET/PREFIX, and upload the results at the end (hf upload)"
        )
    if not given.startswith("s3://"):
        raise OptionError(f"{shown}: use a folder or s3://BUCKET/PREFIX")
    found = _ADDRESS.fullmatch(given)
    if found is None or any(part in (".", "..") for part in found[2].split("/")):
        raise OptionError(
            f"{shown}: no address of the form s3://BUCKET/PREFIX (letters, digits and !_.*'()+=@,-)"
        )
    if not found[2]:
        raise OptionError(f"{shown}: give a prefix too, s3://BUCKET/PREFIX: a sweep has its own")
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise OptionError(f"{shown} needs obstore; {INSTALL}") from None
    return given.rstrip("/")


class Store:
    """What is below one address. Names are relative to it.

    Every method raises StoreError where the store refuses, or does not answer in ``patience``.
    """

    def __init__(self, url: str, patience: float | None = None) -> None:
        """Asks nothing yet; ``url`` as ``require_address`` gives it."""
        self.url, self._bucket = url, url.split("/")[2]
        self._store = _opened(url, PATIENCE if patience is None else patience)
        self.down = False
        """Whether the last request failed, after all its tries."""

    @contextmanager
    def _asked(self, *expected: type[Exception]) -> Iterator[None]:
        """``expected``: which of FileNotFoundError and TakenError the caller has an answer to."""
        from obstore import exceptions as theirs

        others = (theirs.AlreadyExistsError, theirs.PreconditionError, theirs.NotModifiedError)
        try:
            yield
            self.down = False
        except (theirs.BaseError, OSError, ValueError) as error:  # ValueError: no object's name
            if isinstance(error, OSError) and error.errno is not None:  # a file on this machine
                raise
            text, taken = str(error), isinstance(error, others)
            gone = isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text
            self.down = not (taken or gone)
            if taken and TakenError in expected:
                raise TakenError from None
            if gone and FileNotFoundError in expected:
                raise
            raise StoreError(f"{self.url}: {advice(self._bucket, text)}") from None

    def read(self, name: str) -> tuple[bytes, Tag] | None:
        """A small object and its version; None where there is none."""
        import obstore

        try:
            with self._asked(FileNotFoundError):
                found = obstore.get(self._store, name)
                meta = found.meta
                if meta["size"] > _READ:
                    raise StoreError(f"{self.url}/{name} is larger than any of its kind; remove it")
                return bytes(found.bytes()), {"e_tag": meta["e_tag"], "version": meta["version"]}
        except FileNotFoundError:
            return None

    def replace(self, name: str, content: bytes, seen: Tag | None) -> Tag:
        """Write a small object only where it is as it was ``seen``; None: only where there is none.
        ``content`` is like no other writer's: an answer that was lost is told by it.

        Raises:
            TakenError: it is not.
        """
        import obstore

        mode: Any = "create" if seen is None else {k: v for k, v in seen.items() if v is not None}
        try:
            with self._asked(FileNotFoundError, TakenError):
                return dict(obstore.put(self._store, name, content, mode=mode, use_multipart=False))
        except FileNotFoundError:  # it was there, and was removed
            raise TakenError from None
        except TakenError:
            found = self.read(name)
            if found is None or found[0] != content:
                raise
            return found[1]

    def write(self, name: str, content: bytes | Path) -> None:
        """Write an object, whatever is there. It appears whole."""
        import obstore

        with ExitStack() as opened, self._asked():
            given = (
                opened.enter_context(content.open("rb")) if isinstance(content, Path) else content
            )
            obstore.put(self._store, name, given, chunk_size=_PART)

    def fetch(self, name: str, place: Path) -> None:
        """Write an object to a new file."""
        import obstore

        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with self._asked(FileNotFoundError), place.open("wb") as file:
                for part in _parts(obstore.open_reader(self._store, name, buffer_size=_PART)):
                    file.write(part)
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{name} is gone; was it removed?") from None
        except OSError as error:
            raise OutputError(f"{place} cannot be written ({error.strerror})") from None

    def names(self, prefix: str) -> dict[str, int]:
        """The objects below ``prefix``, which ends at a slash or is empty, and their sizes."""
        import obstore

        found: dict[str, int] = {}
        with self._asked():
            for part in obstore.list(self._store, prefix.rstrip("/") or None):
                found |= {each["path"]: each["size"] for each in part}
        return found

    def head(self, name: str) -> Mapping[str, Any] | None:
        """An object's ``size``, ``e_tag`` and ``last_modified``; None where there is none."""
        import obstore

        try:
            with self._asked(FileNotFoundError):
                return dict(obstore.head(self._store, name))
        except FileNotFoundError:
            return None

    def copy(self, name: str, to: str) -> None:
        """Have an object under a second name."""
        import obstore

        found = self.head(name)
        if found is None:
            raise StoreError(f"{self.url}/{name} is gone; was it removed?")
        if found["size"] <= _COPIED:
            with self._asked():
                obstore.copy(self._store, name, to)
            return
        with tempfile.TemporaryDirectory() as folder:
            self.fetch(name, Path(folder) / "large")
            self.write(to, Path(folder) / "large")

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are gone already."""
        import obstore

        if listed := list(names):
            with self._asked():
                obstore.delete(self._store, listed)


def require_conditions(store: Store) -> None:
    """Prove that the store refuses to replace what is not as it was seen.

    Raises:
        StoreError: it does not.
    """
    name, own = f"sweep/probe-{secrets.token_hex(8)}", secrets.token_bytes(8)
    fault = StoreError(
        f"{store.url}: the store does not honour If-None-Match and If-Match, by which two "
        "writers are kept apart; use a newer one"
    )
    try:
        seen = store.replace(name, own, None)
        store.replace(name, own + b"2", seen)
        for wrong in (None, seen):
            with suppress(TakenError):
                store.replace(name, own + b"3", wrong)
                raise fault
    except TakenError:
        raise fault from None
    finally:
        with suppress(StoreError):  # the error that is under way says more
            store.remove([name])


def _opened(url: str, patience: float) -> Any:
    """Its endpoint is taken as Amazon's own tools take it; obstore reads the rest itself."""
    from obstore.store import S3Store

    ends = [os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")]
    end = next(filter(None, ends), None)
    given: dict[str, Any] = {"endpoint": end} if end else {}
    pauses = {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=15)}
    retry: Any = {"max_retries": _TRIES, "retry_timeout": timedelta(seconds=patience)}
    client: Any = {"timeout": timedelta(seconds=30), "connect_timeout": timedelta(seconds=5)}
    client["allow_http"] = (end or "").startswith("http://")
    given |= {"client_options": client, "retry_config": {**retry, "backoff": pauses}}
    try:
        return S3Store.from_url(url, **given)
    except Exception as error:
        raise OptionError(f"{url}: {reason(error)}") from None


def _parts(reader: Any) -> Iterator[bytes]:
    """Of a large object, each by a request of its own."""
    while part := bytes(reader.read(_PART)):
        yield part


def at_once(do: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``do`` of each, several at a time, in their order."""
    listed = list(items)
    if len(listed) < 2:
        return [do(each) for each in listed]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(do, listed))
