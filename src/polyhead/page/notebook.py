"""What stands in a notebook's cell: a still picture and a table, which stay where nobody trusts it, then the live page.

A notebook that is not trusted, and most viewers, keep images whose source is their own data, tables and inline style,
and drop the frame with its scripts.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from polyhead.errors import MissingExtraError, ShapeError, UnsupportedError
from polyhead.files import rendered
from polyhead.page import Answer, frame

TEXT = "padding:2px 8px;text-align:left;vertical-align:top"
NUMBER = "padding:2px 8px;text-align:right;font-variant-numeric:tabular-nums"

LARGEST = 8 * 2**20
"""Bytes of an answer that a notebook keeps at most; it keeps them again for each cell that shows them."""


def bundle(text: str, still: str, state: Mapping[str, Any], answers: Iterable[Answer]) -> dict[str, str]:
    """Return what a notebook shows.

    Args:
        text: Plain text, for where there is no HTML.
        still: The picture and the table.
        state: What the live page shows at first.
        answers: What it may ask.

    Returns:
        The text and the HTML by media type.
    """
    return {"text/plain": text, "text/html": still + frame(state, answers)}


def picture(draw: Callable[[], Any], alt: str) -> str:
    """Return a figure as an HTML image that holds its own data, or nothing where there is none to draw.

    Args:
        draw: Returns a matplotlib figure, or raises MissingExtraError where matplotlib is not installed, ShapeError
            where there is too much to draw, or UnsupportedError where there is nothing.
        alt: What it shows, in words.

    Returns:
        The HTML.
    """
    try:
        figure = draw()
    except (MissingExtraError, ShapeError, UnsupportedError):
        return ""
    data = base64.b64encode(rendered(figure, "svg")).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", *, cell: str = TEXT) -> str:
    """Return an HTML table with inline style.

    Args:
        headings: The columns' headings.
        rows: Texts, which are escaped.
        caption: What it shows.
        cell: The style of a cell: `TEXT` or `NUMBER`.

    Returns:
        The HTML.
    """

    def line(tag: str, texts: Sequence[str]) -> str:
        cells = (f'<{tag} style="{cell}">{html.escape(text)}</{tag}>' for text in texts)
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{line('th', headings)}{body}</table>"
