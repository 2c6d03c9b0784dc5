"""A record in a notebook: plot, table, and the page with the record."""

from __future__ import annotations

import dataclasses
import json

import pytest

from polyhead.bench.data import to_page
from polyhead.bench.records import HEADINGS, Record
from tests.frames import taken_apart, without_matplotlib


def test_a_record(record: Record) -> None:
    found = record._repr_mimebundle_()
    assert found["text/plain"] == record.to_markdown()
    cells, held = taken_apart(found)
    assert len(cells.images) == 1
    assert cells.rows == [list(HEADINGS), *(list(line) for line in record.lines())]
    assert held["state"] == {"screen": "measure", "measure": {"record": record.machine, "case": ""}}
    (answer,) = held["answers"]
    assert (answer["path"], answer["body"]) == ("records", None)
    (one,) = answer["json"]["records"]
    assert one == {"name": record.machine, "record": json.loads(json.dumps(to_page(record)))}


def test_what_was_timed_at_one_length_has_no_plot(record: Record) -> None:
    cells, _ = taken_apart(dataclasses.replace(record, rows=record.rows[:1])._repr_mimebundle_())
    assert cells.images == []
    assert len(cells.rows) > 1


def test_what_failed_is_said(record: Record) -> None:
    found = dataclasses.replace(record, failures={"<gqa>": "it differs by 1"})._repr_mimebundle_()
    cells, _ = taken_apart(found)
    assert cells.rows[-2:] == [["failed", "in what"], ["<gqa>", "it differs by 1"]]


def test_without_matplotlib_there_is_no_plot(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    without_matplotlib(monkeypatch)
    cells, _ = taken_apart(record._repr_mimebundle_())
    assert (cells.images, cells.rows[0]) == ([], list(HEADINGS))
