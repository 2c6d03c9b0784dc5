"""A spec as data of itself: Python that gives it again, its pattern pair by pair, and what it learns."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import polyhead as ph
from polyhead.spec import Pattern
from polyhead.spec.composed import SIZE, code_of, composed, parts_of, picture_of

MHA = ph.Grouped(num_heads=4, head_dim=8)

SPECS = {
    **{entry.name: entry.spec for entry in ph.mechanisms()},
    **{model.name: model.layers[0].attention for model in ph.models()},
    "t5": ph.AttentionSpec(storage=MHA, position=ph.RelativeBias.t5(), weighting=ph.Softmax(scale=1.0, sink=True)),
    "patterns": ph.AttentionSpec(
        storage=MHA,
        pattern=(ph.BigBird(block=4) | ph.Links(table=(((0,), (1,)),)) | ph.SlidingWindow.causal(3)) & ph.Causal(),
    ),
    "paper": ph.AttentionSpec(storage=MHA, weighting=ph.Differential(), position=ph.RelativeBias.shaw(max_distance=2)),
}


@pytest.mark.parametrize("name", SPECS)
def test_code_gives_the_spec_again(name: str) -> None:
    found: dict[str, Any] = {}
    exec(code_of(SPECS[name]), found)
    assert found["spec"] == SPECS[name]


@pytest.mark.parametrize("name", SPECS)
def test_what_it_says_of_itself(name: str) -> None:
    spec = SPECS[name]
    data = composed(spec)
    assert ph.AttentionSpec.from_json(json.dumps({"schema": 1, "type": "AttentionSpec", **data["spec"]})) == spec
    assert data["spec_repr"] == repr(spec)
    assert data["learns"] == {name: list(shape) for name, shape in spec.parameter_shapes().items()}
    assert (data["legal"], data["reason"], data["kernel"], data["cost"]) == (True, None, None, None)
    assert list(parts_of(spec)) == ["storage", "position", "pattern", "weighting"]
    json.dumps(data, allow_nan=False)


def test_a_picture_is_the_pattern_pair_by_pair() -> None:
    drawn = {"size": 3, "step": 1, "heads": 1, "allowed": ["100", "110", "011"]}
    assert picture_of(ph.SlidingWindow.causal(2), 3) == drawn
    assert picture_of(ph.Full(), 2)["allowed"] == ["11", "11"]
    links = ph.RandomLinks(per_query=2, seed=1)
    allowed = links.allowed(np.arange(SIZE), np.arange(SIZE), kv_len=SIZE, head=0)
    shown = picture_of(links)
    assert shown["size"] == SIZE
    assert [[cell == "1" for cell in row] for row in shown["allowed"]] == allowed.tolist()


@pytest.mark.parametrize(
    ("pattern", "step"),
    [
        (ph.Causal(), 1),
        (ph.SlidingWindow(left=31, right=0), 1),
        (ph.SlidingWindow(left=32, right=0), 2),
        (ph.SlidingWindow.causal(4096), 256),
        (ph.Chunked(size=64), 4),
        (ph.Chunked(size=64, left=1), 8),
        (ph.Global(first=100), 8),
        (ph.RandomLinks(per_query=3, seed=0), 1),
        (ph.RandomLinks(per_query=3, seed=0, block=64), 4),
        (ph.SlidingWindow.symmetric(3) | (ph.Chunked(size=1000) & ph.Causal()), 64),
    ],
)
def test_a_picture_shows_where_a_pattern_ends(pattern: Pattern, step: int) -> None:
    shown = picture_of(pattern)
    assert shown["step"] == step
    positions = np.arange(shown["size"]) * step
    allowed = pattern.allowed(positions, positions, kv_len=shown["size"] * step, head=0)
    assert shown["allowed"] == ["".join(str(int(seen)) for seen in row) for row in allowed]
