"""Lines of a cache against the length: they go through what the plan says, and level off where a window does."""

from __future__ import annotations

import json

import pytest

import polyhead as ph
from polyhead.planner.curves import curves, lengths_of
from polyhead.planner.plot import drawn


@pytest.fixture(scope="module")
def llama() -> ph.Plan:
    return ph.plan("llama-3-8b", context=20_000, device="a100-80", batch=2)


def test_lines_go_through_what_the_plan_says(llama: ph.Plan) -> None:
    found = curves(llama)
    assert [curve["name"] for curve in found["curves"]] == [stack.name for stack in drawn(llama)]
    for curve, stack in zip(found["curves"], drawn(llama), strict=True):
        at = curve["lengths"].index(20_000)
        assert curve["bytes"][at] == stack.memory.cache.ideal, stack.name
    assert found["drawn"] == [stack.name for stack in drawn(llama)]
    assert found["ranked"][:4] == [stack.name for stack in llama.ranked(4)]
    assert found["capacity"] == 80 * 2**30
    assert llama.own is not None
    assert found["room"] == found["capacity"] - llama.own.memory.weights - llama.own.memory.temporary
    json.dumps(found, allow_nan=False)


def test_lengths_reach_past_what_is_asked_and_what_the_model_was_made_for(llama: ph.Plan) -> None:
    assert lengths_of(llama) == [1024, 2048, 4096, 8192, 16384, 20_000, 32768, 65536]
    longer = ph.plan("mistral-7b-v0.1", context=500, device="a100-80")
    assert lengths_of(longer)[:3] == [256, 500, 512]
    assert lengths_of(longer)[-2:] == [32768, 65536]


def test_all_grow_in_proportion_but_windows_and_sums(llama: ph.Plan) -> None:
    lines = curves(llama)["curves"]
    assert all(
        any(word in curve["name"] for curve in lines)
        for word in ("linear", "+ window of", "first tokens", "mostly", "MQA")
    )
    for curve in lines:
        first, last = curve["bytes"][0], curve["bytes"][-1]
        if "linear" in curve["name"]:
            assert first == last
        elif "mostly" not in curve["name"] and "window" in curve["name"]:
            assert curve["bytes"][4] == last < 8 * first
        elif "mostly" not in curve["name"]:
            assert last == 64 * first


def test_the_batch_is_the_one_asked_for_where_as_many_as_fit_are_looked_at() -> None:
    found = ph.plan("llama-3-8b", context=8192, device="a100-80", batch=3, optimise="throughput")
    assert found.own is not None
    assert found.own.batch > 3
    own = curves(found)["curves"][0]
    alone = ph.plan("llama-3-8b", context=8192, device="a100-80", batch=3).own
    assert alone is not None
    assert own["bytes"][own["lengths"].index(8192)] == alone.memory.cache.ideal


@pytest.mark.parametrize("task", ["encode", "train"])
def test_what_keeps_no_cache_has_no_line(task: str) -> None:
    found = curves(ph.plan("llama-3-8b", context=2048, device="a100-80", devices=8, task=task))
    assert found["curves"] == []
    assert found["room"] is not None


def test_of_what_can_do_nothing_there_is_nothing() -> None:
    found = curves(ph.plan("llama-3-8b", context=1000, device="l4", task="translate"))
    assert found == {"drawn": [], "ranked": [], "curves": [], "capacity": ph.device("l4").memory, "room": None}
