"""Tiles and an online softmax give what the whole row gives, for every size of tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polyhead as ph
from polyhead.oracle import attend_tiled
from tests.inputs import Inputs, spec
from tests.tolerances import assert_close

LENGTH = 6

CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("mha", {}),
    "causal": ("mha", {"pattern": ph.Causal()}),
    "rows that first see nothing": ("mha", {"pattern": ph.SlidingWindow.causal(2)}),
    "rows that never see anything": ("mha", {"pattern": ph.Links(table=(((0,), (), (2, 5)),))}),
    "grouped, with RoPE": ("gqa", {"position": ph.Rotary(), "pattern": ph.Causal()}),
    "dynamic NTK": ("gqa", {"position": ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=3))}),
    "softcap and ALiBi": ("mqa", {"weighting": ph.Softmax(softcap=2.0), "position": ph.Alibi()}),
    "sink and T5": (
        "mha",
        {"weighting": ph.Softmax(sink=True), "position": ph.RelativeBias.t5(num_buckets=8, max_distance=6)},
    ),
    "sink and rows that see nothing": (
        "mha",
        {"weighting": ph.Softmax(sink=True), "pattern": ph.Links(table=(((),),))},
    ),
    "random links for each head": ("mha", {"pattern": ph.RandomLinks(per_query=2, seed=0)}),
    "latent": ("mla", {"pattern": ph.Causal(), "position": ph.Rotary()}),
}


def tiled(inputs: Inputs, tile: int) -> np.ndarray:
    tensors = dict(inputs.learned)
    query, key, value = (tensors.pop(name, None) for name in ("query", "key", "value"))
    return attend_tiled(query, key, value, inputs.spec, tile=tile, params=tensors)


@pytest.mark.parametrize("tile", range(1, LENGTH + 2))
@pytest.mark.parametrize(("storage", "choices"), CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("q_len", [1, LENGTH])
def test_tiles_give_what_the_whole_row_gives(storage: str, choices: dict[str, Any], tile: int, q_len: int) -> None:
    inputs = Inputs.draw(spec(storage, **choices), 0, q_len=q_len, kv_len=LENGTH)
    assert_close(tiled(inputs, tile), inputs.oracle(), "float64")


@pytest.mark.parametrize("scale", [1e3, -1e3])
def test_a_later_tile_may_be_far_larger_or_smaller(scale: float) -> None:
    inputs = Inputs.draw(spec(), 1, q_len=2, kv_len=LENGTH)
    growing = inputs.learned["key"] * np.linspace(0.0, scale, LENGTH)[:, None]
    inputs = inputs.changing(key=growing)
    assert_close(tiled(inputs, 2), inputs.oracle(), "float64")


def test_a_tile_holds_a_key() -> None:
    with pytest.raises(ph.SpecError, match="tile=0 is not allowed; give a whole number of at least 1"):
        tiled(Inputs.draw(spec(), 0), 0)


def test_a_mistake_is_named_as_the_oracle_names_it() -> None:
    inputs = Inputs.draw(spec(weighting=ph.Softmax(sink=True)), 0)
    without = {name: array for name, array in inputs.learned.items() if name != "sinks"}
    with pytest.raises(ph.ShapeError, match="params lacks 'sinks'"):
        tiled(Inputs(inputs.spec, without), 2)
    with pytest.raises(ph.ShapeError, match="query has shape"):
        tiled(inputs.changing(query=np.zeros((2, 3, 5, 8))), 2)


def test_without_keys_there_is_nothing() -> None:
    inputs = Inputs.draw(spec(), 2, q_len=2, kv_len=0)
    assert not tiled(inputs, 2).any()


@pytest.mark.parametrize(
    "choices",
    [
        {"weighting": ph.Linear()},
        {"weighting": ph.Differential(form="clipped")},
        {"position": ph.RelativeBias.shaw(max_distance=2)},
    ],
)
def test_what_has_no_online_softmax_is_refused(choices: dict[str, Any]) -> None:
    inputs = Inputs.draw(spec(**choices), 3)
    with pytest.raises(ph.UnsupportedError, match="tiles with an online softmax need softmax weights and plain values"):
        tiled(inputs, 2)
