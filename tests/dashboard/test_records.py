"""Measurements that come with the package, and those of whoever starts the dashboard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyhead.bench.data import to_page
from polyhead.bench.records import Record
from polyhead.dashboard.answers import Dashboard
from polyhead.dashboard.records import measured, read_record, records
from polyhead.errors import CheckpointError
from tests.dashboard.conftest import Ask

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_the_projects_own_records_are_there() -> None:
    found = dict(measured())
    assert list(found) == ["x86_64-2-threads", "decode-x86_64-2-threads"]  # the documented set first
    for name, record in found.items():
        assert record == Record.from_json((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_they_are_answered_as_the_page_shows_them(ask: Ask) -> None:
    expected = {
        "schema": 1,
        "records": [{"name": name, "record": to_page(record)} for name, record in measured()],
    }
    assert ask("records").json() == json.loads(json.dumps(expected))


def test_ones_own_come_first(tmp_path: Path) -> None:
    record = measured()[0][1]
    (tmp_path / "mine.json").write_text(record.to_json(), encoding="utf-8")
    board = Dashboard.of(more_records=[read_record(tmp_path / "mine.json")])
    assert [entry["name"] for entry in records(board.records)["records"]] == ["mine", *dict(measured())]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "this is no record of polyhead bench"), ('{"schema": 1, "benchmark": "plan"}', "a record of plan")],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (file := tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=rf"x\.json: .*{message}.*; polyhead bench --json writes what is read here"
    ):
        read_record(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*nowhere\.json: No such file or directory"):
        read_record(tmp_path / "nowhere.json")
    (file := tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"bytes\.json: "):
        read_record(file)
