"""The page in headless Chromium, opened from a file. Skips, and says so, where no browser is."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.screenshots import screenshots
from tests.boards.conftest import BOARD, ROWS, MakeBoard
from tests.browser import overlaps
from tests.cli.test_main import call
from tests.toy_runs import Bench
from unlearnbench.boards.page import _json
from unlearnbench.boards.view import LONGEST

SMALL = ("target", "retrained", "ga_gdr", "sure")
HOSTILE = "<script>boom()</script><img src=x onerror=boom()>\"'`javascript:boom()\u202ee\u200f"


@pytest.fixture(scope="module")
def hostile_board(make_board: MakeBoard, bench: Bench) -> Path:
    """A board whose title, notes and model outputs are hostile, and one output of 100 kB."""
    from unlearnbench.boards.entry import BoardEntry, entry_json, read_entry
    from unlearnbench.metrics.rouge import score_output
    from unlearnbench.results import GenerationRecord
    from unlearnbench.runs.folder import encode_records

    text = BOARD.replace("title: A board of made models", f"title: {json.dumps(HOSTILE)}")
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

    def __init__(self, browser: Any, path: Path, address: str = "", **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("dialog", lambda d: self.errors.append("dialog"))
        self.page.add_init_script("window.boomed = 0; window.boom = () => { window.boomed += 1; };")
        self.url = path.as_uri()
        self.page.goto(self.url + address)

    def column(self, name: str) -> list[str]:
        """A column's cells as they are shown, without their intervals."""
        heads = [each.strip() for each in self.page.locator("#table th button").all_inner_texts()]
        number = 1 + [head.split(" \u2191")[0].split(" \u2193")[0] for head in heads].index(name)
        rows = "#table > tbody > tr:not(.opened)"
        cells = self.page.locator(f"{rows} > :nth-child({number})").all_inner_texts()
        return [text.strip().split("[")[0].strip() for text in cells]

    def row(self, entry: str, task: str, condition: str) -> Any:
        """A row of the table."""
        rows = self.page.locator("#table > tbody > tr:not(.opened)")
        for text in (entry, task, condition):
            rows = rows.filter(has=self.page.get_by_text(text, exact=True))
        return rows

    def open_row(self, entry: str, task: str, condition: str) -> Any:
        """What a row opens to."""
        self.row(entry, task, condition).locator(".open").click()
        return self.page.locator("#table .opened .detail")

    def close(self) -> None:
        assert self.errors == []
        assert [u for u in self.requests if u.split("#")[0] != self.url] == []
        self.page.close()


def numbers(texts: list[str]) -> list[float]:
    return [float(t.replace("\u2212", "-").strip("*% ")) for t in texts if t != "-"]


# CI sees every interaction in all four; the default suite in the first.
VIEWS = [(1400, "light"), (1400, "dark"), (360, "light"), (360, "dark")]
MARKS: list[Any] = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(
    params=[pytest.param(view, marks=MARKS if i else []) for i, view in enumerate(VIEWS)],
    ids=lambda view: f"{view[0]}-{view[1]}",
)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    width, scheme = request.param
    return {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}


@pytest.fixture
def opened(browser: Any, honest_board: Path, options: dict[str, Any]) -> Iterator[Opened]:
    found = Opened(browser, honest_board / "index.html", **options)
    yield found
    found.close()


def test_the_finding_is_the_first_thing_said(opened: Opened) -> None:
    said = opened.page.locator("#finding").inner_text()
    rows = csv_rows(opened)
    row = rows["ga_gdr", "made_knowmem_f", "rtn-int4"]
    full = rows["ga_gdr", "made_knowmem_f", "none"]
    assert said.startswith(
        "At rtn-int4, what was forgotten comes back in 1 of 2 entries: in ga_gdr"
    )
    assert f"from {float(full['value']):.1f} to {float(row['value']):.1f}" in said
    share, low, high = (100 * float(row[f"recovered{end}"]) for end in ("", "_low", "_high"))
    assert f"{share:.0f}% [{low:.0f}, {high:.0f}]" in said
    assert opened.page.locator("#finding").bounding_box()["y"] < 400


