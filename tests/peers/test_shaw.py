"""Shaw's relative positions: VITS for keys and values, Wav2Vec2-BERT for keys, and the definition pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import polyhead as ph
from tests.peers.helpers import assert_same_layer, eager, filled, heads, joined, modeling, normal
from tests.tolerances import assert_close

NUM_HEADS, HEAD_DIM = 3, 4
EMBED_DIM = NUM_HEADS * HEAD_DIM


def spec(max_distance: int, pattern: ph.Band | None = None) -> ph.AttentionSpec:
    storage = ph.Grouped(num_heads=NUM_HEADS, head_dim=HEAD_DIM)
    position = ph.RelativeBias.shaw(max_distance=max_distance)
    return ph.AttentionSpec(storage=storage, position=position, pattern=pattern or ph.Full())


def attend(
    x: Tensor, projections: list[nn.Module], spec: ph.AttentionSpec, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    query, key, value = (heads(project(x), HEAD_DIM) for project in projections)
    params = {"relative_keys": keys, "relative_values": values}
    output, weights = ph.attend(query, key, value, spec, params=params, return_weights=True)
    return joined(output), weights


@pytest.mark.parametrize("length", [5, 11])
def test_keys_and_values_of_vits(length: int) -> None:
    """VITS has no vector past its window where Shaw keeps the last one, so ours gets a last one of zeros."""
    code, window = modeling("vits"), 4
    config = code.VitsConfig(hidden_size=EMBED_DIM, num_attention_heads=NUM_HEADS, window_size=window)
    module = filled(code.VitsAttention(config), torch.float64)
    x = normal(2, length, EMBED_DIM, requires_grad=True)
    theirs = module(x, output_attentions=True)
    keys, values = (nn.functional.pad(table[0], (0, 0, 1, 1)) for table in (module.emb_rel_k, module.emb_rel_v))
    projections = [module.q_proj, module.k_proj, module.v_proj]
    output, weights = attend(x, projections, spec(window + 1), keys, values)
    assert_same_layer((module.out_proj(output), weights), theirs, [x, *module.parameters()])


def test_clipped_keys_of_wav2vec2_bert() -> None:
    code, distance, length = modeling("wav2vec2_bert"), 3, 9
    config = code.Wav2Vec2BertConfig(
        hidden_size=EMBED_DIM,
        num_attention_heads=NUM_HEADS,
        position_embeddings_type="relative_key",
        left_max_position_embeddings=distance,
        right_max_position_embeddings=distance,
    )
    module = filled(code.Wav2Vec2BertSelfAttention(eager(config)), torch.float64)
    x = normal(2, length, EMBED_DIM, requires_grad=True)
    keys = module.distance_embedding.weight
    projections = [module.linear_q, module.linear_k, module.linear_v]
    output, weights = attend(x, projections, spec(distance), keys, torch.zeros_like(keys))
    assert_same_layer((module.linear_out(output), weights), module(x), [x, *module.parameters()])


@pytest.mark.parametrize("causal", [False, True])
def test_clipped_keys_and_values_pair_by_pair(causal: bool) -> None:
    """Equations 3 to 5 of the paper as they stand: transformers has no layer with clipped values."""
    distance, q_len, kv_len = 2, 4, 7
    shapes = [(1, NUM_HEADS, q_len, HEAD_DIM), (1, NUM_HEADS, kv_len, HEAD_DIM), (1, NUM_HEADS, kv_len, HEAD_DIM)]
    query, key, value = (normal(*shape, seed=seed) for seed, shape in enumerate(shapes))
    params = {
        name: normal(2 * distance + 1, HEAD_DIM, seed=seed)
        for seed, name in enumerate(("relative_keys", "relative_values"), start=3)
    }
    theirs = torch.zeros_like(query)
    for head in range(NUM_HEADS):
        for row in range(q_len):
            i = row + kv_len - q_len
            weights, vectors = [], []
            for j in range(i + 1 if causal else kv_len):
                entry = min(max(j - i, -distance), distance) + distance
                relative_key = key[0, head, j] + params["relative_keys"][entry]
                weights.append(math.exp(query[0, head, row] @ relative_key / math.sqrt(HEAD_DIM)))
                vectors.append(value[0, head, j] + params["relative_values"][entry])
            theirs[0, head, row] = sum(w * v for w, v in zip(weights, vectors, strict=True)) / sum(weights)
    ours = ph.attend(query, key, value, spec(distance, ph.Causal() if causal else None), params=params)
    assert_close(ours, theirs, theirs.dtype)
