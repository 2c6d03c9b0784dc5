"""RoPE's scalings: nothing changes at factor 1 or within the trained length, and beyond it planes turn slower."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from polyhead.errors import SpecError
from polyhead.spec import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NTKScaling,
    Rotary,
    Scaling,
    YarnScaling,
)
from polyhead.spec.scaling import base_frequencies, yarn_mscale

WIDTH, TRAINED = 8, 64
PLANES = WIDTH // 2
ONES = (1.0,) * PLANES

OF_FACTOR: dict[str, Callable[[float], Scaling]] = {
    "linear": lambda factor: LinearScaling(factor=factor),
    "ntk": lambda factor: NTKScaling(factor=factor),
    "dynamic ntk": lambda factor: DynamicNTKScaling(factor=factor, original_max_seq_len=TRAINED),
    "yarn": lambda factor: YarnScaling(factor=factor, original_max_seq_len=TRAINED),
    "llama3": lambda factor: Llama3Scaling(factor=factor, original_max_seq_len=TRAINED),
    "longrope": lambda factor: LongRopeScaling(
        short_factor=ONES, long_factor=(factor,) * PLANES, original_max_seq_len=TRAINED, factor=factor
    ),
}
WITHOUT_LENGTH = [name for name in OF_FACTOR if not OF_FACTOR[name](2.0).per_query]
by_name = pytest.mark.parametrize("name", OF_FACTOR)


def planes(scaling: Scaling | None, position: int) -> np.ndarray:
    """Return the frequencies that a query at a position meets."""
    rotary = Rotary(theta=100.0, scaling=scaling)
    return np.broadcast_to(rotary.frequencies(WIDTH, np.array([position])), (1, PLANES))[0]


@by_name
def test_only_those_that_look_at_the_length_say_so(name: str) -> None:
    scaling = OF_FACTOR[name](3.0)
    looks = (planes(scaling, 0) != planes(scaling, 10 * TRAINED)).any()
    assert scaling.per_query == looks == (name in ("dynamic ntk", "longrope"))


@pytest.mark.parametrize("name", [*WITHOUT_LENGTH, "longrope"])
def test_factor_one_changes_nothing(name: str) -> None:
    scaling = OF_FACTOR[name](1.0)
    np.testing.assert_allclose(planes(scaling, 10 * TRAINED), planes(None, 0), rtol=1e-14)
    assert scaling.amplitude == 1.0


@pytest.mark.parametrize("name", ["dynamic ntk", "longrope"])
def test_within_the_trained_length_nothing_changes(name: str) -> None:
    scaling = OF_FACTOR[name](4.0)
    np.testing.assert_allclose(planes(scaling, TRAINED - 1), planes(None, 0), rtol=1e-14)
    assert (planes(scaling, TRAINED) != planes(None, 0)).any(), "one past it, something does"


@by_name
def test_beyond_the_trained_length_planes_turn_slower_the_larger_the_factor(name: str) -> None:
    of_factor = [planes(OF_FACTOR[name](factor), 3 * TRAINED) for factor in (1.5, 2.0, 8.0)]
    for less, more in itertools.pairwise(of_factor):
        assert (more <= less).all()
        assert (more < less).any()
    assert (of_factor[0] <= planes(None, 0)).all()


@by_name
def test_planes_stay_in_order(name: str) -> None:
    assert (np.diff(planes(OF_FACTOR[name](8.0), 3 * TRAINED)) < 0).all()


def test_linear_divides_every_plane() -> None:
    np.testing.assert_allclose(planes(LinearScaling(factor=4.0), 0), planes(None, 0) / 4.0, rtol=1e-15)


@given(st.floats(1.0, 100.0))
def test_ntk_spares_the_fastest_plane_and_divides_the_slowest_by_the_factor(factor: float) -> None:
    scaled, base = planes(NTKScaling(factor=factor), 0), planes(None, 0)
    assert scaled[0] == base[0]
    np.testing.assert_allclose(scaled[-1], base[-1] / factor, rtol=1e-12)


@given(st.integers(0, 500), st.integers(0, 500))
def test_dynamic_ntk_grows_with_the_query_s_position(position: int, other: int) -> None:
    near, far = (
        planes(DynamicNTKScaling(factor=2.0, original_max_seq_len=TRAINED), p) for p in sorted((position, other))
    )
    assert (far <= near).all()


def test_dynamic_ntk_of_twice_the_length_is_ntk_of_its_formula() -> None:
    dynamic = planes(DynamicNTKScaling(factor=2.0, original_max_seq_len=TRAINED), 2 * TRAINED - 1)
    np.testing.assert_allclose(dynamic, planes(NTKScaling(factor=2.0 * 2.0 - 1.0), 0), rtol=1e-14)


@pytest.mark.parametrize("scaling", [OF_FACTOR["yarn"](8.0), OF_FACTOR["llama3"](8.0)])
def test_fast_planes_stay_and_slow_ones_are_interpolated(scaling: Scaling) -> None:
    width, theta = 64, 10000.0
    ratio = base_frequencies(theta, width) / scaling.frequencies(theta, width, np.array(0))
    turns = TRAINED * base_frequencies(theta, width) / (2 * math.pi)
    np.testing.assert_allclose(ratio[turns > 32], 1.0, rtol=1e-14)
    np.testing.assert_allclose(ratio[turns < 0.4], 8.0, rtol=1e-14)
    between = (ratio > 1.001) & (ratio < 7.999)
    assert between.any()
    assert (np.diff(ratio) >= -1e-12).all()


def test_yarn_s_ramp_is_rounded_to_whole_planes_unless_told() -> None:
    ends = {"factor": 4.0, "original_max_seq_len": TRAINED, "beta_fast": 4.0}
    rounded, exact = (YarnScaling(**ends, truncate=truncate).frequencies(50.0, 32, None) for truncate in (True, False))
    assert (rounded != exact).any()


def test_yarn_s_ramp_may_be_a_step() -> None:
    step = YarnScaling(factor=4.0, original_max_seq_len=TRAINED, beta_fast=2.0, beta_slow=2.0, truncate=False)
    trained = base_frequencies(50.0, 16)
    turns = TRAINED * trained / (2 * math.pi)
    ratio = trained / step.frequencies(50.0, 16, np.array(0))
    np.testing.assert_allclose(ratio, np.where(turns > 2, 1.0, 4.0), rtol=1e-14)
    assert 1 < (turns > 2).sum() < 7


@pytest.mark.parametrize(
    ("scaling", "amplitude"),
    [
        (YarnScaling(factor=math.e, original_max_seq_len=TRAINED), 1.1),
        (YarnScaling(factor=0.5, original_max_seq_len=TRAINED), 1.0),
        (YarnScaling(factor=4.0, original_max_seq_len=TRAINED, attention_factor=0.7), 0.7),
        (YarnScaling(factor=math.e, original_max_seq_len=TRAINED, mscale=2.0, mscale_all_dim=1.0), 1.2 / 1.1),
        (YarnScaling(factor=math.e, original_max_seq_len=TRAINED, mscale=2.0), 1.1),
        (LongRopeScaling(short_factor=ONES, long_factor=ONES, original_max_seq_len=16, factor=16.0), math.sqrt(2)),
        (LongRopeScaling(short_factor=ONES, long_factor=ONES, original_max_seq_len=16), 1.0),
        (
            LongRopeScaling(short_factor=ONES, long_factor=ONES, original_max_seq_len=16, attention_factor=1.5),
            1.5,
        ),
        (Llama3Scaling(), 1.0),
        (NTKScaling(factor=4.0), 1.0),
    ],
)
def test_the_factor_on_cos_and_sin(scaling: Scaling, amplitude: float) -> None:
    assert scaling.amplitude == pytest.approx(amplitude, rel=1e-15)
    assert Rotary(scaling=scaling).amplitude == scaling.amplitude


def test_yarn_s_mscale() -> None:
    assert yarn_mscale(1.0, 5.0) == 1.0
    assert yarn_mscale(math.e, 2.0) == pytest.approx(1.2)


def test_longrope_divides_each_plane_by_its_own_number() -> None:
    scaling = LongRopeScaling(short_factor=(1, 2, 3, 4), long_factor=(5, 6, 7, 8), original_max_seq_len=TRAINED)
    positions = np.array([[0, TRAINED - 1], [TRAINED, 1000]])
    ratio = base_frequencies(100.0, WIDTH) / Rotary(theta=100.0, scaling=scaling).frequencies(WIDTH, positions)
    np.testing.assert_allclose(ratio, [[[1, 2, 3, 4]] * 2, [[5, 6, 7, 8]] * 2], rtol=1e-14)


@pytest.mark.parametrize(
    ("scaling", "problem"),
    [
        (NTKScaling(factor=2.0), "NTK scaling divides by rotary_dim - 2, and rotary_dim=2; use at least 4"),
        (OF_FACTOR["dynamic ntk"](2.0), "NTK scaling divides by rotary_dim - 2, and rotary_dim=2; use at least 4"),
        (OF_FACTOR["longrope"](2.0), "short_factor has 4 entries and the rotation 1 planes; give one per plane"),
        (
            LongRopeScaling(short_factor=(1.0,), long_factor=ONES, original_max_seq_len=TRAINED),
            "long_factor has 4 entries and the rotation 1 planes; give one per plane",
        ),
        (OF_FACTOR["yarn"](2.0), None),
    ],
)
def test_a_width_at_which_a_scaling_has_no_value(scaling: Scaling, problem: str | None) -> None:
    assert scaling.problem(2) == problem


POSITIVE = [
    (LinearScaling, {}, ["factor"]),
    (NTKScaling, {}, ["factor"]),
    (DynamicNTKScaling, {"original_max_seq_len": 64}, ["factor"]),
    (YarnScaling, {"original_max_seq_len": 64, "factor": 2.0}, ["factor", "beta_fast", "beta_slow", "mscale"]),
    (YarnScaling, {"original_max_seq_len": 64, "factor": 2.0}, ["attention_factor", "mscale_all_dim"]),
    (Llama3Scaling, {}, ["factor", "low_freq_factor", "high_freq_factor"]),
    (LongRopeScaling, {"short_factor": ONES, "long_factor": ONES, "original_max_seq_len": 64}, ["factor"]),
    (LongRopeScaling, {"short_factor": ONES, "long_factor": ONES, "original_max_seq_len": 64}, ["attention_factor"]),
]


@pytest.mark.parametrize(("kind", "fields", "name"), [(k, f, name) for k, f, names in POSITIVE for name in names])
def test_factors_are_positive(kind: type[Scaling], fields: dict[str, Any], name: str) -> None:
    with pytest.raises(SpecError, match=f"{name}=0.0 is not allowed; give a finite number above 0"):
        kind(**{**fields, name: 0.0})


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: DynamicNTKScaling(factor=2.0, original_max_seq_len=0), "original_max_seq_len=0 is not allowed"),
    (lambda: YarnScaling(factor=2.0, original_max_seq_len=0), "original_max_seq_len=0 is not allowed"),
    (lambda: YarnScaling(factor=2.0, original_max_seq_len=8, truncate=0), "truncate=0 is not allowed; use True"),
    (lambda: Llama3Scaling(original_max_seq_len=0), "original_max_seq_len=0 is not allowed"),
    (lambda: Llama3Scaling(low_freq_factor=4.0), "high_freq_factor=4 must be above low_freq_factor=4"),
    (
        lambda: LongRopeScaling(short_factor=ONES, long_factor=ONES, original_max_seq_len=1),
        "original_max_seq_len=1 is not allowed; give a whole number of at least 2",
    ),
    (
        lambda: LongRopeScaling(short_factor=ONES, long_factor=(1.0, 0.0), original_max_seq_len=8),
        "long_factor=0.0 is not allowed",
    ),
    (
        lambda: LongRopeScaling(short_factor=2.0, long_factor=ONES, original_max_seq_len=8),
        "short_factor=2.0 is not allowed; give several numbers",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_a_scaling_that_is_not_defined_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()


def test_the_base_scales_nothing() -> None:
    with pytest.raises(NotImplementedError):
        Scaling().frequencies(100.0, 8, np.array(0))
    assert (Scaling().amplitude, Scaling().per_query, Scaling().problem(2)) == (1.0, False, None)