def csv_rows(opened: Opened) -> dict[tuple[str, str, str], dict[str, str]]:
    path = Path(opened.url.removeprefix("file://")).with_name("board.csv")
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    return {(row["entry"], row["task"], row["precision"]): row for row in rows}


def test_the_slopes_show_every_entry_and_both_bands_for_the_task_and_condition(
    opened: Opened,
) -> None:
    page, rows = opened.page, csv_rows(opened)
    for task, condition in [("made_knowmem_f", "rtn-int4"), ("made_privleak", "rtn-int8")]:
        page.select_option("#chart-task", task)
        page.select_option("#chart-at", condition)
        labels = page.locator("#slopes g[role=img]").evaluate_all(
            "all => all.map((one) => one.getAttribute('aria-label'))"
        )
        assert sorted(label.split(".")[0] for label in labels) == ["ga_gdr", "sure"]
        (label,) = [label for label in labels if label.startswith("ga_gdr")]
        now = float(rows["ga_gdr", task, condition]["value"])
        assert f"{condition} {now:.1f}".replace(" -", " \u2212") in label
        texts = page.locator("#slopes text").all_text_contents()
        for name, at in (("target", condition), ("retrained", "none")):
            level = float(rows[name, task, at]["value"])
            assert f"{name} {level:.1f}".replace("-", "\u2212") in texts
            assert page.locator(f"#slopes rect.{name}, #slopes line.{name}").count() > 0
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], "nothing but a scrolled table is wider"


def test_a_cell_of_the_heat_map_says_verdict_share_and_on_focus_its_interval(
    opened: Opened,
) -> None:
    page, row = opened.page, csv_rows(opened)["ga_gdr", "made_knowmem_f", "rtn-int4"]
    cell = page.locator("#heat tr", has_text="ga_gdr").locator("button").nth(1)
    assert cell.inner_text().split("\n")[-1] == "\u25b2 recovers"
    assert cell.inner_text().startswith(f"{100 * float(row['recovered']):.0f}%")
    tip = page.locator("#tip")
    assert not tip.is_visible()
    low, high = (f"{100 * float(row[f'recovered_{end}']):.0f}" for end in ("low", "high"))
    cell.hover()
    assert f"[{low}, {high}]" in tip.inner_text()
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    # By keyboard: one stop for the whole map, arrows within it.
    page.locator("#heat button[tabindex='0']").focus()
    assert tip.is_visible()
    assert page.locator("#heat button[tabindex='0']").count() == 1
    for key in ("End", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "ArrowRight"):
        page.keyboard.press(key)
    assert "rtn-int4" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    cell.click()
    assert page.locator("#table .opened").count() == 1
    assert "open=ga_gdr%7Emade_knowmem_f%7Ertn-int4" in page.url


def test_labels_of_the_front_do_not_overlap_and_each_point_can_be_reached(opened: Opened) -> None:
    page = opened.page
    boxes = page.locator("#front text.label").evaluate_all(
        "all => all.map((one) => { const b = one.getBBox(); return [b.x, b.y, b.x + b.width, "
        "b.y + b.height]; })"
    )
    assert len(boxes) == 2
    assert not overlaps(boxes)
    page.locator("#front g[tabindex='0']").focus()
    assert "worst excess" in page.locator("#tip").inner_text()
    assert page.locator("#front path.front").count() == 1


def test_sorting_by_a_number_and_back_by_keyboard(opened: Opened) -> None:
    head = opened.page.locator("#table th[data-column=value]")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    values = numbers(opened.column("value"))
    assert values == sorted(values)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    values = numbers(opened.column("value"))
    assert values == sorted(values, reverse=True)
    assert head.locator("button").evaluate("one => one === document.activeElement")


def test_what_is_missing_sorts_last_both_ways(opened: Opened) -> None:
    for _ in range(2):
        opened.page.locator("#table th[data-column=recovered] button").click()
        more = opened.page.locator("#more")
        while more.is_visible():
            more.click()
        column = opened.column("came back")
        first = column.index("-")
        assert first > 0
        assert set(column[first:]) == {"-"}


