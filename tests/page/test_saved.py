"""The page as a file: it shows what the served one shows, opened from disk and without asking anybody."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from polyhead import page
from polyhead.catalog import TEXTBOOK
from polyhead.catalog.controls import settings_from
from polyhead.cli.main import cli
from polyhead.compare import AttentionComparison
from polyhead.dashboard.state import defaults
from tests.page.browsing import READ_OUTPUTS, READ_TABLE, Visit, expected_outputs, expected_table, settled


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Export the example's page; return its address."""
    path = tmp_path_factory.mktemp("export") / "example.html"
    result = CliRunner().invoke(cli, ["export", str(path)])
    assert result.exit_code == 0, result.output
    return path.as_uri()


def test_an_exported_file_shows_the_same(visit: Visit, exported: str) -> None:
    page = visit("#1?tables=true", base=exported)
    for position, token in enumerate(AttentionComparison().tokens):
        page.locator(".tokens label", has_text=token).first.click()
        wanted = expected_table(AttentionComparison(), position)
        assert settled(page, READ_TABLE, wanted) == wanted


def test_in_an_exported_file_parameters_can_still_be_moved(visit: Visit, exported: str) -> None:
    page = visit(base=exported)
    page.locator("#sliding-window-window").press("ArrowRight")
    page.locator("#linear-feature_map").select_option("softplus")
    settings = settings_from({"window": 2, "feature_map": "softplus"}, TEXTBOOK)
    wanted = expected_outputs(AttentionComparison(settings=settings), 1)
    assert settled(page, READ_OUTPUTS, wanted) == wanted


@pytest.mark.parametrize("screen", ["matrix", "compose", "plan", "measure", "learn"])
def test_every_screen_is_in_an_exported_file(visit: Visit, exported: str, screen: str) -> None:
    page = visit(f"#1?screen={screen}", base=exported)
    page.wait_for_selector("[data-chart]")
    assert page.locator("[role=alert]").count() == 0


def test_the_page_saves_itself(visit: Visit, tmp_path: Path) -> None:
    page = visit("#1?token=4")
    page.locator("#sliding-window-window").press("ArrowRight")
    wanted = expected_outputs(AttentionComparison(settings=settings_from({"window": 2}, TEXTBOOK)), 4)
    assert settled(page, READ_OUTPUTS, wanted) == wanted
    first = _saved(page, tmp_path / "first.html")
    again = visit(base=first)
    assert settled(again, READ_OUTPUTS, wanted) == wanted
    second = visit(base=_saved(again, tmp_path / "second.html"))  # a saved page saves itself too
    assert settled(second, READ_OUTPUTS, wanted) == wanted


def _saved(page: Any, path: Path) -> str:
    page.locator(".menu summary").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="This page, one HTML file").click()
    download.value.save_as(path)
    return path.as_uri()


def test_a_comparison_shows_the_page_in_a_notebook(visit: Visit, tmp_path: Path) -> None:
    """Its frame is sandboxed as a notebook's, so it has no address, no storage and no server."""
    markup = AttentionComparison()._repr_mimebundle_()["text/html"]
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset='utf-8'>{markup}", encoding="utf-8")
    page = visit(base=path.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator(".tokens label", has_text="mat").click()
    cells = frame.locator("article[data-mechanism=causal] [data-output]")
    assert cells.all_text_contents() == expected_outputs(AttentionComparison(), 4)["causal"]


def test_an_installed_wheel_serves_the_page(tmp_path: Path) -> None:
    """What hatchling packs is all that the page needs, unpacked where nothing else of the source lies."""
    import os
    import subprocess
    import sys
    import urllib.request

    root = Path(__file__).resolve().parents[2]
    pack = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)]
    subprocess.run(pack, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    run = "from polyhead.cli.main import main; main(['serve', '--port', '0'])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    with subprocess.Popen(
        [sys.executable, "-u", "-c", run], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[1]
            with urllib.request.urlopen(address) as answer:
                assert answer.read().decode() == page.filled(defaults(), None)
            with urllib.request.urlopen(f"{address}api/v1/catalogue") as answer:
                assert b'"scaled-dot-product"' in answer.read()
            with urllib.request.urlopen(f"{address}api/v1/records") as answer:
                assert b'"records":[{' in answer.read()
        finally:
            process.terminate()
