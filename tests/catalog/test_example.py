"""The shared example's inputs: those that the printed results determine, and the shapes of all."""

import dataclasses

import numpy as np
import pytest

from polyhead.catalog import EXAMPLE
from polyhead.spec import AttentionSpec, Full, Grouped, NoPosition, Softmax


def test_five_tokens_of_width_4() -> None:
    assert EXAMPLE.tokens == ("The", "cat", "sat", "on", "mat")
    assert EXAMPLE.token == "cat"
    for name in ("query", "key", "value", "cross_query"):
        assert np.array(getattr(EXAMPLE, name)).shape == (5, 4), name
    assert np.array(EXAMPLE.latent_down).shape == (4, 2)
    assert np.array(EXAMPLE.latent_up).shape == (2, 4)


def test_inputs_that_the_results_determine() -> None:
    cat = EXAMPLE.tokens.index("cat")
    np.testing.assert_array_equal(EXAMPLE.query[cat], [2, 0, 1, 0])
    np.testing.assert_array_equal(EXAMPLE.cross_query[cat], [1, 0, 1, 0])
    keys = [[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0.5, 0.5]]
    values = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 1, 0]]
    np.testing.assert_array_equal(EXAMPLE.key, keys)
    np.testing.assert_array_equal(EXAMPLE.value, values)


def test_on_alone_has_a_value_in_dim_3() -> None:
    """So dim 3 of an output is the weight on "on", where V is as it is."""
    assert [token for token, value in zip(EXAMPLE.tokens, EXAMPLE.value, strict=True) if value[3]] == ["on"]


def test_keys_and_values_of_the_latent_are_mirrored() -> None:
    """One up-projection serves both, and its dims 0 and 2, and 1 and 3, are the same."""
    keys = np.array(EXAMPLE.key) @ np.array(EXAMPLE.latent_down) @ np.array(EXAMPLE.latent_up)
    np.testing.assert_array_equal(keys[:, :2], keys[:, 2:])


def test_base_is_one_head_full_softmax_without_position() -> None:
    base = AttentionSpec(
        storage=Grouped(num_heads=1, head_dim=4), position=NoPosition(), pattern=Full(), weighting=Softmax()
    )
    assert EXAMPLE.base == base


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXAMPLE.token = "mat"  # type: ignore[misc]
