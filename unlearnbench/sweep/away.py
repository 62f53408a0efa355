"""A job whose storage is an object store: done in a folder of this machine, uploaded on the way."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unlearnbench.errors import OptionError, StoreError
from unlearnbench.results import FULL
from unlearnbench.sweep.claim import JobClaim, Uploads, products
from unlearnbench.sweep.scratch import own_folder
from unlearnbench.sweep.store import Store, require_address

TOKEN = "sweep/token"  # noqa: S105 - a file
_SETTINGS = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
Do = Callable[[Mapping[str, Any]], dict[str, Any]]


def store_settings() -> dict[str, Any]:
    """What an order says of the store beside its address, for nodes that do not have it; no
    credentials.
    """
    return {"settings": {name: os.environ[name] for name in _SETTINGS if os.environ.get(name)}}


def perform_away(order: Mapping[str, Any], do: Do) -> dict[str, Any]:
    """Do a job by ``do``, which is given the order with this machine's paths and works in the
    current folder. Returns the report.

    Raises:
        InUseError: the job was given to another try.
        StoreError: the store refuses or does not answer.
    """
    around = order["around"]
    for name, value in around["settings"].items():
        os.environ.setdefault(name, value)
    store = Store(require_address(around["store"]))
    found = store.read(TOKEN)
    if found is None or found[0] != around["token"].encode():
        said = "is another store here than the sweep's; check AWS_ENDPOINT_URL and its like"
        raise OptionError(f"{store.url} {said}")
    claim = JobClaim(store, order)
    if (kept := claim.take()) is not None:
        return kept
    with _in_own_folder():
        uploads = Uploads(store, claim.folder, _made_by(order), order["kind"] == "train")
        own = _begun(order, store) | claim.earlier()
        uploads.fetch({**_read_by(order, store), **own})

        def beside() -> None:
            path = Path(claim.home) / "log.txt"
            if path.is_file():
                number = claim.folder.rpartition("/")[2]
                store.write(f"{claim.home}/log-{number}.txt", path.read_bytes())

        def leave() -> None:
            with suppress(StoreError):  # what was done is for the next try; the error is the news
                uploads.take(last=True)
                beside()

        try:
            with uploads.going_on(beside):
                report = do(_here(order))
        except Exception:
            leave()
            raise
        if report.get("error"):
            leave()
        else:
            beside()
            files = uploads.take(last=True)
            claim.finish(report, files, sorted(own.keys() - files.keys()))
        return report


@contextmanager
def _in_own_folder() -> Iterator[None]:
    folder, before = own_folder(Path(tempfile.gettempdir())), Path.cwd()
    try:
        os.chdir(folder)
        yield
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def _here(order: Mapping[str, Any]) -> dict[str, Any]:
    """The order as it is done in the current folder."""
    store = f"{order['around']['store']}/"
    placed = {k: str(order[k]).removeprefix(store) for k in ("model", "out") if k in order}
    return {**order, **placed, "around": {**order["around"], "output": "."}}


def _made_by(order: Mapping[str, Any]) -> list[Path]:
    """What a job makes."""
    name = order["name"]
    return {
        "evaluate": [Path("runs") / name],
        "train": [Path("models") / name, Path("sweep/jobs") / order["id"] / "asked"],
        "compare": [Path("recovery.json")],
        "board": [Path("board")],
    }[order["kind"]]


def _read_by(order: Mapping[str, Any], store: Store) -> dict[str, str]:
    """Results of other jobs that this one reads."""
    if order["kind"] in ("compare", "board"):
        names = {order["target"], order["retrained"], *order["entries"]}
    else:
        names = {order.get("reference"), *order.get("drafts_from", ())} - {None}
    found: dict[str, str] = {}
    for name in names:
        found |= products(store, f"runs/{name}/")
    if order["kind"] == "evaluate":
        found = {each: key for each, key in found.items() if each.split("/")[3:4] == [FULL]}
    model = str(order.get("model", "")).removeprefix(f"{store.url}/")
    return found | (products(store, f"{model}/") if model != order.get("model", "") else {})


def _begun(order: Mapping[str, Any], store: Store) -> dict[str, str]:
    """What was made of a job before, and is gone on with."""
    found: dict[str, str] = {}
    for place in _made_by(order):
        name = place.as_posix()
        below = products(store, f"{name}/")
        if order["kind"] == "train" and below:  # it is known by its record
            below = {each: key for each, key in below.items() if each.endswith(".json")}
        found |= below or ({name: name} if store.head(name) is not None else {})
    return found
