"""The comparison itself must be able to fail."""

from __future__ import annotations

import pytest
import torch

from tests.peers.helpers import assert_same_function, assert_same_layer, normal

ROWS = torch.tensor([[True, True, True], [True, True, False]])


def test_a_gradient_that_differs_is_found() -> None:
    x = normal(2, 3, 4, requires_grad=True)
    with pytest.raises(AssertionError, match="gradient 0 differs"):
        assert_same_function(x + (x - x.detach()), 1.0 * x, [x])


def test_rows_left_out_are_left_out() -> None:
    x = normal(2, 3, 4, requires_grad=True)
    wrong = x * torch.where(ROWS, 1.0, 2.0)[..., None]
    assert_same_function(wrong, 1.0 * x, [x], rows=ROWS)
    with pytest.raises(AssertionError, match="output differs"):
        assert_same_function(wrong, 1.0 * x, [x])


def test_weights_that_differ_are_found() -> None:
    x, weights = normal(2, 3, 4, requires_grad=True), normal(2, 5, 3, 7)
    wrong = weights.clone()
    wrong[1, :, 2] += 1.0
    assert_same_layer((1.0 * x, wrong), (1.0 * x, weights), [x], rows=ROWS)
    with pytest.raises(AssertionError, match="weights differs"):
        assert_same_layer((1.0 * x, wrong), (1.0 * x, weights), [x])
