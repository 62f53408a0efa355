"""The docs as a site: no link is broken (mkdocs is strict), and nothing comes from a network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
_LOADED = re.compile(r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="?(https?:)?//')


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.ci
def test_the_site_needs_no_network(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    assert [page.name for page in pages if _LOADED.search(page.read_text(encoding="utf-8"))] == []
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    assert any("PrivLeak" in each["text"] for each in index["docs"])

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    address, asked, errors = f"http://127.0.0.1:{server.server_port}/", list[str](), list[str]()
    try:
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}api.html")
        assert "Evaluate a checkpoint on tasks" in page.inner_text("article")
        page.goto(f"{address}index.html")
        page.keyboard.press("/")
        page.keyboard.type("certificate")
        page.wait_for_selector(".md-search-result__item")
        page.close()
    finally:
        server.shutdown()
        server.server_close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert errors == []
