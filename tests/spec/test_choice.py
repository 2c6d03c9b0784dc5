"""What every part of a spec has in common: it cannot change, compares by value, prints and serialises."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import polyhead.spec as everything
from polyhead.errors import SpecError
from polyhead.spec import Alibi, Chunked, Differential, Grouped, Links, Rotary, Softmax, YarnScaling
from polyhead.spec.choice import Choice, as_flag, as_float, as_floats, as_int, divisors, one_of
from tests.strategies import layers, patterns, positions, scalings, storages, weightings

NAMES = {name: getattr(everything, name) for name in everything.__all__}


anything = st.one_of(layers(), patterns(), positions(), scalings(), storages(), weightings())


def pasted(part: Choice) -> Choice:
    return eval(repr(part), NAMES)


@given(anything)
def test_a_repr_pastes_back(part: Choice) -> None:
    assert pasted(part) == part


def test_a_repr_leaves_out_defaults() -> None:
    assert repr(Softmax()) == "Softmax()"
    assert repr(Rotary(rotary_dim=4)) == "Rotary(rotary_dim=4)"
    assert repr(everything.RelativeBias.t5(bidirectional=False)) == "RelativeBias.t5(bidirectional=False)"


@given(anything)
def test_parts_are_equal_by_value_and_hash_alike(part: Choice) -> None:
    twin = pasted(part)
    assert twin is not part
    assert hash(twin) == hash(part)


@pytest.mark.parametrize("part", [Softmax(), Grouped(num_heads=2, head_dim=4), everything.Causal()])
def test_a_part_cannot_be_changed(part: Choice) -> None:
    name = dataclasses.fields(part)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{name}'"):
        setattr(part, name, 3)


def test_fields_are_named_never_counted() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        Grouped(8, 64)  # type: ignore[misc]


def test_data_names_the_type_and_every_field() -> None:
    assert Chunked(size=3, left=1).to_data() == {"type": "Chunked", "size": 3, "left": 1, "right": 0}
    assert Alibi(slopes=(0.5, 1)).to_data()["slopes"] == [0.5, 1.0]
    nested = Rotary(scaling=everything.LinearScaling(factor=2)).to_data()
    assert nested["scaling"] == {"type": "LinearScaling", "factor": 2.0}


@pytest.mark.parametrize(
    "part",
    [
        Grouped(num_heads=np.int64(4), head_dim=np.int32(8), v_head_dim=np.int64(3)),
        Alibi(slopes=np.array([0.5, 0.25], dtype=np.float32)),
        YarnScaling(factor=np.float32(2.0), original_max_seq_len=np.int64(64)),
        Differential(layer=np.int64(2), norm_eps=np.float64(1e-5)),
        Links(table=[[np.arange(3)]]),
        everything.SlidingWindow(left=np.int64(3), right=np.uint8(1)),
        Rotary(theta=np.int64(500), rotary_dim=np.int64(4)),
    ],
)
def test_numpy_numbers_become_plain_ones(part: Choice) -> None:
    """Otherwise they could be neither written as JSON nor printed so that they paste back."""
    assert part.from_fields({k: v for k, v in part.to_data().items() if k != "type"}) == part
    json.dumps(part.to_data())
    assert pasted(part) == part


def test_fields_that_a_type_does_not_have_or_lacks_are_named() -> None:
    with pytest.raises(SpecError, match="Chunked has no field 'width'; its fields are size, left, right"):
        Chunked.from_fields({"size": 3, "width": 3})
    with pytest.raises(SpecError, match="Chunked needs the field 'size'"):
        Chunked.from_fields({"left": 1})


CHECKS: list[tuple[Callable[[], Any], str]] = [
    (lambda: as_int("n", "3", at_least=0), "n='3' is not allowed; give a whole number of at least 0"),
    (lambda: as_int("n", 2.0, at_least=0), "n=2.0 is not allowed"),
    (lambda: as_int("n", True, at_least=0), "n=True is not allowed"),
    (lambda: as_int("n", None, at_least=0), "n=None is not allowed"),
    (lambda: as_int("n", 0, at_least=1), "n=0 is not allowed; give a whole number of at least 1"),
    (lambda: as_float("x", "one"), "x='one' is not allowed; give a finite number$"),
    (lambda: as_float("x", True), "x=True is not allowed"),
    (lambda: as_float("x", None), "x=None is not allowed"),
    (lambda: as_float("x", float("nan")), "x=nan is not allowed"),
    (lambda: as_float("x", float("inf"), above=0.0), "x=inf is not allowed; give a finite number above 0"),
    (lambda: as_float("x", 0.0, above=0.0), "x=0.0 is not allowed; give a finite number above 0"),
    (lambda: as_floats("xs", 3), "xs=3 is not allowed; give several numbers, such as a tuple"),
    (lambda: as_floats("xs", "12"), "xs='12' is not allowed; give several numbers"),
    (lambda: as_floats("xs", [1.0, 0.0], above=0.0), "xs=0.0 is not allowed; give a finite number above 0"),
    (lambda: as_flag("yes", 1), "yes=1 is not allowed; use True or False"),
    (lambda: as_flag("yes", "no"), "yes='no' is not allowed; use True or False"),
    (lambda: one_of("word", "c", ("a", "b")), "word='c' is not allowed; use 'a' or 'b'"),
]


@pytest.mark.parametrize(("check", "message"), CHECKS)
def test_a_check_says_what_came_and_what_is_allowed(check: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check()


def test_a_check_returns_plain_python() -> None:
    assert type(as_int("n", np.int64(3), at_least=0)) is int
    assert type(as_float("x", np.float32(0.5))) is float
    assert as_floats("xs", [1, 2]) == (1.0, 2.0)
    assert as_flag("yes", True) is True


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1]
