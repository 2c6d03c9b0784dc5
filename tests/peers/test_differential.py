"""DiffLlama's attention layer with the same weights, in its own form, and in the paper's by permuting the maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyhead as ph
from tests.peers.helpers import PADDED, assert_same_layer, eager, filled, heads, joined, mask, modeling, normal, padding

LENGTH, HEAD_DIM = 7, 8


def peer(num_maps: int, num_kv_maps: int, layer: int) -> tuple[nn.Module, nn.Module]:
    code = modeling("diffllama")
    config = eager(
        code.DiffLlamaConfig(
            hidden_size=24,
            num_attention_heads=num_maps,
            num_key_value_heads=num_kv_maps,
            head_dim=HEAD_DIM,
            rms_norm_eps=0.05,  # large, so that it shows
        )
    )
    return filled(code.DiffLlamaAttention(config, layer_idx=layer)), code.DiffLlamaRotaryEmbedding(config)


def halves(maps: Tensor) -> Tensor:
    """Return the maps of head i and i + H/2 as ``[batch, 2, H/2, ...]``."""
    return maps.unflatten(1, (2, -1))


def attend(module: Any, x: Tensor, weighting: ph.Differential, key_mask: Tensor) -> tuple[Tensor, Tensor]:
    query, key, value = (heads(project(x), HEAD_DIM) for project in (module.q_proj, module.k_proj, module.v_proj))
    if weighting.form == "paper":  # which keeps a head's two maps side by side
        query, key = (halves(maps).transpose(1, 2).flatten(1, 2) for maps in (query, key))
    value = torch.cat(halves(value).unbind(1), dim=-1)
    storage = ph.Grouped(num_heads=query.shape[1] // 2, num_kv_heads=value.shape[1], head_dim=HEAD_DIM)
    spec = ph.AttentionSpec(storage=storage, position=ph.Rotary(), pattern=ph.Causal(), weighting=weighting)
    params = {name: getattr(module, name) for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")}
    if weighting.form == "paper":
        params["sub_norm"] = torch.ones(2 * HEAD_DIM)
    output, weights = ph.attend(query, key, value, spec, params=params, key_mask=key_mask, return_weights=True)
    return module.o_proj(joined(output)), weights


@PADDED
@pytest.mark.parametrize("form", ["diffllama", "paper"])
@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize(("num_maps", "num_kv_maps"), [(4, 4), (8, 4), (12, 2), (6, 6)])
def test_layer(num_maps: int, num_kv_maps: int, layer: int, form: str, padded: dict[str, int]) -> None:
    module, rotary = peer(num_maps, num_kv_maps, layer)
    x, key_mask = normal(2, LENGTH, 24, dtype=torch.float32, requires_grad=True), padding(length=LENGTH, **padded)
    causal, angles = mask("causal", module.config, x, key_mask), rotary(x, torch.arange(LENGTH)[None])
    theirs, their_maps = module(x, position_embeddings=angles, attention_mask=causal)
    first, second = halves(their_maps).unbind(1)
    strength = (module.lambda_q1 @ module.lambda_k1).exp() - (module.lambda_q2 @ module.lambda_k2).exp()
    their_weights = first - (strength + module.lambda_init) * second  # which the module never forms
    weighting = ph.Differential(form=form, layer=layer + 1, norm_eps=module.config.rms_norm_eps)
    ours = attend(module, x, weighting, key_mask)
    assert_same_layer(ours, (theirs, their_weights), [x, *module.parameters()], rows=key_mask)