def test_filters_and_search_narrow_the_table_together(opened: Opened) -> None:
    page = opened.page
    page.select_option("#filter-condition", "rtn-int4")
    page.fill("#search", "ga_gdr")
    assert set(opened.column("entry")) == {"ga_gdr"}
    assert set(opened.column("condition")) == {"rtn-int4"}
    assert page.inner_text("#count") == "3 of 30 rows"
    page.select_option("#filter-task", "made_knowmem_f")
    assert opened.column("verdict") == ["\u25b2 recovers"]
    page.click("#clear")
    page.select_option("#filter-family", "none")
    assert set(opened.column("condition")) == {"none"}
    page.click("#clear")
    page.select_option("#filter-verdict", "recovers")
    assert {text.split()[-1] for text in opened.column("verdict")} == {"recovers"}
    page.fill("#search", "nothing like that")
    assert page.inner_text("#count") == "0 of 30 rows"


def test_columns_are_chosen(opened: Opened) -> None:
    page = opened.page
    page.click(".columns summary")
    page.check("#columns input[value=utility]")
    page.uncheck("#columns input[value=excess]")
    heads = page.locator("#table th button").all_inner_texts()
    assert "utility" in heads
    assert "excess" not in heads
    width = page.evaluate("document.documentElement.scrollWidth")
    for box in page.locator("#columns input").all():
        box.check()
    assert page.evaluate("document.documentElement.scrollWidth") <= max(
        width, page.viewport_size["width"]
    )


def test_a_row_opens_to_metrics_provenance_and_samples_with_their_overlap(opened: Opened) -> None:
    opened.page.fill("#search", "ga_gdr int4")
    detail = opened.open_row("ga_gdr", "made_knowmem_f", "rtn-int4")
    metrics = detail.locator("table tbody tr").all_inner_texts()
    assert [text.split()[0] for text in metrics] == [
        "made_knowmem_f",
        "made_knowmem_r",
        "made_privleak",
    ]
    row = csv_rows(opened)["target", "made_knowmem_f", "rtn-int4"]
    value, low, high = (float(row[f"value{end}"]) for end in ("", "_low", "_high"))
    assert f"{value:.1f} [{low:.1f}, {high:.1f}]" in metrics[0]
    assert "weights SHA-256" in detail.locator(".facts").inner_text()
    assert detail.locator("select option").count() == ROWS
    titles = detail.locator(".viewer h3").all_inner_texts()
    assert titles[:2] == ["Prompt", "Reference"]
    assert [t.split(":")[0] for t in titles[2:]] == ["full precision", "rtn-int4", "rtn-int8"]
    reference = detail.locator(".viewer pre").nth(1).inner_text().split()
    marked = []
    for number in range(2, 5):
        box = detail.locator(".viewer pre").nth(number)
        marked.append(box.locator("mark").all_inner_texts())
        assert marked[-1] == [word for word in box.inner_text().split() if word in reference]
    assert marked[1], "what rises most stands first"
    detail.locator("select").select_option(index=3)
    opened.row("ga_gdr", "made_knowmem_f", "rtn-int4").locator(".open").press("Enter")
    assert opened.page.locator("#table .opened").count() == 0


@pytest.mark.slow
@pytest.mark.ci
def test_a_view_can_be_linked(browser: Any, opened: Opened, options: dict[str, Any]) -> None:
    page = opened.page
    page.select_option("#chart-task", "made_privleak")
    page.select_option("#chart-at", "rtn-int8")
    page.fill("#search", "ga_gdr")
    page.select_option("#filter-condition", "rtn-int4")
    page.locator("#table th[data-column=value] button").click()
    opened.open_row("ga_gdr", "made_knowmem_f", "rtn-int4").locator("select").select_option(index=2)
    path, address = page.url.split("#")
    other = Opened(browser, Path(path.removeprefix("file://")), f"#{address}", **options)
    again = other.page
    for look in ("#table", "#slopes", "#heat", "#count"):
        assert again.locator(look).inner_text() == page.locator(look).inner_text()
    assert again.input_value("#search") == "ga_gdr"
    assert again.locator(".viewer pre").count() == 5
    again.evaluate("location.hash = ''")
    again.wait_for_function("document.getElementById('count').textContent === '30 of 30 rows'")
    again.evaluate("location.hash = '#task=nothing&open=no~such~row&sort=no:up'")
    again.wait_for_function("location.hash.includes('nothing')")
    other.close()


