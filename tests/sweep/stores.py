"""An object store that speaks S3 over HTTP on this machine: moto's server."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from unlearnbench.sweep.store import Store

BUCKET = "sweeps"
_numbers = itertools.count()


@dataclass
class Served:
    """A server with one bucket."""

    endpoint: str
    environment: dict[str, str]

    def url(self) -> str:
        """A new prefix."""
        return f"s3://{BUCKET}/of-tests/{next(_numbers)}"


@contextlib.contextmanager
def served(port: int = 0) -> Iterator[Served]:
    """A server, until the block ends. It takes one request at a time: moto looks at a condition and
    writes in two steps, and another's write may come between, which a store of a cloud excludes.
    """
    pytest.importorskip("obstore")
    moto = pytest.importorskip("moto.moto_server.werkzeug_app")
    from werkzeug.serving import make_server

    app, lock = moto.DomainDispatcherApplication(moto.create_backend_app), threading.Lock()

    def one_by_one(environ: Any, start_response: Any) -> list[bytes]:
        with lock:
            return list(app(environ, start_response))

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", port, one_by_one, True, 1, moto.MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        found = {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "us-east-1"}
        found |= {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests"}
        # Never the real thing, whatever a test forgets.
        found |= {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:9"}
        make_bucket(endpoint)
        yield Served(endpoint, found)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def _client(endpoint: str) -> Iterator[Any]:
    import boto3

    keys = {"aws_access_key_id": "tests", "aws_secret_access_key": "tests"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
    yield client
    client.close()


def make_bucket(endpoint: str) -> None:
    with _client(endpoint) as client:
        client.create_bucket(Bucket=BUCKET)


def put_object(endpoint: str, key: str) -> None:
    """An object under any name, also one that our own client refuses to give it."""
    with _client(endpoint) as client:
        client.put_object(Bucket=BUCKET, Key=key, Body=b"1")


def everything(url: str) -> dict[str, bytes]:
    """All objects below an address."""
    store = Store(url)
    found = {name: store.read(name) for name in store.names("")}
    return {name: read[0] for name, read in found.items() if read is not None}
