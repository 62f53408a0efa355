"""The part of the Hugging Face hub's HTTP API that reading a data set and adding files to one need,
on 127.0.0.1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["HubStub", "serve"]


class HubStub:
    """One data set repository: ``revisions[name][path]`` is a file's bytes.

    ``asked`` collects every request as ``METHOD path``. A revision answers to its name and to
    ``commit(name)``, as branches and tags do on the hub. ``created`` collects what
    repositories were asked for, ``pushed`` the files of commits, ``tokens`` who asked for either; a
    repository of another name may not be written.
    """

    def __init__(self, repo: str, revisions: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repo, self.revisions = repo, revisions
        self.asked: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.pushed: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.endpoint = ""

    @staticmethod
    def commit(revision: str) -> str:
        """The commit id that a revision stands for."""
        return hashlib.sha1(revision.encode()).hexdigest()

    def find(self, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """Commit id and files of a revision, given by name or by commit id."""
        for name, files in self.revisions.items():
            if revision in (name, self.commit(name)):
                return self.commit(name), files
        return None


@contextmanager
def serve(stub: HubStub) -> Iterator[HubStub]:
    """Answer at ``stub.endpoint`` inside the ``with`` block."""

    class Handler(_Handler):
        hub = stub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _entry(files: Mapping[str, bytes], path: str) -> dict[str, Any] | None:
    if path in files:
        data = files[path]
        return {"type": "file", "path": path, "oid": _etag(data), "size": len(data)}
    if any(name.startswith(f"{path}/") for name in files):
        return {"type": "directory", "path": path, "oid": _etag(path.encode()), "size": 0}
    return None


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        file = f"/datasets/{self.hub.repo}/resolve/"
        api = f"/api/datasets/{self.hub.repo}/"
        if path.startswith(file):
            revision, _, name = path[len(file) :].partition("/")
            self.send_file(revision, name)
        elif path.startswith(api):
            kind, revision, *rest = path[len(api) :].split("/", 2)
            self.send_facts(kind, revision, "".join(rest), body)
        else:
            self.send_error_code("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = f"/api/datasets/{self.hub.repo}/"
        kind = path.removeprefix(api).split("/")[0] if path.startswith(api) else path
        answers = {
            "/api/repos/create": self.create,
            "preupload": self.preupload,
            "commit": self.commit,
        }
        if kind not in answers:
            self.do_GET()
            return
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization", "none"))
        answers[kind](self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted.get('organization')}/{wanted['name']}"
        if wanted["type"] != "dataset" or name != self.hub.repo:
            self.answer(403, b'{"error": "you may not"}', {"Content-Type": "application/json"})
            return
        known = ("name", "organization", "visibility")
        self.hub.created.append({key: wanted.get(key) for key in known})
        self.send_json({"url": f"{self.hub.endpoint}/datasets/{name}"})

    def preupload(self, body: bytes) -> None:
        paths = [file["path"] for file in json.loads(body)["files"]]
        files = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
        self.send_json({"files": files})

    def commit(self, body: bytes) -> None:
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                file = operation["value"]
                self.hub.pushed[file["path"]] = base64.b64decode(file["content"])
        oid = self.hub.commit("main")
        url = f"{self.hub.endpoint}/datasets/{self.hub.repo}/commit/{oid}"
        self.send_json({"success": True, "commitOid": oid, "commitUrl": url})

    def send_file(self, revision: str, name: str) -> None:
        found = self.hub.find(revision)
        if found is None:
            self.send_error_code("RevisionNotFound")
        elif name not in found[1]:
            self.send_error_code("EntryNotFound", found[0])
        else:
            self.answer(200, found[1][name], {"X-Repo-Commit": found[0]})

    def send_facts(self, kind: str, revision: str, path: str, body: bytes) -> None:
        found = self.hub.find(revision)
        if found is None:
            self.send_error_code("RevisionNotFound")
            return
        commit, files = found
        if kind == "revision":
            self.send_json({"id": self.hub.repo, "sha": commit, "private": False, "gated": False})
        elif kind == "paths-info":
            entries = [_entry(files, name) for name in _paths(body)]
            self.send_json([entry for entry in entries if entry])
        elif kind == "tree" and (not path or _entry(files, path)):
            self.send_json(_tree(files, path, "recursive=true" in self.path.lower()))
        else:
            self.send_error_code("EntryNotFound", commit)

    def send_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_error_code(self, code: str, commit: str = "") -> None:
        self.answer(404, b"", {"X-Error-Code": code, "X-Repo-Commit": commit})

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        fixed = {"ETag": f'"{_etag(body)}"', "Content-Length": str(len(body))}
        for name, value in {**fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _paths(body: bytes) -> list[str]:
    text = body.decode()
    if text.startswith("{"):
        return list(json.loads(text)["paths"])
    return parse_qs(text).get("paths", [])


def _tree(files: Mapping[str, bytes], path: str, recursive: bool) -> list[dict[str, Any] | None]:
    below = f"{path}/" if path else ""
    names: dict[str, None] = {}
    for name in files:
        if not name.startswith(below):
            continue
        parts = name[len(below) :].split("/")
        depth = len(parts) if recursive else 1
        names.update(dict.fromkeys(below + "/".join(parts[: i + 1]) for i in range(depth)))
    return [_entry(files, name) for name in names]
