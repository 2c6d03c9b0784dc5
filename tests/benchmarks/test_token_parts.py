"""benchmarks/token_parts.py: the parts are those of a token, and the bytes those of the model; no time is asserted."""

from __future__ import annotations

import dataclasses

import pytest

import polyhead as ph
from benchmarks import token_parts
from polyhead.bench.cases import case


def test_parts_add_up_to_a_token() -> None:
    small = dataclasses.replace(case(token_parts.CASE), length=40)
    sizes = token_parts.bytes_of(small)
    assert sizes["compiled loops"] == 4 * 30 * 2 * 3 * 64 * 40
    assert sizes["projections"] + sizes["other"] == 4 * ph.model("smollm2-135m").parameters


@pytest.mark.model
def test_what_is_timed_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(token_parts, "WARMUP_TURNS", 0)
    monkeypatch.setattr(token_parts, "TURNS", 1)
    rows = token_parts.measured(dataclasses.replace(case(token_parts.CASE), length=600))
    assert [row["seconds"] > 0 for row in rows] == [True] * len(rows)
    *parts, whole = rows
    assert sum(row["seconds"] for row in parts) == pytest.approx(whole["seconds"])
    text = token_parts.table({"rows": rows, "read_bytes": 1e10})
    assert text.count("\n") == len(rows) + 2
    assert "10.0" in text.splitlines()[-1]
