"""The comparison that every other test leans on must be able to fail."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from tests.tolerances import TOLERANCE, assert_close

EXPECTED = np.array([[1.0, -2.0, 300.0], [0.0, 0.5, 4.0]])


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize(("where", "size"), [((0, 2), 300.0), ((1, 0), 1.0)])
def test_a_difference_is_measured_against_the_expected_number_or_one(
    dtype: str, where: tuple[int, int], size: float
) -> None:
    actual = EXPECTED.copy()
    actual[where] += 0.9 * size * TOLERANCE[dtype]
    assert_close(actual, EXPECTED, dtype)
    actual[where] += 0.2 * size * TOLERANCE[dtype]
    with pytest.raises(AssertionError, match=re.escape(f"weights differs most at {list(where)}")):
        assert_close(actual, EXPECTED, dtype, what="weights")


def test_the_largest_of_several_differences_is_named() -> None:
    actual = EXPECTED + np.array([[0.1, 0.0, 0.0], [0.0, 0.2, 0.0]])
    with pytest.raises(AssertionError, match=re.escape("at [1, 1]: 0.7 where 0.5 is expected, 2.0e-01 apart")):
        assert_close(actual, EXPECTED, "float32")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["actual", "expected", "both"])
def test_what_is_no_number_fails_on_either_side(bad: float, side: str) -> None:
    planted = EXPECTED.copy()
    planted[1, 2] = bad
    sides = {"actual": (planted, EXPECTED), "expected": (EXPECTED, planted), "both": (planted, planted)}
    with np.errstate(invalid="ignore"), pytest.raises(AssertionError, match=re.escape("at [1, 2]")):
        assert_close(*sides[side], "bfloat16")


def test_shapes_that_broadcast_still_differ() -> None:
    with pytest.raises(AssertionError, match=re.escape("output has shape [3], expected [2, 3]")):
        assert_close(EXPECTED[0], EXPECTED, "float64")


def test_empty_arrays_agree_only_in_shape() -> None:
    assert_close(np.zeros((2, 0)), np.zeros((2, 0)), "float64")
    with pytest.raises(AssertionError, match=re.escape("[2, 0], expected [0, 2]")):
        assert_close(np.zeros((2, 0)), np.zeros((0, 2)), "float64")


def test_tensors_are_taken_as_they_come() -> None:
    tensor = torch.tensor(EXPECTED, dtype=torch.bfloat16, requires_grad=True)
    assert_close(tensor, EXPECTED, torch.bfloat16)
    with pytest.raises(KeyError, match="int64"):
        assert_close(tensor, EXPECTED, torch.int64)
