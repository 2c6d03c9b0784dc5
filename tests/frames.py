"""What stands in a notebook's cell, taken apart: what stays where nobody trusts it, and what the live page holds."""

from __future__ import annotations

import base64
import gzip
import html
import html.parser
import json
import re
import xml.etree.ElementTree as ET
from typing import Any

SAFE = {"img", "table", "caption", "tr", "th", "td", "p", "details", "summary"}
"""Tags that notebooks keep without trust."""


class Cells(html.parser.HTMLParser):
    """Collects tags, the texts of a table's cells, and images' sources."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.images: list[str] = []
        self.attributes: set[str] = set()
        self._is_inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "img":
            self.images += [value or "" for name, value in attrs if name == "src"]
        elif tag == "tr":
            self.rows.append([])
        elif tag in {"th", "td"}:
            self.rows[-1].append("")
            self._is_inside = True

    def handle_endtag(self, tag: str) -> None:
        self._is_inside = self._is_inside and tag not in {"th", "td"}

    def handle_data(self, data: str) -> None:
        if self._is_inside:
            self.rows[-1][-1] += data


def taken_apart(bundle: dict[str, str]) -> tuple[Cells, dict[str, Any]]:
    """Return a bundle's still part and what its frame has recorded.

    Args:
        bundle: What ``_repr_mimebundle_`` returned.

    Returns:
        The still part, checked to be what notebooks keep; and ``{"version": ..., "state": ..., "answers": [...]}``.
    """
    assert set(bundle) == {"text/plain", "text/html"}
    still, mark, frame = bundle["text/html"].partition("<iframe ")
    assert mark
    (packed,) = re.findall(r"atob\(&quot;(.+?)&quot;\)", frame)
    page = gzip.decompress(base64.b64decode(packed)).decode()
    (data,) = re.findall(r'id="polyhead-recorded">(.*?)</script>', page)
    cells = Cells(still)
    assert cells.tags <= SAFE
    assert cells.attributes <= {"style", "alt", "src"}
    for image in cells.images:
        kind, _, content = image.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(content)).tag.endswith("svg")
    recorded: dict[str, Any] = json.loads(data)
    return cells, recorded


def without_matplotlib(monkeypatch: Any) -> None:
    """Let matplotlib be not installed."""
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
