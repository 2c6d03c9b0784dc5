"""nn.MultiheadAttention with the same weights: #2, and #4 with keys and values of other widths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import polyhead as ph
from tests.peers.helpers import assert_same_layer, filled, heads, joined, normal

EMBED_DIM, NUM_HEADS = 12, 3
HEAD_DIM = EMBED_DIM // NUM_HEADS


def peer(**options: object) -> nn.MultiheadAttention:
    return filled(nn.MultiheadAttention(EMBED_DIM, NUM_HEADS, batch_first=True, **options), torch.float64)


def ours(
    module: nn.MultiheadAttention, inputs: tuple[Tensor, Tensor, Tensor], pattern: ph.Band, **more: object
) -> tuple[Tensor, Tensor]:
    """Project with the module's weights, attend with our spec, and project out: output and per-head weights."""
    weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    if module.in_proj_weight is not None:
        weights = list(module.in_proj_weight.chunk(3))
    projections = zip(inputs, weights, module.in_proj_bias.chunk(3), strict=True)
    query, key, value = (heads(nn.functional.linear(x, weight, bias), HEAD_DIM) for x, weight, bias in projections)
    weighting = ph.Softmax(sink=module.add_zero_attn)
    storage = ph.Grouped(num_heads=NUM_HEADS, head_dim=HEAD_DIM)
    spec = ph.AttentionSpec(storage=storage, pattern=pattern, weighting=weighting)
    output, per_head = ph.attend(query, key, value, spec, return_weights=True, **more)
    return module.out_proj(joined(output)), per_head


@pytest.mark.parametrize("causal", [False, True])
def test_multi_head_self_attention(causal: bool) -> None:
    module, x = peer(), normal(2, 6, EMBED_DIM, requires_grad=True)
    key_mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    later = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None
    theirs = module(x, x, x, key_padding_mask=~key_mask, attn_mask=later, average_attn_weights=False)
    layer = ours(module, (x, x, x), ph.Causal() if causal else ph.Full(), key_mask=key_mask)
    assert_same_layer(layer, theirs, [x, *module.parameters()])


@pytest.mark.parametrize(("kdim", "vdim"), [(None, None), (7, 5)])
def test_cross_attention(kdim: int | None, vdim: int | None) -> None:
    module = peer(kdim=kdim, vdim=vdim)
    x = normal(2, 4, EMBED_DIM, seed=1, requires_grad=True)
    keys_from = normal(2, 7, kdim or EMBED_DIM, seed=2, requires_grad=True)
    values_from = normal(2, 7, vdim or EMBED_DIM, seed=3, requires_grad=True)
    inputs = (x, keys_from, values_from)
    theirs = module(*inputs, average_attn_weights=False)
    assert_same_layer(ours(module, inputs, ph.Full()), theirs, [*inputs, *module.parameters()])


def test_a_sink_of_logit_zero_is_add_zero_attn() -> None:
    module, x = peer(add_zero_attn=True), normal(2, 5, EMBED_DIM, requires_grad=True)
    theirs, their_weights = module(x, x, x, average_attn_weights=False)
    sinks = torch.zeros(NUM_HEADS, dtype=torch.float64)
    layer = ours(module, (x, x, x), ph.Full(), params={"sinks": sinks})
    assert_same_layer(layer, (theirs, their_weights[..., :-1]), [x, *module.parameters()])
