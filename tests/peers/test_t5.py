"""T5's buckets, and whole T5 attention layers with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import polyhead as ph
from tests.peers.helpers import PADDED, assert_same_layer, eager, filled, heads, joined, mask, modeling, normal, padding
from tests.tolerances import assert_close

NUM_HEADS, HEAD_DIM, EMBED_DIM = 3, 4, 10
BUCKETS, FAR = 8, 20  # so that a short sequence reaches past the exact buckets and past the last


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (32, 64), (64, 128), (16, 100), (8, 20), (4, 5), (32, 1000)]
)
def test_buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> None:
    """Widths in use: at 100 buckets or more float32 may round a boundary otherwise in torch than in NumPy."""
    distance = np.arange(-300, 301)  # key - query
    theirs = modeling("t5").T5Attention._relative_position_bucket(
        torch.from_numpy(distance), bidirectional, num_buckets, max_distance
    )
    bias = ph.RelativeBias.t5(num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional)
    ours = bias.buckets()[distance.clip(-max_distance, max_distance) + max_distance]
    assert ours.tolist() == theirs.tolist()
    assert len(set(ours)) > num_buckets // 2


def spec(position: Any, pattern: ph.Band) -> ph.AttentionSpec:
    storage = ph.Grouped(num_heads=NUM_HEADS, head_dim=HEAD_DIM)
    return ph.AttentionSpec(storage=storage, position=position, pattern=pattern, weighting=ph.Softmax(scale=1.0))


def peer(*, is_decoder: bool) -> Any:
    code = modeling("t5")
    sizes = {"d_model": EMBED_DIM, "d_kv": HEAD_DIM, "num_heads": NUM_HEADS, "is_decoder": is_decoder}
    buckets = {"relative_attention_num_buckets": BUCKETS, "relative_attention_max_distance": FAR}
    config = eager(code.T5Config(**sizes, **buckets))
    return filled(code.T5Attention(config, has_relative_attention_bias=True, layer_idx=0), torch.float64)


def ours(
    module: Any, x: Tensor, context: Tensor, spec: ph.AttentionSpec, key_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    query, key, value = (heads(y, HEAD_DIM) for y in (module.q(x), module.k(context), module.v(context)))
    params = {"bias_table": module.relative_attention_bias.weight} if spec.parameter_shapes() else {}
    output, weights = ph.attend(query, key, value, spec, params=params, key_mask=key_mask, return_weights=True)
    return module.o(joined(output)), weights


@PADDED
@pytest.mark.parametrize("is_decoder", [False, True], ids=["encoder", "decoder"])
def test_self_attention(is_decoder: bool, padded: dict[str, int]) -> None:
    module = peer(is_decoder=is_decoder)
    length = 2 * FAR
    x = normal(2, length, EMBED_DIM, requires_grad=True)
    key_mask = padding(length=length, **padded)
    seen = mask("causal" if is_decoder else "bidirectional", module.config, x, key_mask)
    theirs, _, their_weights = module(x, mask=seen)
    bias = ph.RelativeBias.t5(num_buckets=BUCKETS, max_distance=FAR, bidirectional=not is_decoder)
    layer = ours(module, x, x, spec(bias, ph.Causal() if is_decoder else ph.Full()), key_mask)
    assert_same_layer(layer, (theirs, their_weights), [x, *module.parameters()], rows=key_mask)


def test_cross_attention_has_no_bias() -> None:
    code = modeling("t5")
    config = eager(code.T5Config(d_model=EMBED_DIM, d_kv=HEAD_DIM, num_heads=NUM_HEADS, is_decoder=True))
    module = filled(code.T5Attention(config, layer_idx=0), torch.float64)
    x, context = (normal(2, length, EMBED_DIM, seed=length, requires_grad=True) for length in (4, 6))
    theirs, _, their_weights = module(x, key_value_states=context)
    layer = ours(module, x, context, spec(ph.NoPosition(), ph.Full()))
    assert_same_layer(layer, (theirs, their_weights), [x, context, *module.parameters()])


def test_a_step_of_decoding_counts_from_the_past() -> None:
    module = peer(is_decoder=True)
    theirs = module.compute_bias(2, 9, past_seen_tokens=7)
    bias = spec(ph.RelativeBias.t5(num_buckets=BUCKETS, max_distance=FAR, bidirectional=False), ph.Full())
    query, key = torch.zeros(1, NUM_HEADS, 2, HEAD_DIM).double(), torch.zeros(1, NUM_HEADS, 9, HEAD_DIM).double()
    params = {"bias_table": module.relative_attention_bias.weight}
    weights = ph.attend(query, key, key, bias, params=params, return_weights=True)[1]
    assert_close(weights, theirs.softmax(dim=-1), theirs.dtype)
