"""SDPA: which of its forms a case takes, that heads are not copied, and rows without a key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import polyhead as ph
from polyhead.kernels import dense
from tests.inputs import Inputs, spec
from tests.kernels.watch import NothingAsLargeAs
from tests.tolerances import assert_close

LENGTH = 6


@pytest.fixture
def sdpa_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the arguments of each call of SDPA, as they are made."""
    calls: list[dict[str, Any]] = []

    def spy(query: Any, key: Any, value: Any, mask: Any, **options: Any) -> torch.Tensor:
        calls.append({"mask": mask, **options})
        return functional.scaled_dot_product_attention(query, key, value, mask, **options)

    monkeypatch.setattr(dense, "scaled_dot_product_attention", spy)
    return calls


@pytest.mark.parametrize(
    ("pattern", "q_len", "given", "form"),
    [
        (ph.Full(), LENGTH, {}, "everything"),
        (ph.Full(), 1, {"query_positions": np.array([3])}, "everything"),
        (ph.Causal(), 1, {}, "everything"),  # the last query sees every key
        (ph.Causal(), LENGTH, {}, "is_causal"),
        (ph.Causal(), LENGTH - 1, {}, "mask"),  # is_causal would align the first query with the first key
        (ph.Causal(), 1, {"query_positions": np.array([3])}, "mask"),
        (ph.Causal(), LENGTH, {"query_positions": np.arange(LENGTH)}, "mask"),
        (ph.Causal(), LENGTH, {"key_mask": np.ones((2, LENGTH), dtype=bool)}, "mask"),
        (ph.Full(), LENGTH, {"key_mask": np.ones((2, LENGTH), dtype=bool)}, "mask"),
        (ph.Causal(), LENGTH, {"segments": np.zeros((2, LENGTH), dtype=int)}, "mask"),
        (ph.Full(), LENGTH, {"segments": np.zeros((2, LENGTH), dtype=int)}, "mask"),
        (ph.SlidingWindow.causal(2), LENGTH, {}, "mask"),
    ],
)
def test_which_form_of_sdpa_a_case_takes(
    sdpa_calls: list[dict[str, Any]], pattern: Any, q_len: int, given: dict[str, Any], form: str
) -> None:
    inputs = Inputs.draw(spec(pattern=pattern), 0, q_len=q_len, kv_len=LENGTH).giving(**given)
    assert_close(inputs.attend(torch.float64, kernel="dense"), inputs.oracle(), torch.float64)
    (call,) = sdpa_calls
    assert (call["mask"] is not None, call["is_causal"]) == {
        "everything": (False, False),
        "is_causal": (False, True),
        "mask": (True, False),
    }[form]


REPEATED = 2 * 8 * 100 * 32
"""Elements of keys repeated for every query head, at the sizes below."""


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize("pattern", [ph.Full(), ph.Causal(), ph.SlidingWindow.causal(40)], ids=repr)
@pytest.mark.parametrize("kernel", ["dense", "plain"])
@pytest.mark.parametrize("training", [False, True])
def test_grouped_heads_are_read_where_they_lie(
    num_kv_heads: int, q_len: int, pattern: Any, kernel: str, training: bool
) -> None:
    storage = ph.Grouped(num_heads=8, num_kv_heads=num_kv_heads, head_dim=32)
    inputs = Inputs.draw(ph.AttentionSpec(storage=storage, pattern=pattern), 0, q_len=q_len, kv_len=100)
    leaves = inputs.tensors(torch.float32, requires_grad=training)
    with NothingAsLargeAs(REPEATED) as watch:
        output = inputs.attend(leaves, kernel=kernel)
    assert watch.operations
    assert_close(output, inputs.oracle(), torch.float32)


def test_the_watch_for_copies_sees_one() -> None:
    key = torch.zeros(2, 2, 100, 32)
    with pytest.raises(AssertionError, match=r"makes a tensor \[2, 2, 4, 100, 32\]"), NothingAsLargeAs(REPEATED):
        key.repeat_interleave(4, dim=1)


@pytest.mark.parametrize("storage", ["gqa", "mla"])
def test_a_query_without_a_key_gets_zeros_and_harms_no_gradient(storage: str) -> None:
    mask = np.array([[True] * LENGTH, [False] * LENGTH])
    inputs = Inputs.draw(spec(storage, pattern=ph.Causal()), 1, q_len=LENGTH, kv_len=LENGTH).giving(key_mask=mask)
    leaves = inputs.tensors(torch.float64, requires_grad=True)
    output = inputs.attend(leaves, kernel="dense")
    assert (output[1] == 0).all()
    assert (output[0] != 0).any()
    output.sum().backward()
    for name in ("query", "key"):
        assert (leaves[name].grad[1] == 0).all()
        assert leaves[name].grad[0].isfinite().all()


def test_a_scale_is_taken_exactly() -> None:
    for scale in (0.0, -0.7, 1.0):
        inputs = Inputs.draw(spec("gqa", weighting=ph.Softmax(scale=scale)), 2)
        assert_close(inputs.attend(torch.float64, kernel="dense"), inputs.oracle(), torch.float64)


def test_sdpa_runs_on_tensors_without_data() -> None:
    inputs = Inputs.draw(spec("gqa", pattern=ph.Causal(), position=ph.Rotary()), 0)
    tensors = {name: tensor.to("meta") for name, tensor in inputs.tensors(torch.bfloat16).items()}
    output = inputs.attend(tensors)
    assert output.shape == (2, 4, 5, 8)
    assert (output.device.type, output.dtype) == ("meta", torch.bfloat16)
