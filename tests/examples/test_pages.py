"""What the pages tell people to type must run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "DESIGN.md", "CONTRIBUTING.md")


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
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / target).exists(), f"{page} links to {target}, which does not exist"
