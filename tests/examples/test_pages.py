"""What the pages tell people to type must run."""

import re
from pathlib import Path

import pytest

import polyhead as ph
from scripts import docs

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "DESIGN.md", "CONTRIBUTING.md")
GUIDES = tuple(
    f"docs/{name}.md" for name in ("exercises", "layer", "plan", "real-models", "run-your-model", "your-own")
)
"""Pages that tests/docs runs, from top to bottom."""


def python_blocks() -> list[tuple[str, str]]:
    """Return every Python block of the pages, each with a name."""
    found = []
    for page in PAGES:
        blocks = re.findall(
            r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        found += [(f"{page}:{index}", block) for index, block in enumerate(blocks)]
    return found


@pytest.mark.parametrize("source", [pytest.param(block, id=name) for name, block in python_blocks()])
def test_python_of_the_pages_runs(source: str) -> None:
    exec(compile(source, "page", "exec"), {"__name__": "page"})  # an error, or an assert of the page, fails the test


def test_readme_shows_what_runs() -> None:
    assert sum(name.startswith("README.md") for name, _ in python_blocks()) >= 3


def test_links_between_pages_lead_somewhere() -> None:
    for page in (*PAGES, *GUIDES):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}, which does not exist"


@pytest.mark.parametrize("page", GUIDES)
def test_outputs_of_the_guides_are_checked(page: str) -> None:
    assert page in docs.PAGES
    text = (ROOT / page).read_text(encoding="utf-8")
    written = [block for block in docs.RUN.finditer(text) if block["marker"]]
    assert len(re.findall(r"^```text$", text, re.MULTILINE)) == len(written)


@pytest.mark.parametrize("page", GUIDES)
def test_guides_show_nothing_that_fails(page: str) -> None:
    """An output is written as it comes, so a law that broke would stand there as False."""
    outputs = re.findall(r"^```text\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert all(outputs)
    assert not any("False" in output or "nan" in output.split() for output in outputs)


@pytest.mark.parametrize(
    ("page", "words", "at_least"),
    [
        ("docs/layer.md", "largest difference below 1e-5: True", 7),
        ("docs/layer.md", r"(Growing|Rolling|State)Cache +\d+ +\d+   True", 4),
        ("docs/your-own.md", "^True$", 8),
        ("docs/run-your-model.md", "(same text|registered|adopted|beams): +True", 8),
        ("docs/run-your-model.md", "^UnsupportedError: ", 3),
        ("docs/real-models.md", "^equal: True$", 1),
    ],
)
def test_guides_show_what_they_are_for(page: str, words: str, at_least: int) -> None:
    assert len(re.findall(words, (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)) >= at_least


def outside_of_outputs(text: str) -> str:
    """Return a page's prose, without its code, its outputs and its tables."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`|^\|.*?$|\]\([^)]*\)", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", prose)


NAMES = r"LLaMA 3(?:\.1)?(?: 8B)?|Qwen2(?: 7B)?|Qwen-2|DeepSeek-V2|bfloat16|128K|T5"


def test_prose_on_real_models_types_no_number() -> None:
    text = (ROOT / "docs/real-models.md").read_text(encoding="utf-8")
    assert re.findall(r"\d", re.sub(NAMES, "", outside_of_outputs(text))) == []
    assert re.findall(r"\d+", outside_of_outputs("12 `13` ```\n```\n| 14 |\n<!-- 15 -->\n```text\n16\n```\n")) == ["12"]


def test_every_published_model_stands_in_a_table_of_the_page_on_them() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/real-models.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted({*rows} - {"model", "---", ""}) == sorted(model.title for model in ph.models())
