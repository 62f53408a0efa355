from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cli.test_main import call
from tests.sweep.files import sweep_file
from tests.sweep.stores import Served, put_object
from unlearnbench.errors import OptionError, OutputError, StoreError
from unlearnbench.sweep import store as stores
from unlearnbench.sweep.home import StoreHome
from unlearnbench.sweep.store import Store, TakenError, require_address, require_conditions


def test_one_of_many_writers_wins(s3: Served) -> None:
    store = Store(s3.url())

    def write(at: int, seen: dict[str, str] | None) -> bool:
        try:
            store.replace("one", str(at).encode(), seen)
        except TakenError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda at: write(at, None), range(16))) == 1
        found = store.read("one")
        assert found is not None
        tag = dict(found[1])
        assert sum(pool.map(lambda at: write(at + 100, tag), range(16))) == 1
    require_conditions(store)
    assert set(store.names("")) == {"one"}


def test_an_answer_that_was_lost_is_no_other_writer(s3: Served) -> None:
    store = Store(s3.url())
    tag = store.replace("one", b"ours", None)
    assert store.replace("one", b"ours", None) == tag
    store.remove(["one"])
    with pytest.raises(TakenError):
        store.replace("one", b"more", tag)


def test_files_come_back_as_they_went(
    s3: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_PART", 5 * 2**20)  # the least that a store takes
    store, content = Store(s3.url()), bytes(range(256)) * 2**15 + b"8 MiB, a bit more"
    (tmp_path / "large").write_bytes(content)
    store.write("a/large", tmp_path / "large")
    store.copy("a/large", "b/large")
    monkeypatch.setattr(stores, "_COPIED", 2**20)
    store.copy("a/large", "c/large")
    for name in ("b", "c"):
        store.fetch(f"{name}/large", tmp_path / "deep" / name)
        assert (tmp_path / "deep" / name).read_bytes() == content
    assert store.names("a/") == {"a/large": len(content)}
    store.write("odd/m+1=2 (é)@x/run.json", b"{}")
    (odd,) = store.names("odd/")
    assert (store.read(odd) or (b"",))[0] == b"{}"
    home = StoreHome(store.url)
    assert home.versions(["a/large", "none"]).keys() == {"a/large"}
    with pytest.raises(StoreError, match="none is gone"):
        store.fetch("none", tmp_path / "none")
    with pytest.raises(StoreError, match="none is gone"):
        store.copy("none", "d")
    with pytest.raises(OutputError, match="large/x cannot be written"):
        store.fetch("a/large", tmp_path / "large/x")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "hf://datasets/org/name",
            "a sweep cannot write to the hub: every write there is a commit",
        ),
        ("gs://bucket/prefix", "use a folder or s3://BUCKET/PREFIX"),
        ("s3://", "no address of the form"),
        ("s3://Bucket/prefix", "no address of the form"),
        ("s3://bucket/a/../b", "no address of the form"),
        ("s3://bucket/a b", "no address of the form"),
        ("s3://bucket//b", "no address of the form"),
        ("s3://user:word@bucket/b", "no address of the form"),
        ("s3://bucket/", "give a prefix too"),
    ],
)
def test_an_address_that_is_none_is_one_line(
    given: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sweep", str(sweep_file(tmp_path, output=given)), "--dry-run") == 2
    shown = capsys.readouterr().err
    assert "sweep.yaml:1: output: " in shown
    assert said in shown
    assert len(shown.strip().splitlines()) == 1


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(OptionError, match=r"needs obstore; install it with: pip install"):
        require_address("s3://bucket/prefix")


class _Answers(BaseHTTPRequestHandler):
    """Says the same to every request."""

    status, body = 200, b""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_PUT = do_POST = do_DELETE = _answer

    def log_message(self, *given: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    """A server that only says that."""
    body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
    kind = type("Answers", (_Answers,), {"status": status, "body": body})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (
            403,
            "InvalidAccessKeyId",
            r"access is refused \(403 Forbidden, InvalidAccessKeyId\); set",
        ),
        (404, "NoSuchBucket", "there is no bucket bucket; make it first"),
        (301, "PermanentRedirect", "the bucket is elsewhere .*set AWS_REGION"),
        (503, "SlowDown", "does not answer .*503 Service Unavailable"),
    ],
)
def test_a_store_that_refuses_is_one_line_before_anything_starts(
    status: int,
    code: str,
    said: str,
    s3: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stores, "FIRST_PATIENCE", 0.5)
    with answering(status, code) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        path = sweep_file(tmp_path, output="s3://bucket/prefix")
        for asked in ([str(path)], ["status", "s3://bucket/prefix"]):
            assert call("sweep", *asked) == 2
            shown = capsys.readouterr().err.strip()
            assert len(shown.splitlines()) == 1
            assert re.search(said, shown), shown


def test_without_credentials_it_says_where_to_put_them(
    s3: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match="no credentials; set AWS_ACCESS_KEY_ID and"):
        Store(s3.url(), 0.5).names("")


@pytest.mark.parametrize("status", [400, 404, 405, 409, 412, 501])
def test_whatever_a_store_answers_is_said(
    status: int, s3: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status, "") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = Store("s3://bucket/prefix", 0.1)
        asked: list[Callable[[], object]] = [
            lambda: store.write("a", b""),
            lambda: store.remove(["a"]),
        ]
        asked += [lambda: require_conditions(store), lambda: store.copy("a", "b")]
        for each in asked:
            with pytest.raises(StoreError):
                each()


def test_what_a_store_holds_is_not_trusted(
    s3: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(s3.url())
    store.write("large", b"123")
    monkeypatch.setattr(stores, "_READ", 2)
    with pytest.raises(StoreError, match="large is larger than any of its kind; remove it"):
        store.read("large")
    with pytest.raises(StoreError, match="an object whose name cannot be used"):
        store.fetch("../up", tmp_path / "up")
    put_object(s3.endpoint, f"{store.url.split('/', 3)[3]}/runs/../../up")
    with pytest.raises(StoreError, match="an object whose name cannot be used .*; remove it"):
        store.names("")


def test_a_store_that_ignores_conditions_is_refused(
    s3: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(200, "") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StoreError, match="does not honour If-None-Match"):
            require_conditions(Store("s3://bucket/prefix", 0.5))
