"""Find a Chromium for the tests of the page and for its pictures, or fetch one.

``python scripts/browser.py`` prints the path of a browser. Looked for are the system's Chromium or Chrome and what
Playwright has downloaded; where there is none Playwright downloads one, or, for root on a Debian, apt-get installs one.
The variable POLYHEAD_BROWSER names another. Without any it says what to type, and exits with 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--font-render-hinting=none",
)
"""How it is started: for pages of this machine alone, and without asking anybody for news of itself."""

INSTALL = "install Chromium or Chrome, or type: playwright install chromium (on Debian: apt-get install chromium)"
FETCHING_SECONDS = 300


def find() -> Path | None:
    """Return a browser of this machine, or None."""
    return next((path for path in _candidates() if path.is_file()), None)


def _candidates() -> Iterator[Path]:
    if named := os.environ.get("POLYHEAD_BROWSER"):
        yield Path(named)
    yield from (Path(found) for name in NAMES if (found := shutil.which(name)))
    yield MAC
    if (own := _playwrights_own()) is not None:
        yield own


def _playwrights_own() -> Path | None:
    """Return where Playwright's own browser lies or would lie; None without Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return None
    with sync_playwright() as playwright:
        return Path(playwright.chromium.executable_path)


def fetch() -> Path | None:
    """Get a browser where there is none, by the first way that works; return it, or None."""
    for command in _ways():
        print(f"==> {' '.join(command)}", file=sys.stderr)
        try:
            subprocess.run(command, check=True, stdout=sys.stderr, timeout=FETCHING_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"    {error}", file=sys.stderr)
        if (found := find()) is not None:
            return found
    return None


def _ways() -> Iterator[Sequence[str]]:
    yield (sys.executable, "-m", "playwright", "install", "chromium")
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        yield ("apt-get", "-qq", "update")
        yield ("apt-get", "-qq", "install", "--yes", "--no-install-recommends", "chromium")


def main() -> int:
    """Print the path of a browser; return the exit code."""
    found = find() or fetch()
    if found is None:
        print(f"no browser was found and none could be fetched; {INSTALL}", file=sys.stderr)
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
