"""How long the dashboard takes from a click to the painted page: ``python -m benchmarks.dashboard``.

A server and a browser run on this machine. Clicks are made inside the page, and the clock stops when the frame has been
painted in which all panels show what was asked for: on the shared example, and on 64 tokens of a text that SmolLM2
reads, of which the fifteen mechanisms that its heads can take are computed. With ``--json`` it prints a record in place
of the table.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyhead.bench.ceilings import machine_line

SCHEMA = 1
WARMUP_TURNS, TURNS = 3, 31
SENTENCE = "The cat sat on the mat because it was tired, and the dog ran to the house where it lived."
TOKENS = 64
LIMITS = {"the shared example": 0.05, f"{TOKENS} tokens through SmolLM2": 0.4}
"""Seconds that the median is meant to be below."""

CLICK = """
({act, watched}) => new Promise((resolve) => {
  const seen = () => [...document.querySelectorAll(watched)].map((one) => one.getAttribute("aria-label")).join("|");
  const before = seen();
  const start = performance.now();
  const look = () => {
    if (seen() === before) return requestAnimationFrame(look);
    setTimeout(() => resolve(performance.now() - start));  // this frame is painted before any timer
  };
  new Function(act)();
  look();
})
"""
"""Acts, waits until what is watched reads otherwise, and then for the frame that shows it to have been painted."""

PANELS = "article [aria-label]"


def pick(turn: int) -> str:
    """Return what chooses another token as the query."""
    return f"const all = document.querySelectorAll('.tokens input'); all[{7 * turn + 3} % all.length].click();"


def slide(selector: str, turn: int, count: int) -> str:
    """Return what moves a slider to another place."""
    return (
        f"const one = document.querySelector('{selector}'); one.value = {turn % count};"
        "one.dispatchEvent(new Event('input', {bubbles: true}));"
    )


@contextmanager
def served() -> Iterator[str]:
    """Serve the dashboard with SmolLM2, and give its address once the model is there."""
    serve = "from polyhead.cli.main import main; main(['serve', '--port', '0', '--model', 'smollm2'])"
    with subprocess.Popen([sys.executable, "-u", "-c", serve], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[1]
            while asked(address, "model")["state"] == "loading":
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def asked(address: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the server."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}api/v1/{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def text_of(address: str, tokens: int) -> str:
    """Return a text of as many of SmolLM2's tokens."""
    source = {"kind": "text", "text": " ".join([SENTENCE] * 5), "layer": 0}
    row = asked(address, "compare", {"source": source, "mechanisms": ["scaled-dot-product"]})["rows"][0]
    return "".join(row["key_tokens"][:tokens]).replace("Ġ", " ")


def measured(page: Any, actions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each action: the median over its turns and the quartiles."""
    for name, act in actions.items():
        turns = []
        for turn in range(WARMUP_TURNS + TURNS):
            taken = page.evaluate(CLICK, {"act": act(turn), "watched": PANELS}) / 1e3
            if turn >= WARMUP_TURNS:
                turns.append(taken)
        low, _, high = statistics.quantiles(turns, n=4)
        yield {"action": name, "seconds": statistics.median(turns), "quartiles": [low, high], "turns": len(turns)}


def rows(address: str, browser: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of both inputs."""
    page = browser.new_page(viewport={"width": 1400, "height": 900}, bypass_csp=True)  # to act by text
    example, model = LIMITS
    page.goto(address)
    page.wait_for_selector("article[data-mechanism=mla]")
    actions = {
        "another token": pick,
        "another window": lambda turn: slide("#sliding-window-window", turn, 5),
        "another λ": lambda turn: slide("#differential-lambda_init", turn / 20, 1),
    }
    yield from ({"input": example, **row} for row in measured(page, actions))
    text = urllib.parse.quote(json.dumps(text_of(address, TOKENS)))
    source = {"kind": "text", "layer": "13", "head": "0", "second_text": "null", "bare": "false", "text": text}
    page.goto(f"{address}#1?{'&'.join(f'matrix.source.{name}={value}' for name, value in source.items())}")
    page.reload()
    page.wait_for_selector(f".tokens label:nth-of-type({TOKENS})")
    actions = {
        "another token": pick,
        "another window": lambda turn: slide("#sliding-window-window", turn, 60),
        "another head": lambda turn: slide("#head", turn + 1, 9),
        "another layer": lambda turn: slide("#layer", turn, 30),
    }
    yield from ({"input": model, **row} for row in measured(page, actions))


def table(record: dict[str, Any]) -> str:
    """Return a record as a Markdown table."""
    cells = [("input", "click", "median ms", "quartiles", "meant to be below"), ("---",) * 5]
    for row in record["rows"]:
        low, high = (f"{1e3 * seconds:.0f}" for seconds in row["quartiles"])
        limit = f"{1e3 * LIMITS[row['input']]:.0f}"
        cells.append((row["input"], row["action"], f"{1e3 * row['seconds']:.0f}", f"{low} to {high}", limit))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main() -> None:
    """Time the clicks and print them."""
    from playwright.sync_api import sync_playwright

    from scripts.browser import ARGUMENTS, INSTALL, find

    path: Path | None = find()
    if path is None:
        sys.exit(f"no browser was found; {INSTALL}")
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        found = list(rows(address, browser))
        browser.close()
    record = {"schema": SCHEMA, "benchmark": "dashboard", "machine": machine_line(1), "rows": found}
    text = json.dumps(record, indent=2, ensure_ascii=False) if "--json" in sys.argv else table(record)
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main()
