"""The page as one file: what is recorded in it stays data, whatever it says."""

from __future__ import annotations

import base64
import gzip
import html.parser
import json
import re
from typing import Any

import pytest

from polyhead import page
from polyhead.errors import CheckpointError
from polyhead.page import Answer

NASTY = [
    "</script><script>alert(1)</script>",
    "</SCRIPT\t><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>",
    "\"'`&amp;&lt;",
    "line\u2028separator\u2029here",
    "{}{0}%s",
    "\\u003c/script>",
    "\ud800 alone",
    "\x00\x1b",
    "مرحبا 🐈",
]


class Scripts(html.parser.HTMLParser):
    """Collects a page's scripts as a browser's parser would cut them out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[str] = []
        self._open: dict[str, str | None] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self._open = dict(attrs)
            self.found.append((self._open, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            attrs, text = self.found[-1]
            self.found[-1] = (attrs, text + data)


def recorded(text: str) -> Any:
    """Return what a page has recorded, and nothing if it has other scripts or tags than the empty page."""
    parsed, empty = Scripts(), Scripts()
    parsed.feed(text)
    empty.feed(page.html())
    assert parsed.tags == empty.tags
    (data,) = (script for attrs, script in parsed.found if attrs.get("id") == "polyhead-recorded")
    return json.loads(data)


def test_an_empty_page_asks_its_server() -> None:
    assert recorded(page.html()) is None


@pytest.mark.parametrize("text", NASTY)
def test_no_text_breaks_out_of_the_page(text: str) -> None:
    answer = Answer(path="compare", body={"source": {"kind": "text", "text": text}}, content={text: [text]})
    found = recorded(page.filled({"screen": text}, [answer]))
    assert found["state"] == {"screen": text}
    assert found["answers"] == [{"path": "compare", "body": answer.body, "json": {text: [text]}}]
    assert found["version"] == page.version()


def test_recorded_text_is_plain_ascii_without_markup() -> None:
    whole = page.filled({}, [Answer(path="p", body=None, content=NASTY)])
    (line,) = re.findall(r'id="polyhead-recorded">(.*)</script>', whole)
    assert line.isascii()
    assert not set("<>&\n\r") & set(line)


def test_bytes_are_recorded_in_base64() -> None:
    found = recorded(page.filled({}, [Answer(path="matrix", body={}, content=b"\x00\xff<")]))
    (answer,) = found["answers"]
    assert base64.b64decode(answer["base64"]) == b"\x00\xff<"
    assert "json" not in answer


def test_a_number_that_json_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        page.filled({}, [Answer(path="p", body=None, content=float("nan"))])


@pytest.mark.parametrize("count", [0, 2])
def test_a_page_without_its_place_is_an_error(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(page, "html", lambda: page.PLACE.format("null") * count)
    with pytest.raises(CheckpointError, match=f"has {count} places for recorded answers; type: make page"):
        page.filled({}, [])


@pytest.mark.parametrize("text", NASTY)
def test_a_frame_holds_the_filled_page(text: str) -> None:
    answers = [Answer(path="p", body=None, content=text)]
    frame = page.frame({"screen": text}, answers, height=321)
    parsed = Scripts()
    parsed.feed(frame)
    assert parsed.tags == ["iframe"]  # the frame's page is an attribute, and nothing of it is a tag here
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', frame))
    assert attributes["sandbox"] == "allow-scripts allow-downloads"
    assert "height: 321px" in attributes["style"]
    (packed,) = re.findall(r'atob\("([^"]+)"\)', html.unescape(attributes["srcdoc"]))
    assert gzip.decompress(base64.b64decode(packed)).decode() == page.filled({"screen": text}, answers)


def test_the_same_frame_comes_out_twice() -> None:
    assert page.frame({}, []) == page.frame({}, [])
