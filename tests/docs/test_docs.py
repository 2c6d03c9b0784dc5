"""scripts/docs.py: the pages that it makes are the ones in docs, and it says so where they are not."""

import re
from pathlib import Path

import click
import pytest
from scripts import docs

from polyhead.catalog import mechanisms

TOY = {"docs/one.md": lambda: "one\n", "docs/two.md": lambda: "two\n"}


@click.group()
def toy() -> None:
    """Play."""


@toy.group()
def inner() -> None:
    """Play inside."""


@inner.command()
@click.option("--loud", is_flag=True, help="Make noise.")
def deep(loud: bool) -> None:
    """Play deep inside."""


@toy.command(hidden=True)
def secret() -> None:
    """Stay unseen."""


@pytest.mark.parametrize("name", docs.PAGES)
def test_page_is_fresh(name: str) -> None:
    assert (docs.ROOT / name).read_text(encoding="utf-8") == docs.PAGES[name](), "type: make docs"


def test_page_of_mechanisms_has_all_fifteen() -> None:
    text = docs.mechanisms_page()
    for entry in mechanisms():
        section = text.split(f"\n## {entry.number}. {entry.title}\n")[1].split("\n## ")[0]
        for part in (entry.what, entry.latex, entry.gains, entry.loses, entry.when, repr(entry.spec)):
            assert part in section
        assert f"| {entry.number} | [{entry.name}](#" in text


def test_links_of_the_table_have_their_headings() -> None:
    text = docs.mechanisms_page()
    headings = [re.sub(r"[^\w -]", "", line.lower()) for line in re.findall(r"^## (.*)$", text, re.MULTILINE)]
    assert re.findall(r"\]\(#([^)]*)\)", text) == [heading.replace(" ", "-") for heading in headings]


def test_rows_of_the_table_are_as_wide_as_its_head() -> None:
    rows = [line for line in docs.mechanisms_page().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 15
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}


def test_each_page_says_what_makes_it() -> None:
    for text in (docs.mechanisms_page(), docs.cli_page(toy)):
        assert "`python scripts/docs.py`" in "\n".join(text.splitlines()[:4])


def test_help_of_every_command_at_every_depth_but_the_hidden() -> None:
    text = docs.cli_page(toy)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "polyhead",
        "polyhead inner",
        "polyhead inner deep",
    ]
    assert "Usage: polyhead inner deep [OPTIONS]" in text
    assert "--loud" in text
    assert "secret" not in text


def test_help_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = docs.cli_page(toy)
    monkeypatch.setenv("COLUMNS", "40")
    assert docs.cli_page(toy) == before


def test_writes_and_then_finds_nothing_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main([], TOY, tmp_path) == 0
    assert (tmp_path / "docs/one.md").read_text(encoding="utf-8") == "one\n"
    assert docs.main(["--check"], TOY, tmp_path) == 0
    assert capsys.readouterr().err == ""


def test_check_names_what_is_stale_or_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs.main([], TOY, tmp_path)
    (tmp_path / "docs/two.md").write_text("too\n", encoding="utf-8")
    assert docs.main(["--check"], TOY, tmp_path) == 1
    assert capsys.readouterr().err == "docs/two.md is stale; type: make docs\n"
    (tmp_path / "docs/one.md").unlink()
    assert docs.main(["--check"], TOY, tmp_path) == 1
    assert "docs/one.md is stale" in capsys.readouterr().err
    assert (tmp_path / "docs/two.md").read_text(encoding="utf-8") == "too\n"
