"""How large a spec may be that comes with a request, and what becomes of numbers that overflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyhead.catalog import mechanisms, models
from polyhead.dashboard.bounds import MAX_DEPTH, MAX_VALUES, check_part, computed, spec_of
from polyhead.errors import ShapeError, SpecError
from polyhead.spec import AttentionSpec, Causal, Grouped, Links

STORAGE = {"type": "Grouped", "num_heads": 2, "head_dim": 4}
SPECS = [entry.spec for entry in mechanisms()] + [layer.attention for one in models() for layer in one.layers]


@pytest.mark.parametrize("spec", dict.fromkeys(SPECS), ids=lambda spec: repr(spec)[:40])
def test_every_spec_of_the_catalogue_is_read(spec: AttentionSpec) -> None:
    assert spec_of(spec.to_data()) == spec
    assert spec_of({**spec.to_data(), "schema": 1}) == spec


def test_the_four_choices_alone_are_a_spec() -> None:
    spec = AttentionSpec(storage=Grouped(num_heads=2, head_dim=4), pattern=Causal())
    assert spec_of({"storage": STORAGE, "pattern": {"type": "Band", "left": None, "right": 0}}) == spec


def nested(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "Band"}
    for _ in range(depth):
        part = {"type": "AllOf", "parts": [part]}
    return part


REFUSED = {
    "schema": ({"storage": STORAGE, "schema": 2}, "schema=2 is not one this version reads"),
    "flag as schema": ({"storage": STORAGE, "schema": True}, "schema=True is not one"),
    "another type": ({**STORAGE}, "expected the JSON of an AttentionSpec, got 'Grouped'"),
    "no storage": ({}, "AttentionSpec needs the field 'storage'"),
    "unknown": ({"storage": {"type": "Nothing"}}, "no part of a spec has the type 'Nothing'"),
    "illegal": (
        {"storage": STORAGE, "weighting": {"type": "Linear"}, "position": {"type": "Alibi"}},
        "Linear has no score",
    ),
    "heads": ({"storage": {**STORAGE, "num_heads": 513}}, "num_heads=513 is past 512"),
    "huge": ({"storage": {**STORAGE, "num_heads": 10**400}}, "num_heads=1e400 is past 512"),
    "negative": ({"storage": {**STORAGE, "head_dim": -(10**30)}}, "head_dim=-1e30 is past 4,096"),
    "float": ({"storage": STORAGE, "weighting": {"type": "Softmax", "scale": 1e13}}, "scale=10000000000000.0 is past"),
    "text": ({"storage": {**STORAGE, "head_dim": "4" * 65}}, "it has none of more than 64 characters"),
    "name": ({"storage": {**STORAGE, "x" * 65: 4}}, "it has none of more than 64 characters"),
    "deep": ({"storage": STORAGE, "pattern": nested(MAX_DEPTH)}, f"stands more than {MAX_DEPTH} deep"),
    "table": (
        {"storage": STORAGE, "pattern": {"type": "Links", "table": [[[0]] * MAX_VALUES]}},
        "a spec of more than 20,000 values is too large for the dashboard",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_spec_or_too_large_is_refused(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(SpecError, match=message):
        spec_of(data)


def test_a_table_of_links_of_some_size_is_read() -> None:
    spec = AttentionSpec(storage=Grouped(num_heads=1, head_dim=4), pattern=Links(table=(((0,),) * 5000,)))
    assert spec_of(spec.to_data()) == spec


def test_nan_is_past_every_bound() -> None:
    with pytest.raises(SpecError, match="scale=nan is past"):
        check_part({"type": "Softmax", "scale": float("nan")})


@pytest.mark.parametrize(
    "work",
    [
        lambda: np.array([1e300]) * 1e300,
        lambda: np.array([1.0]) / 0.0,
        lambda: np.array([np.inf]) - np.inf,
        lambda: 2.0**10_000,
        lambda: 1 / 0,
    ],
)
def test_numbers_that_overflow_are_the_requests_fault(work: Any) -> None:
    with pytest.raises(ShapeError, match="these numbers are too large or too small to compute with"):
        computed(work)


def test_what_comes_out_is_returned_and_numpys_settings_stay() -> None:
    before = np.geterr()
    assert computed(lambda: 3) == 3
    assert np.geterr() == before
