"""What several kernels share: dtypes, what is prepared for them, allowed pairs, and keeping NaN where it belongs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels.common import (
    Call,
    Case,
    allowed_pairs,
    compute_dtype,
    confined,
    keys_and_values,
    not_finite,
    prepared,
    rotates_in_kernel,
)
from tests.inputs import INPUTS, Inputs, spec
from tests.tolerances import assert_close


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sums_are_made_in_at_least_float32(dtype: torch.dtype, wide: torch.dtype) -> None:
    assert compute_dtype(dtype) == wide


@pytest.mark.parametrize(
    ("choices", "inside"),
    [
        ({}, False),
        ({"weighting": ph.Linear()}, False),
        ({"position": ph.Rotary()}, False),
        ({"position": ph.Rotary(scaling=ph.YarnScaling(factor=2.0, original_max_seq_len=4))}, False),
        ({"position": ph.Rotary(), "weighting": ph.Linear()}, True),
        ({"position": ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=4))}, True),
    ],
)
def test_rope_waits_for_features_and_for_frequencies_of_the_query(choices: dict[str, Any], inside: bool) -> None:
    assert rotates_in_kernel(spec(**choices)) == inside


def call(pattern: ph.spec.Pattern, **given: Any) -> Call:
    tensor = torch.zeros(2, 4, 3, 8)
    case = Case(spec=spec(pattern=pattern), q_len=3, kv_len=3)
    places = {"query_positions": torch.arange(3)[None], "key_positions": torch.arange(3)[None]}
    return Call(**{"case": case, "query": tensor, "key": tensor, "value": tensor, "params": {}, **places, **given})


def test_pairs_are_what_pattern_mask_and_segments_leave() -> None:
    assert allowed_pairs(call(ph.Causal())).tolist() == [[[[True, False, False], [True, True, False], [True] * 3]]]
    masked = allowed_pairs(call(ph.Full(), key_mask=torch.tensor([[True, False, True], [False] * 3])))
    assert masked[:, 0].tolist() == [[[True, False, True]] * 3, [[False] * 3] * 3]
    packed = allowed_pairs(call(ph.Full(), segments=torch.tensor([[0, 0, 1], [5, 6, 5]])))
    assert packed[:, 0].int().tolist() == [[[1, 1, 0], [1, 1, 0], [0, 0, 1]], [[1, 0, 1], [0, 1, 0], [1, 0, 1]]]


def test_pairs_are_listed_for_each_head_only_where_heads_differ() -> None:
    assert allowed_pairs(call(ph.Causal())).shape == (1, 1, 3, 3)
    assert allowed_pairs(call(ph.RandomLinks(per_query=1, seed=0))).shape == (1, 4, 3, 3)
    batched = call(ph.Causal(), query_positions=torch.tensor([[0, 1, 2], [2, 1, 0]]))
    assert allowed_pairs(batched).shape == (2, 1, 3, 3)


def test_what_is_masked_is_blanked_before_anything_is_computed() -> None:
    tensor = torch.full((2, 4, 3, 8), torch.nan)
    masked = call(ph.Full(), key=tensor, value=tensor, key_mask=torch.tensor([[True, False, True], [False] * 3]))
    ready = prepared(masked)
    for blanked in (ready.key, ready.value):
        assert blanked[:, 0, :, 0].isnan().tolist() == [[True, False, True], [False] * 3]
        assert (blanked[~blanked.isnan()] == 0).all()
    assert ready.query is masked.query


@pytest.mark.parametrize(("storage", "turned"), [("mha", range(8)), ("mla", range(6, 14))])
def test_rope_turns_what_is_stored_before_a_kernel_sees_it(storage: str, turned: range) -> None:
    """Of a latent's row the RoPE key alone turns, and of its query the part that meets it."""
    whole = spec(storage, position=ph.Rotary())
    query, key = (
        torch.ones(2, *whole.input_shapes()[name][:1], 3, whole.input_shapes()[name][1]) for name in INPUTS[:2]
    )
    ready = prepared(call(ph.Full(), case=Case(spec=whole, q_len=3, kv_len=3), query=query, key=key))
    assert [width for width in range(key.shape[3]) if (ready.key[:, :, 1:, width] != 1).all()] == list(turned)
    assert (ready.query[:, :, 1:, whole.rotary_offset :] != 1).all()
    assert (ready.query[..., : whole.rotary_offset] == 1).all()


