"""A plan in a notebook: picture, table, and the page with the answer to what was asked."""

from __future__ import annotations

import json

import pytest

import polyhead as ph
from polyhead.planner.curves import curves
from polyhead.planner.data import to_data
from polyhead.planner.notebook import HEADINGS, asked_of
from polyhead.planner.plot import drawn
from tests.frames import taken_apart, without_matplotlib


@pytest.fixture(scope="module")
def plan() -> ph.Plan:
    return ph.plan("llama-3-8b", context=131_072, device="rtx-4090")


def test_a_plan(plan: ph.Plan) -> None:
    found = plan._repr_mimebundle_()
    assert found["text/plain"] == str(plan)
    cells, held = taken_apart(found)
    assert len(cells.images) == 1
    heading, first, *_ = cells.rows
    assert heading == list(HEADINGS)
    assert len(cells.rows) == 1 + len(drawn(plan))
    assert plan.own is not None
    assert first[:3] == [plan.own.name, "14.96 GiB", "16.00 GiB"]
    assert first[4] == f"{plan.own.over / 2**30:.2f} GiB"
    asked = asked_of(plan)
    assert held["state"] == {"screen": "plan", "plan": asked}
    answer = json.loads(json.dumps(to_data(plan) | curves(plan)))
    assert held["answers"] == [{"path": "plan", "body": asked, "json": answer}]


@pytest.mark.parametrize(
    "options",
    [
        {"context": 4096, "device": "a100-80"},
        {"context": 4096, "device": "a100-80", "written": 7, "task": "retrieve", "batch": 2, "devices": 4},
        {"context": 4096, "device": "h100", "precision": "weights=int4,cache=fp8", "optimise": "memory"},
        {"context": 4096, "device": "h100", "from_scratch": True},
    ],
)
def test_what_is_asked_plans_the_same_again(options: dict[str, object]) -> None:
    found = ph.plan("llama-3-8b", **options)  # type: ignore[arg-type]
    assert to_data(ph.plan(**asked_of(found))) == to_data(found)


def test_the_server_would_take_what_is_asked(plan: ph.Plan) -> None:
    msgspec = pytest.importorskip("msgspec", reason="the dashboard reads requests with it")
    from polyhead.dashboard.requests import PlanRequest

    msgspec.json.decode(json.dumps(asked_of(plan)), type=PlanRequest)


def test_what_no_attention_can_do_has_no_picture_and_no_row() -> None:
    found = ph.plan("llama-3-8b", context=1000, device="l4", task="translate")
    cells, held = taken_apart(found._repr_mimebundle_())
    assert (cells.images, cells.rows) == ([], [list(HEADINGS)])
    assert held["answers"][0]["json"]["refused"]


def test_times_that_are_not_known_are_left_empty() -> None:
    cells, _ = taken_apart(ph.plan("llama-3-8b", context=1000, device="m3-max")._repr_mimebundle_())
    assert {tuple(row[5:7]) for row in cells.rows[1:]} == {("", "")}


def test_without_matplotlib_there_is_no_picture(plan: ph.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    without_matplotlib(monkeypatch)
    cells, _ = taken_apart(plan._repr_mimebundle_())
    assert (cells.images, len(cells.rows)) == ([], 1 + len(drawn(plan)))
