"""PyTorch's scaled_dot_product_attention: #1, #3 and #6."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import polyhead as ph
from tests.peers.helpers import assert_same_function, normal

KERNELS = ("auto", "plain")  # auto is SDPA itself in some of these cases, so it alone would prove little
DTYPES = (torch.float64, torch.float32)


def inputs(q_len: int, kv_len: int, *, kv_heads: int = 4, v_head_dim: int = 8, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(2, 4, q_len, 8), (2, kv_heads, kv_len, 8), (2, kv_heads, kv_len, v_head_dim)]
    return [normal(*shape, dtype=dtype, seed=seed, requires_grad=True) for seed, shape in enumerate(shapes)]


def spec(kv_heads: int = 4, v_head_dim: int = 8, **choices: object) -> ph.AttentionSpec:
    storage = ph.Grouped(num_heads=4, num_kv_heads=kv_heads, head_dim=8, v_head_dim=v_head_dim)
    return ph.AttentionSpec(storage=storage, **choices)


def assert_sdpa(tensors: list[Tensor], ours: Tensor, **peer: object) -> None:
    theirs = scaled_dot_product_attention(*tensors, **peer)
    assert_same_function(ours.transpose(1, 2), theirs.transpose(1, 2), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
class TestSdpa:
    @pytest.mark.parametrize(("q_len", "kv_len"), [(7, 7), (3, 9), (9, 3), (1, 1)])
    def test_standard(self, kernel: str, dtype: torch.dtype, q_len: int, kv_len: int) -> None:
        tensors = inputs(q_len, kv_len, v_head_dim=5, dtype=dtype)
        assert_sdpa(tensors, ph.attend(*tensors, spec(v_head_dim=5), kernel=kernel))

    def test_given_scale(self, kernel: str, dtype: torch.dtype) -> None:
        tensors = inputs(5, 6, dtype=dtype)
        ours = ph.attend(*tensors, spec(weighting=ph.Softmax(scale=0.7)), kernel=kernel)
        assert_sdpa(tensors, ours, scale=0.7)

    def test_causal(self, kernel: str, dtype: torch.dtype) -> None:
        tensors = inputs(7, 7, dtype=dtype)
        assert_sdpa(tensors, ph.attend(*tensors, spec(pattern=ph.Causal()), kernel=kernel), is_causal=True)

    @pytest.mark.parametrize(("q_len", "kv_len"), [(3, 9), (1, 6)])
    def test_causal_with_fewer_queries_is_lower_right(
        self, kernel: str, dtype: torch.dtype, q_len: int, kv_len: int
    ) -> None:
        tensors = inputs(q_len, kv_len, dtype=dtype)
        lower_right = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)
        ours = ph.attend(*tensors, spec(pattern=ph.Causal()), kernel=kernel)
        assert_sdpa(tensors, ours, attn_mask=lower_right)

    def test_causal_counted_from_zero_is_upper_left(self, kernel: str, dtype: torch.dtype) -> None:
        tensors = inputs(3, 9, dtype=dtype)
        positions = torch.arange(3)
        ours = ph.attend(*tensors, spec(pattern=ph.Causal()), query_positions=positions, kernel=kernel)
        assert_sdpa(tensors, ours, is_causal=True)

    @pytest.mark.parametrize("kv_heads", [2, 1])
    @pytest.mark.parametrize("causal", [False, True])
    def test_grouped_heads(self, kernel: str, dtype: torch.dtype, kv_heads: int, causal: bool) -> None:
        tensors = inputs(6, 6, kv_heads=kv_heads, dtype=dtype)
        pattern = ph.Causal() if causal else ph.Full()
        ours = ph.attend(*tensors, spec(kv_heads, pattern=pattern), kernel=kernel)
        assert_sdpa(tensors, ours, is_causal=causal, enable_gqa=True)

    def test_masked_keys(self, kernel: str, dtype: torch.dtype) -> None:
        tensors = inputs(5, 6, dtype=dtype)
        key_mask = torch.tensor([[True] * 6, [False, True, True, False, True, False]])
        ours = ph.attend(*tensors, spec(), key_mask=key_mask, kernel=kernel)
        assert_sdpa(tensors, ours, attn_mask=key_mask[:, None, None])
