"""The page that is committed: of this encyclopaedia, small, and without a way to the outside."""

from __future__ import annotations

import gzip
import re

import pytest

from polyhead import page
from scripts import page as building

NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml", "http://www.w3.org/1998/Math/MathML"}


def test_the_encyclopaedia_in_it_is_the_catalogues() -> None:
    found = re.search(r'<meta name="polyhead-catalogue" content="([0-9a-f]+)"', page.html())
    assert found is not None
    assert found[1] == building.digest(), "the catalogue has changed; type: make page"


def test_it_is_small_enough_to_travel_with_every_notebook() -> None:
    assert len(gzip.compress(page.html().encode(), 9)) < 100_000


def test_everything_stands_in_it() -> None:
    text = page.html()
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=(?!\"data:)", text)
    addresses = {found.rstrip(".") for found in re.findall(r"https?://[\w./-]+", text)}
    assert {one for one in addresses if "svelte.dev" not in one} <= NAMESPACES  # Svelte's errors name their page


def test_without_node_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert building.main(["--check"]) == 1
    assert "building the page takes Node 20 or newer" in capsys.readouterr().err
