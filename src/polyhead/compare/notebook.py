"""A comparison in a notebook: one token's picture and table, and the page on which any token can be chosen."""

from __future__ import annotations

from typing import Any

from polyhead.compare.comparison import AttentionComparison
from polyhead.compare.matrices import matrices
from polyhead.compare.plot import embedded
from polyhead.compare.stages import stages
from polyhead.page import Answer
from polyhead.page.notebook import LARGEST, bundle

ASKED: dict[str, Any] = {"source": {"kind": "given"}, "settings": {}, "specs": {}}
"""What the page asks of a comparison that was made in Python, whose input it has no name for."""

ALL_TOKENS = 8
"""Tokens of which each one's stages are told; of more, those of the one that is shown."""

MOST_KEYS = 128
"""Keys of which stages are told at all."""


def of_comparison(comparison: AttentionComparison) -> dict[str, str]:
    """Return a comparison's forms for a notebook, by media type."""
    table = comparison.table()
    text, still = table.to_markdown(), embedded(table) + table.to_html()
    size = 8 * len(table) * len(comparison.tokens) ** 2
    if size > LARGEST:
        why = f"The page that shows every token is left out: its matrices take {size / 2**20:,.0f} MiB."
        return {"text/plain": text, "text/html": f"{still}<p>{why}</p>"}
    names = [row.name for row in table]
    answers = [Answer(path="matrix", body=ASKED, content=matrices(comparison)), *_stages(comparison, names)]
    return bundle(text, still, {"screen": "compare", "matrix": ASKED}, answers)


def _stages(comparison: AttentionComparison, names: list[str]) -> list[Answer]:
    count = len(comparison.tokens)
    if count > MOST_KEYS:
        return []
    positions = range(count) if count <= ALL_TOKENS else [comparison.position()]
    return [
        Answer(
            path="stages",
            body={**ASKED, "mechanism": name, "token": position},
            content=stages(comparison, name, position),
        )
        for name in names
        for position in positions
    ]
