"""RoPE on planes: what turns, how far, which way."""

from __future__ import annotations

import numpy as np
import pytest

from polyhead.oracle import rotate
from polyhead.spec import Rotary, YarnScaling
from tests.tolerances import assert_close

QUARTER = np.array([np.pi / 2])


@pytest.mark.parametrize(
    ("pairs", "turned"),
    [("half", [-3.0, -4.0, 1.0, 2.0]), ("interleaved", [-2.0, 1.0, -4.0, 3.0])],
)
def test_a_quarter_turn_takes_x_y_to_minus_y_x(pairs: str, turned: list[float]) -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert_close(rotate(x, QUARTER, Rotary(pairs=pairs), start=0, width=4), turned, "float64")


def test_widths_around_the_turning_ones_stay() -> None:
    x = np.array([9.0, 1.0, 2.0, 8.0, 7.0])
    assert_close(rotate(x, QUARTER, Rotary(), start=1, width=2), [9.0, -2.0, 1.0, 8.0, 7.0], "float64")


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_turning_keeps_lengths_and_adds_up(pairs: str) -> None:
    rng = np.random.default_rng(0)
    x, first, second = rng.standard_normal((3, 8)), rng.standard_normal((3, 4)), rng.standard_normal((3, 4))

    def turn(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
        return rotate(x, angles, Rotary(pairs=pairs), start=0, width=8)

    assert_close(np.linalg.norm(turn(x, first), axis=-1), np.linalg.norm(x, axis=-1), "float64")
    assert_close(turn(turn(x, first), second), turn(x, first + second), "float64")
    assert_close(turn(turn(x, first), -first), x, "float64")


def test_a_scaling_s_factor_stretches_what_turns_and_nothing_else() -> None:
    scaling = YarnScaling(factor=4.0, original_max_seq_len=8, attention_factor=1.5)
    turned = rotate(np.array([1.0, 0.0, 5.0]), np.zeros(1), Rotary(scaling=scaling), start=0, width=2)
    assert_close(turned, [1.5, 0.0, 5.0], "float64")


def test_angles_of_more_dimensions_give_a_row_for_each() -> None:
    x, angles = np.ones((2, 5)), np.arange(6.0).reshape(3, 2, 1)
    turned = rotate(x, angles, Rotary(), start=1, width=2)
    assert turned.shape == (3, 2, 5)
    assert_close(turned[..., [0, 3, 4]], np.ones((3, 2, 3)), "float64")


def test_what_is_given_stays_as_it_was() -> None:
    x = np.ones(4)
    rotate(x, QUARTER, Rotary(), start=0, width=4)
    assert (x == 1).all()
