"""The page of results: made from the records that lie beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from polyhead.bench import page
from polyhead.bench.records import Record
from polyhead.errors import CheckpointError


def test_the_page_and_its_plots_are_made_from_the_records(record: Record, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(record.to_json(), encoding="utf-8")
    assert page.write(tmp_path) == [tmp_path / "results.md", tmp_path / "results" / "a.png"]
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert record.to_markdown() in text
    assert "](results/a.png)" in text
    assert (tmp_path / "results" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_of_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no record; type: make bench"):
        page.write(tmp_path)


OTHER = '{"schema": 1, "benchmark": "decode_mla", "rows": []}'


def test_the_record_of_another_benchmark_is_left_alone(record: Record, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "other.json").write_text(OTHER, encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds no record"):
        page.write(tmp_path)
    still = dataclasses.replace(record, rows=record.rows[:1])
    (tmp_path / "results" / "a.json").write_text(still.to_json(), encoding="utf-8")
    assert page.write(tmp_path) == [tmp_path / "results.md"]
    assert "decode_mla" not in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_the_command_ends_with_the_error_alone(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^polyhead: .* holds no record; type: make bench$"):
        page.main([str(tmp_path)])


def test_a_page_names_the_record_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"bad\.json: this is no record"):
        page.write(tmp_path)
