"""ALiBi as Bloom and MPT have it: the slopes, and whole attention layers with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import polyhead as ph
from tests.peers.helpers import PADDED, assert_same_layer, eager, filled, joined, mask, modeling, normal, padding
from tests.tolerances import assert_close

LENGTH = 7


def spec(num_heads: int) -> ph.AttentionSpec:
    storage = ph.Grouped(num_heads=num_heads, head_dim=4)
    return ph.AttentionSpec(storage=storage, position=ph.Alibi(), pattern=ph.Causal())


def bloom_bias(key_mask: Tensor, num_heads: int) -> Tensor:
    """Return slope · (number of real keys before this one), ``[batch · heads, 1, len]``."""
    return modeling("bloom").build_alibi_tensor(key_mask, num_heads, torch.float32)


def their_slopes(peer: str, num_heads: int) -> Tensor:
    """Return what a key gains over the one before it, for each head."""
    if peer == "bloom":
        last_two = bloom_bias(torch.ones(1, 2, dtype=torch.bool), num_heads)
    else:
        last_two = modeling("mpt").build_mpt_alibi_tensor(num_heads, 2)
    return (last_two[..., 1] - last_two[..., 0]).flatten()


@pytest.mark.parametrize("peer", ["bloom", "mpt"])
def test_slopes(peer: str) -> None:
    for num_heads in range(1, 65):
        theirs = their_slopes(peer, num_heads)
        ratio = torch.tensor(ph.Alibi().head_slopes(num_heads)) / theirs
        assert_close(ratio, torch.ones(num_heads), theirs.dtype, what=f"slopes of {num_heads} heads")


def test_a_shard_has_its_own_slopes() -> None:
    theirs = their_slopes("bloom", 12)[5:9]
    assert_close(ph.Alibi(first_head=5, total_heads=12).head_slopes(4), theirs, theirs.dtype)


def fused_heads(module: nn.Module, x: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Return queries, keys and values as each model cuts its fused projection."""
    if hasattr(module, "query_key_value"):  # Bloom: head by head
        return module.query_key_value(x).unflatten(-1, (num_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind()
    return module.Wqkv(x).unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


@PADDED
@pytest.mark.parametrize("num_heads", [8, 12, 16])
@pytest.mark.parametrize("peer", ["bloom", "mpt"])
def test_layer(peer: str, num_heads: int, padded: dict[str, int]) -> None:
    x = normal(2, LENGTH, 4 * num_heads, dtype=torch.float32, requires_grad=True)
    key_mask = padding(length=LENGTH, **padded)
    module, *theirs = {"bloom": bloom, "mpt": mpt}[peer](x, key_mask, num_heads)
    output, weights = ph.attend(
        *fused_heads(module, x, num_heads), spec(num_heads), key_mask=key_mask, return_weights=True
    )
    project_out = module.dense if peer == "bloom" else module.out_proj
    ours = project_out(joined(output)), weights
    assert_same_layer(ours, tuple(theirs), [x, *module.parameters()], rows=key_mask)


def bloom(x: Tensor, key_mask: Tensor, num_heads: int) -> tuple[nn.Module, Tensor, Tensor]:
    code = modeling("bloom")
    config = eager(code.BloomConfig(hidden_size=x.shape[-1], n_head=num_heads))
    module = filled(code.BloomAttention(config, layer_idx=0))
    residual = torch.zeros_like(x)
    return module, *module(x, residual, bloom_bias(key_mask, num_heads), mask("causal", config, x, key_mask))


def mpt(x: Tensor, key_mask: Tensor, num_heads: int) -> tuple[nn.Module, Tensor, Tensor]:
    code = modeling("mpt")
    config = eager(code.MptConfig(d_model=x.shape[-1], n_heads=num_heads))
    module = filled(code.MptAttention(config, layer_idx=0))
    bias = code.build_mpt_alibi_tensor(num_heads, LENGTH)
    return module, *module(x, bias, attention_mask=mask("causal", config, x, key_mask) < 0)
