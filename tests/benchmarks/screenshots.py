"""Pictures of boards' pages for the docs, light and dark.

make demo && make screenshots
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.browser import launched

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "images"


def screenshots(browser: Any, name: str, page: Path, out: Path) -> list[Path]:
    """Write ``board-<name>-<scheme>.png`` of a page; those files."""
    made = []
    for scheme in ("light", "dark"):
        opened = browser.new_page(color_scheme=scheme)
        opened.goto(page.resolve().as_uri())
        made.append(out / f"board-{name}-{scheme}.png")
        opened.screenshot(path=str(made[-1]))
        opened.close()
    return made


def main(demo: str) -> None:
    """Of the demo in a folder, and of the board on SmolLM2."""
    boards = {"demo": Path(demo), "smollm2-news": ROOT / "leaderboards/smollm2-news"}
    with launched() as browser:
        for name, folder in boards.items():
            print(*screenshots(browser, name, folder / "index.html", OUT), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
