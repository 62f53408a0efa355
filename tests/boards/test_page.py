"""The page in headless Chromium, opened from a file. Skips, and says so, where no browser is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.boards.conftest import BOARD, ROWS, MakeBoard
from tests.cli.test_main import call
from tests.toy_runs import Bench
from unlearnbench.boards.page import LONGEST, _json

SMALL = ("target", "retrained", "ga_gdr", "sure")
HOSTILE = "<script>boom()</script><img src=x onerror=boom()>\"'`javascript:boom()\u202ee\u200f"


@pytest.fixture(scope="module")
def hostile_board(make_board: MakeBoard, bench: Bench) -> Path:
    """A board whose title, notes and model outputs are hostile, and one output of 100 kB."""
    from unlearnbench.boards.entry import BoardEntry, entry_json, read_entry
    from unlearnbench.metrics.rouge import score_output
    from unlearnbench.results import GenerationRecord
    from unlearnbench.runs.folder import encode_records

    text = BOARD.replace("title: A board of made models", f"title: {_yaml(HOSTILE)}")
    board = make_board(text, "--note", HOSTILE, names=SMALL)
    path = board / "entries" / "ga_gdr.json"
    entry = read_entry(path)
    parts = []
    for part in entry.runs:
        records = list(part.samples["made_knowmem_f"])
        for i, output in enumerate([HOSTILE + "</script>", "word " * 25_000]):
            old = records[i]
            assert isinstance(old, GenerationRecord)
            scores = score_output(output, old.target)
            score = scores.pop("rougeL")
            update = {"output": output, "score": score, "scores": scores}
            records[i] = old.model_copy(update=update)
        value = 100 * sum(r.score for r in records if isinstance(r, GenerationRecord)) / ROWS
        result = part.run.tasks["made_knowmem_f"]
        result = result.model_copy(
            update={"value": value, "records_sha256": sha256(encode_records(records)).hexdigest()}
        )
        run = part.run.model_copy(update={"tasks": part.run.tasks | {"made_knowmem_f": result}})
        samples = part.samples | {"made_knowmem_f": tuple(records)}
        parts.append(part.model_copy(update={"run": run, "samples": samples}))
    forged: BoardEntry = entry.model_copy(update={"runs": tuple(parts)})
    path.write_text(entry_json(forged), encoding="ascii")
    _write_page(board)
    return board


def _yaml(text: str) -> str:
    import json

    return json.dumps(text)


def _write_page(board: Path) -> None:
    """The page without the verification, which the changed means would not pass."""
    from unlearnbench.boards import read_board
    from unlearnbench.boards.entry import read_entry
    from unlearnbench.boards.page import page
    from unlearnbench.boards.ranking import rank_entries

    found = read_board(board)
    entries = [read_entry(path) for path in sorted(found.entries.glob("*.json"))]
    (board / "index.html").write_text(page(rank_entries(found, entries)), encoding="utf-8")


@pytest.fixture(scope="module")
def honest_board(make_board: MakeBoard) -> Path:
    board = make_board(names=SMALL)
    assert call("leaderboard", "build", str(board)) == 0
    return board


class Opened:
    """A page, what its console said and what it asked the network for."""

    def __init__(self, browser: Any, board: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("dialog", lambda d: self.errors.append("dialog"))
        self.page.add_init_script("window.boomed = 0; window.boom = () => { window.boomed += 1; };")
        self.url = (board / "index.html").as_uri()
        self.page.goto(self.url)

    def column(self, number: int) -> list[str]:
        cells = self.page.locator(f"#table tbody tr:not([hidden]) > :nth-child({number})")
        return [text.strip() for text in cells.all_inner_texts()]

    def close(self) -> None:
        assert self.errors == []
        assert [u for u in self.requests if u.split("#")[0] != self.url] == []
        self.page.close()


@pytest.fixture
def opened(browser: Any, honest_board: Path) -> Iterator[Opened]:
    found = Opened(browser, honest_board)
    yield found
    found.close()


def test_sorting_by_a_number_and_back(opened: Opened) -> None:
    head = opened.page.locator("#table th", has_text="value")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    values = [float(text.split()[0]) for text in opened.column(5)]
    assert values == sorted(values)
    head.locator("button").press("Enter")  # by keyboard
    assert head.get_attribute("aria-sort") == "descending"
    values = [float(text.split()[0]) for text in opened.column(5)]
    assert values == sorted(values, reverse=True)


def test_what_is_missing_sorts_last_both_ways(opened: Opened) -> None:
    head = opened.page.locator("#table th", has_text="recovered").first
    for _ in range(2):
        head.locator("button").click()
        column = opened.column(9)
        first = column.index("-")
        assert first > 0
        assert set(column[first:]) == {"-"}


def test_filtering(opened: Opened) -> None:
    before = len(opened.column(1))
    opened.page.fill("#filter", "ga_gdr int4")
    assert set(opened.column(2)) == {"ga_gdr"}
    assert set(opened.column(4)) == {"rtn-int4"}
    assert opened.page.inner_text("#count") == f"3 of {before} rows"
    opened.page.fill("#filter", "nothing like that")
    assert opened.column(1) == []


def test_an_entry_opens_with_its_plot_and_every_number_links_to_its_run(opened: Opened) -> None:
    opened.page.locator(".places a", has_text="ga_gdr").click()
    details = opened.page.locator("details[open]")
    assert details.count() == 1
    assert details.locator("svg").is_visible()
    link = opened.page.locator("#table tbody td.number a").first
    anchor = link.get_attribute("href")
    assert anchor is not None
    link.click()
    facts = opened.page.locator(f'[id="{anchor[1:]}"]')
    assert facts.is_visible()
    assert "weights SHA-256" in facts.inner_text()
    links = opened.page.locator("#table tbody td.number a").all()
    assert len(links) > 20
    for target in {str(a.get_attribute("href"))[1:] for a in links}:
        assert opened.page.locator(f'[id="{target}"]').count() == 1


def test_the_viewer_puts_outputs_side_by_side_and_marks_the_overlap(opened: Opened) -> None:
    opened.page.locator(".places a", has_text="ga_gdr").click()
    details = opened.page.locator("details[open]")
    options = details.locator("select option").all_inner_texts()
    assert len(options) == 1 + 2 * ROWS
    details.locator("select").select_option(index=1)
    titles = details.locator(".viewer h3").all_inner_texts()
    assert titles[:2] == ["Prompt", "Reference"]
    assert [t.split(":")[0] for t in titles[2:]] == ["none", "rtn-int4", "rtn-int8"]
    reference = details.locator(".viewer pre").nth(1).inner_text().split()
    for number in range(2, 5):
        box = details.locator(".viewer pre").nth(number)
        marked = box.locator("mark").all_inner_texts()
        assert marked == [word for word in box.inner_text().split() if word in reference]


def test_dark_and_light(browser: Any, honest_board: Path) -> None:
    def back(found: Opened) -> int:
        colour = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    for scheme, dark in [("dark", True), ("light", False)]:
        found = Opened(browser, honest_board, color_scheme=scheme)
        assert (back(found) < 200) is dark
        found.page.click("#theme")
        assert (back(found) < 200) is not dark
        found.close()


def test_on_a_phone_nothing_but_the_table_scrolls_sideways(
    browser: Any, honest_board: Path
) -> None:
    found = Opened(browser, honest_board, viewport={"width": 360, "height": 740})
    width = found.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    found.close()


def test_hostile_texts_are_inert(browser: Any, hostile_board: Path) -> None:
    found = Opened(browser, hostile_board)
    found.page.locator(".places a", has_text="ga_gdr").click()
    details = found.page.locator("details[open]")
    details.locator("select").select_option(index=1)
    shown = details.locator(".viewer pre").nth(2).inner_text()
    assert shown.startswith("<script>boom()</script><img src=x")
    assert "\\u202e" in shown
    details.locator("select").select_option(index=2)
    long = details.locator(".viewer pre").nth(2).inner_text()
    assert len(long) >= LONGEST
    assert found.page.evaluate("window.boomed") == 0
    assert found.page.locator("img").count() == 0
    assert found.page.locator("script").count() == 2
    everything = found.page.content()
    assert "\u202e" not in everything
    assert "\u200f" not in everything
    assert "<script>boom" not in everything.replace(" ", "")
    hrefs = found.page.locator("a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert all(href.startswith("#") for href in hrefs)
    found.close()


def test_json_cannot_end_its_script_element() -> None:
    text = _json(["</script>", "<!--", "&amp;", "\u2028"])
    assert not set(text) & set("<>&\u2028")


def test_screenshots_for_the_docs(browser: Any, honest_board: Path, tmp_path: Path) -> None:
    """Written to docs where UNLEARNBENCH_SCREENSHOTS names a folder."""
    folder = Path(os.environ.get("UNLEARNBENCH_SCREENSHOTS") or tmp_path)
    for scheme in ("light", "dark"):
        found = Opened(browser, honest_board, color_scheme=scheme)
        found.page.screenshot(path=str(folder / f"board-{scheme}.png"))
        found.close()
        assert (folder / f"board-{scheme}.png").stat().st_size > 10_000
