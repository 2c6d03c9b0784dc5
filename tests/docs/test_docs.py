"""scripts/docs.py: the pages that it makes are the ones in docs, and it says so where they are not."""

import re
from pathlib import Path

import click
import pytest

from polyhead.catalog import mechanisms
from scripts import docs

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


def test_readme_shows_the_example_as_it_comes_out() -> None:
    def masked(text: str) -> str:
        return re.sub(r"\d\.\de-\d\d", "ROUNDING", text)

    shown = docs.fenced("text", f"$ polyhead compare\n{docs.command_output('polyhead compare')}")
    assert masked(shown) in masked((docs.ROOT / "README.md").read_text(encoding="utf-8")), "type: make docs"


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


# --- outputs in pages written by hand -------------------------------------------------------------

PAGE = """\
# By hand

```python
import click

number = 41
click.echo("never shown")
```

```python
print(number + 1, "  ")
```

<!-- >>> -->
```text
stale
```

<!-- $ polyhead show mha --json -->
```text
```

```text
left alone
```
"""


def test_outputs_are_written_below_their_markers() -> None:
    text = docs.with_outputs(PAGE)
    assert "<!-- >>> -->\n```text\n42\n```\n" in text
    assert '<!-- $ polyhead show mha --json -->\n```text\n$ polyhead show mha --json\n{\n  "schema": 1,' in text
    assert "stale" not in text
    assert text.endswith("```text\nleft alone\n```\n")
    assert docs.with_outputs(text) == text


def test_a_table_of_models_is_written_below_its_marker() -> None:
    text = docs.with_outputs("<!-- models gemma-2-2b -->\n| stale |\n\nlater\n")
    marker, header, _, first, second, *after = text.splitlines()
    assert (marker, after) == ("<!-- models gemma-2-2b -->", ["", "later"])
    assert header.startswith("| model | layers | storage | position | pattern | weighting |")
    assert first.startswith("| Gemma 2 2B | 13: 0, 2, … | 8 heads, 4 kv, width 256 |")
    assert "causal, window 4,096 | softmax, cap 50" in first
    assert second.startswith("|  | 13: 1, 3, … |")
    assert docs.with_outputs(text) == text


def test_a_page_without_markers_stays_as_it_is() -> None:
    assert docs.with_outputs("# A\n\n```text\nb\n```\n") == "# A\n\n```text\nb\n```\n"


def test_blocks_run_in_one_empty_folder_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = 'import os, pathlib\nprint(os.listdir("."))\npathlib.Path("a.json").write_text("no spec")\n'
    page = f"```python\n{code}```\n<!-- >>> -->\n```text\n```\n<!-- $ polyhead show a.json -->\n```text\n```\n"
    with pytest.raises(ValueError, match=r"`polyhead show a.json` exits with 2: polyhead: a.json: this is not JSON"):
        docs.with_outputs(page)
    assert "```text\n[]\n```" in docs.with_outputs(page.split("<!-- $")[0])
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == tmp_path


def test_a_program_that_is_not_ours_is_not_run() -> None:
    with pytest.raises(ValueError, match="`rm a` is no command of polyhead"):
        docs.with_outputs("<!-- $ rm a -->\n```text\n```\n")


def test_python_that_fails_fails_the_page() -> None:
    with pytest.raises(ZeroDivisionError):
        docs.with_outputs("```python\n1 / 0\n```\n")


def test_python_of_a_page_means_what_it_means_in_a_file_of_its_own() -> None:
    code = "class A:\n    size: int\n\n\nprint(A.__annotations__)\n"
    assert "{'size': <class 'int'>}" in docs.with_outputs(f"```python\n{code}```\n<!-- >>> -->\n```text\n```\n")


def test_exercises_show_what_the_textbook_asks_for() -> None:
    text = docs.PAGES["docs/exercises.md"]()
    assert re.findall(r"^## (\d)\.", text, re.MULTILINE) == ["1", "2", "3", "4", "5"]
    assert not re.search(r"```text\n```", text)
    for figure in (
        "40.3% on 'The', and 24.4% on 'sat'",
        "54.2% on 'sat'",
        "1.35",
        "largest 0.300",
        "sum  0.500",
        "64 GiB in 32",
    ):
        assert figure in text
