"""Records: their JSON, the lines of their table, and Markdown."""

from __future__ import annotations

import dataclasses
import json

import pytest

import polyhead as ph
from polyhead.bench.cases import case
from polyhead.bench.records import HEADINGS, Outcome, Record
from polyhead.bench.timer import Turns
from polyhead.errors import CheckpointError


def test_a_record_comes_back_from_json(record: Record) -> None:
    text = record.to_json()
    assert list(json.loads(text).items())[:2] == [("schema", 1), ("benchmark", "bench")]
    assert Record.from_json(text) == record


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "no record of polyhead bench"),
        ("[]", "no record of polyhead bench"),
        ('{"schema": 2}', "has schema 2, and this version reads 1"),
        ('{"schema": 1, "benchmark": "decode_mla"}', "record of decode_mla, not of polyhead bench"),
        ('{"schema": 1}', "no record of polyhead bench"),
    ],
)
def test_json_that_is_no_record(text: str, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        Record.from_json(text)


def test_the_table_shows_a_case_in_its_first_line_alone(record: Record) -> None:
    lines = record.lines()
    assert [line.case for line in lines] == ["full", "window", ""]
    assert lines[0].against == "PyTorch's SDPA"
    assert lines[0].target == "≤ 1e-09 not met"
    assert lines[2].against == "growth, 16–64 keys"
    assert lines[2].target == "≤ 9 met"


@pytest.mark.parametrize(("load", "said"), [(0.1, False), (3.0, True), (None, False)])
def test_a_machine_that_others_used_is_said_to_be_so(record: Record, load: float | None, said: bool) -> None:
    notes = dataclasses.replace(record, load=load).notes()
    assert any("load average was 3.0" in note for note in notes) == said


def test_markdown_has_a_row_for_each_line_and_its_command(record: Record) -> None:
    rows = [line for line in record.to_markdown().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(record.lines())
    assert {line.count("|") for line in rows} == {len(HEADINGS) + 2}
    assert rows[2].endswith("| `polyhead bench full --threads 1 --seconds 1` |")


@pytest.mark.parametrize(
    ("reached", "text"), [(0.2, "≤ 0.5 met"), (0.6, "≤ 0.5 not met"), (None, "≤ 0.5 not measured")]
)
def test_an_outcome_in_words(reached: float | None, text: str) -> None:
    assert str(Outcome(against="sdpa", limit=0.5, reached=reached)) == text


def test_a_target_whose_peer_is_not_there_is_shown_as_not_measured(record: Record) -> None:
    row = dataclasses.replace(record.rows[0], targets=(Outcome(against="flex", limit=0.5, reached=None),))
    lines = dataclasses.replace(record, rows=(row,)).lines()
    assert lines[-1].target == "≤ 0.5 not measured"


def test_memory_is_a_line_with_the_bases_and_its_target(record: Record) -> None:
    row = dataclasses.replace(
        record.rows[0],
        memory={"ours": 12.3, "sdpa": 45.6},
        memory_keys=16384,
        targets=(Outcome(against="memory", limit=64, reached=12.3),),
    )
    last = dataclasses.replace(record, rows=(row,)).lines()[-1]
    assert (last.case, last.ours, last.theirs) == ("", "12 MiB", "46 MiB")
    assert (last.against, last.target) == ("memory, 16384 keys: PyTorch's SDPA", "≤ 64 met")


def test_what_was_never_quiet_is_named_in_one_note(record: Record) -> None:
    slow = Turns({"ours": (1.0, 2.0)}, "ours")
    rows = (dataclasses.replace(record.rows[0], turns=slow), dataclasses.replace(record.rows[1], sweep=slow))
    notes = dataclasses.replace(record, rows=rows, load=None).notes()
    assert next(note for note in notes if "quiet" in note).startswith(
        "fewer than five turns were quiet, and the quickest are shown: full, window"
    )


def test_the_spec_of_a_row_can_be_read_again(record: Record) -> None:
    assert ph.AttentionSpec.from_json(json.dumps(record.rows[1].spec)) == case("window").spec


def test_growth_that_was_not_measured_is_shown_as_such(record: Record) -> None:
    targets = (Outcome(against="exponent", limit=1.1, reached=None),)
    row = dataclasses.replace(record.rows[1], sweep=None, targets=targets)
    last = dataclasses.replace(record, rows=(row,)).lines()[-1]
    assert (last.against, last.ratio, last.target) == ("growth", "", "≤ 1.1 not measured")
