"""What the tests of the page in a browser share: reading its numbers as somebody would who looks at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyhead.compare import AttentionComparison
from polyhead.compare.table import Row

Visit = Callable[..., Any]
"""Open the page: ``visit(fragment="", base=..., **context) -> playwright's Page``."""

READ_OUTPUTS = """() => Object.fromEntries([...document.querySelectorAll("article[data-mechanism]")].map(panel =>
  [panel.dataset.mechanism, [...panel.querySelectorAll("[data-output]")].map(cell => cell.textContent)]))"""

READ_TABLE = """() => Object.fromEntries([...document.querySelectorAll("tr[data-mechanism]")].map(row =>
  [row.dataset.mechanism, [...row.querySelectorAll("td")].map(cell => cell.textContent)]))"""


def four(values: Any) -> list[str]:
    """Return numbers as the page writes them: four decimals, a minus that is one, and no zero with a sign."""
    return [f"{value:.4f}".replace("-0.0000", "0.0000").replace("-", "−") for value in values]


def expected_outputs(comparison: AttentionComparison, token: int) -> dict[str, list[str]]:
    """Return what each panel's output should read."""
    return {row.name: four(row.output) for row in comparison.table(token)}


def expected_table(comparison: AttentionComparison, token: int) -> dict[str, list[str]]:
    """Return what each row of the table should read: weights, output, distance."""
    return {row.name: _cells(row) for row in comparison.table(token)}


def _cells(row: Row) -> list[str]:
    return four([*row.weights, *row.output, row.distance])


def settled(page: Any, read: str, wanted: Any, timeout: float = 10_000) -> Any:
    """Read the page until it reads as wanted, or long enough; return what it read last."""
    for _ in range(int(timeout / 50)):
        if page.evaluate(read) == wanted:
            break
        page.wait_for_timeout(50)
    return page.evaluate(read)