def test_downloads_hold_what_the_csv_holds(opened: Opened) -> None:
    page = opened.page
    with page.expect_download() as got:
        page.click("#csv")
    text = Path(got.value.path()).read_text(encoding="utf-8")
    mine = {(r["entry"], r["task"], r["condition"]): r for r in csv.DictReader(io.StringIO(text))}
    own = csv_rows(opened)
    assert mine.keys() == own.keys()
    for key, row in mine.items():
        for name in ("value_low", "excess", "utility", "change_high", "recovered"):
            assert (row[name] == "") is (own[key][name] == "")
            if row[name]:
                assert float(row[name]) == float(own[key][name])
        assert row["verdict"] == own[key]["verdict"]
        assert row["required"] == own[key]["required"]
    page.fill("#search", "sure")
    with page.expect_download() as got:
        page.click("#csv")
    assert len(Path(got.value.path()).read_text(encoding="utf-8").splitlines()) == 1 + 9
    with page.expect_download() as got:
        page.click("#json")
    found = json.loads(Path(got.value.path()).read_text(encoding="utf-8"))
    assert len(found["rows"]["value"]) == len(own)
    assert "texts" not in found


@pytest.mark.slow
@pytest.mark.ci
def test_axe_finds_nothing_serious(opened: Opened) -> None:
    opened.open_row("ga_gdr", "made_knowmem_f", "rtn-int4")
    opened.page.click(".columns summary")
    assert axe(opened.page) == []


def axe(page: Any) -> list[str]:
    """What axe-core holds to be serious or critical."""
    script = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{each['id']}: {node['target']}: {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def test_the_pages_colours_follow_the_system(browser: Any, honest_board: Path) -> None:
    found = Opened(browser, honest_board / "index.html", color_scheme="light")
    backs = []
    for scheme in ("light", "dark"):
        found.page.emulate_media(color_scheme=scheme)
        colour = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        backs.append(sum(map(int, re.findall(r"\d+", colour)[:3])))
    assert backs[0] > 600 > 200 > backs[1]
    found.close()


@pytest.mark.slow
@pytest.mark.ci
def test_printed_it_has_its_charts_and_no_controls(browser: Any, honest_board: Path) -> None:
    found = Opened(browser, honest_board / "index.html")
    found.page.emulate_media(media="print", color_scheme="dark")
    for hidden in ("#controls", "#filters", "#csv"):
        assert not found.page.locator(hidden).is_visible()
    for shown in ("#finding", "#slopes svg", "#heat table", "#front svg", "#table"):
        assert found.page.locator(shown).is_visible()
    assert found.page.pdf().startswith(b"%PDF")
    found.close()


def test_hostile_texts_are_inert(browser: Any, hostile_board: Path) -> None:
    found = Opened(browser, hostile_board / "index.html")
    assert found.page.locator("h1").inner_text().startswith("<script>boom()</script>")
    detail = found.open_row("ga_gdr", "made_knowmem_f", "rtn-int4")
    samples = detail.locator("select option").all_inner_texts()
    first, second = (
        next(i for i, text in enumerate(samples) if text.startswith(f"forget_qa/{n}:"))
        for n in range(2)
    )
    detail.locator("select").select_option(index=first)
    shown = detail.locator(".viewer pre").nth(2).inner_text()
    assert shown.startswith("<script>boom()</script><img src=x")
    assert "\\u202e" in shown
    detail.locator("select").select_option(index=second)
    long = detail.locator(".viewer pre").nth(2).inner_text()
    assert len(long) >= LONGEST
    found.page.locator("#heat button").first.hover()
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
    made = screenshots(browser, "made", honest_board / "index.html", tmp_path)
    assert [path.name for path in made] == ["board-made-light.png", "board-made-dark.png"]
    assert all(path.stat().st_size > 10_000 for path in made)
