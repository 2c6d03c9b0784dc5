"""Positions that count on, and what RoPE makes of them: shared between calls, and nobody's to change."""

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.position import rotary
from polyhead.position.counted import counted
from polyhead.spec import YarnScaling

CPU = torch.device("cpu")


@pytest.mark.parametrize("first", [-3, 0, 1020, 5000])
@pytest.mark.parametrize("count", [0, 1, 7, 4096])
def test_numbers(first, count):
    found = counted(first, count, CPU)
    assert found.dtype == torch.int64
    assert found.tolist() == [list(range(first, first + count))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("first", [0, 77, 131_000])
@pytest.mark.parametrize(
    "position",
    [
        ph.Rotary(),
        ph.Rotary(pairs="interleaved"),
        ph.Rotary(rotary_dim=4, scaling=YarnScaling(factor=4.0, original_max_seq_len=64)),
    ],
    ids=repr,
)
def test_waves_are_those_of_the_positions(position, first, dtype):
    spec = ph.AttentionSpec(storage=ph.Grouped(num_heads=2, head_dim=8), position=position, pattern=ph.Causal())
    ours = rotary.counted_waves(first, 5, spec, dtype, CPU)
    for remembered, made in zip(ours, rotary.waves(counted(first, 5, CPU), spec, dtype), strict=True):
        assert remembered.dtype == made.dtype
        assert remembered.shape == made.shape
        np.testing.assert_allclose(remembered, made, rtol=0, atol=2 * torch.finfo(made.dtype).eps)


def test_long_ones_are_not_kept():
    spec = ph.AttentionSpec(storage=ph.Grouped(num_heads=1, head_dim=64), position=ph.Rotary(), pattern=ph.Causal())
    rotary._remembered_waves.cache_clear()
    cos, _ = rotary.counted_waves(0, rotary.REMEMBERED_NUMBERS // 64 + 1, spec, torch.float32, CPU)
    assert cos.shape == (1, 1, rotary.REMEMBERED_NUMBERS // 64 + 1, 64)
    assert rotary._remembered_waves.cache_info().currsize == 0


def test_what_is_made_in_inference_mode_serves_training():
    """A tensor that is made there cannot be saved for a backward pass, so none is remembered."""
    spec = ph.AttentionSpec(storage=ph.Grouped(num_heads=1, head_dim=8), position=ph.Rotary(), pattern=ph.Causal())
    x = torch.randn(1, 1, 3, 8)
    rotary._remembered_waves.cache_clear()
    with torch.inference_mode():
        before = ph.attend(x, x, x, spec)
    x.requires_grad_()
    after = ph.attend(x, x, x, spec)
    after.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.allclose(before.clone(), after, atol=1e-6)