def test_rope_that_waits_for_the_kernel_leaves_what_is_stored_alone() -> None:
    whole = call(ph.Full(), case=Case(spec=spec(position=ph.Rotary(), weighting=ph.Linear()), q_len=3, kv_len=3))
    assert (prepared(whole).query, prepared(whole).key) == (whole.query, whole.key)


def test_grouped_keys_and_values_are_the_stored_tensors() -> None:
    whole = call(ph.Full())
    assert keys_and_values(whole) == (whole.key, whole.value)


def test_what_is_finite_is_computed_once() -> None:
    runs = []

    def run(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        runs.append(key)
        return value

    def unneeded() -> torch.Tensor:
        pytest.fail("neither what is bad nor which pairs may meet is needed")

    value = torch.ones(1, 4, 3, 8)
    assert confined(run, (value, value), unneeded, unneeded) is value
    assert len(runs) == 1


def test_what_is_not_finite_reaches_the_rows_that_see_it_and_no_other() -> None:
    stored = torch.tensor([1.0, torch.inf, 3.0]).view(1, 1, 3, 1)
    allowed = torch.tensor([[True, False, True], [True, True, False], [False] * 3]).view(1, 1, 3, 3)

    def run(rows: torch.Tensor) -> torch.Tensor:
        return allowed.float() @ rows

    output = confined(run, (stored,), lambda: ~stored.isfinite(), lambda: allowed)
    assert output.flatten().nan_to_num(-1.0).tolist() == [4.0, -1.0, 0.0]


@pytest.mark.parametrize(("form", "widths"), [("clipped", 1), ("paper", 16)])
def test_a_bad_key_spoils_the_whole_value_of_its_group_and_a_bad_value_its_own_width(form: Any, widths: int) -> None:
    """Where rows are normed, all widths of the value."""
    whole = spec("gqa", weighting=ph.Differential(form=form))
    key, value = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 16)
    key[0, 1, 0, 5] = torch.nan  # of the first key/value head the second map
    value[0, 1, 2, 7] = -torch.inf
    bad = not_finite(key, value, whole)
    assert bad.shape == (1, 4, 3, 16)
    assert bad[0, :2, 0].all()
    assert bad[0, 2:, 2, 7].all()
    assert bad.sum() == 2 * 16 + 2 * widths


def test_a_sum_that_overflows_changes_nothing() -> None:
    """The quick test sums the output, which may overflow where every element is finite."""
    inputs = Inputs.draw(spec(pattern=ph.Causal()), 0)
    inputs = inputs.changing(value=2.0 + np.tanh(inputs.learned["value"]))
    large = inputs.changing(value=inputs.learned["value"] * 1e37).attend(torch.float32)
    assert not torch.isfinite(large.sum()), "else this tests nothing"
    assert_close(large.double() / 1e37, inputs.oracle(), torch.float32)


@pytest.mark.parametrize("kernel", ["dense", "plain"])
def test_a_gradient_beside_a_nan_that_no_row_may_see_is_finite(kernel: str) -> None:
    inputs = Inputs.draw(spec(pattern=ph.SlidingWindow(left=1, right=0)), 1, q_len=4, kv_len=6)
    planted = {name: inputs.learned[name].copy() for name in ("key", "value")}
    for array in planted.values():
        array[:, :, 0] = float("nan")  # the first query sits at key 2 and sees keys 1 and 2
    leaves = inputs.changing(**planted).tensors(torch.float64, requires_grad=True)
    inputs.attend(leaves, kernel=kernel).sum().backward()
    clean = inputs.tensors(torch.float64, requires_grad=True)
    inputs.attend(clean, kernel=kernel).sum().backward()
    for name, leaf in leaves.items():
        assert_close(leaf.grad, clean[name].grad, torch.float64, what=name)
