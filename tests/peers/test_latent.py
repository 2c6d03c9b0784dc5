"""DeepSeek's multi-head latent attention with the same weights, attended from what its cache holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import polyhead as ph
from polyhead.spec.scaling import yarn_mscale
from tests.peers.helpers import PADDED, assert_same_layer, eager, filled, heads, joined, mask, modeling, normal, padding

LENGTH, EMBED_DIM, NUM_HEADS = 7, 24, 3
RANK, NOPE, ROPE, WIDE = 10, 6, 4, 5
YARN = {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707}


def peer(family: str, q_lora_rank: int | None, *, yarn: bool, **more: Any) -> tuple[Any, Any]:
    code, prefix = modeling(family), {"deepseek_v2": "DeepseekV2", "deepseek_v3": "DeepseekV3"}[family]
    scaled = {"rope_type": "yarn", "original_max_position_embeddings": 64, **YARN}
    config = getattr(code, f"{prefix}Config")(
        hidden_size=EMBED_DIM,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        kv_lora_rank=RANK,
        q_lora_rank=q_lora_rank,
        qk_nope_head_dim=NOPE,
        qk_rope_head_dim=ROPE,
        v_head_dim=WIDE,
        rope_parameters={"rope_theta": 10_000.0, **(scaled if yarn else {"rope_type": "default"})},
        **more,
    )
    attention = filled(getattr(code, f"{prefix}Attention")(eager(config), layer_idx=0))
    return attention, getattr(code, f"{prefix}RotaryEmbedding")(config)


def spec(q_lora_rank: int | None, *, yarn: bool, pairs: str) -> ph.AttentionSpec:
    storage = ph.Latent(
        num_heads=NUM_HEADS,
        kv_lora_rank=RANK,
        q_lora_rank=q_lora_rank,
        qk_nope_head_dim=NOPE,
        qk_rope_head_dim=ROPE,
        v_head_dim=WIDE,
    )
    scaling = ph.YarnScaling(original_max_seq_len=64, **YARN) if yarn else None
    scale = (NOPE + ROPE) ** -0.5 * yarn_mscale(YARN["factor"], YARN["mscale_all_dim"]) ** 2 if yarn else None
    return ph.AttentionSpec(
        storage=storage,
        position=ph.Rotary(pairs=pairs, scaling=scaling),
        pattern=ph.Causal(),
        weighting=ph.Softmax(scale=scale),
    )


def attend(module: Any, x: Tensor, spec: ph.AttentionSpec, key_mask: Tensor) -> tuple[Tensor, Tensor]:
    if module.q_lora_rank is None:
        query = module.q_proj(x)
    else:
        query = module.q_b_proj(module.q_a_layernorm(module.q_a_proj(x)))
    latent, rope_key = module.kv_a_proj_with_mqa(x).split([RANK, ROPE], dim=-1)
    stored = torch.cat([module.kv_a_layernorm(latent), rope_key], dim=-1)[:, None]
    w_uk, w_uv = module.kv_b_proj.weight.view(NUM_HEADS, NOPE + WIDE, RANK).split([NOPE, WIDE], dim=1)
    params = {"w_uk": w_uk, "w_uv": w_uv}
    output, weights = ph.attend(
        heads(query, NOPE + ROPE), stored, None, spec, params=params, key_mask=key_mask, return_weights=True
    )
    return module.o_proj(joined(output)), weights


@PADDED
@pytest.mark.parametrize("yarn", [False, True], ids=["trained", "yarn"])
@pytest.mark.parametrize("q_lora_rank", [None, 8])
@pytest.mark.parametrize(
    ("family", "pairs", "more"),
    [
        ("deepseek_v2", "interleaved", {}),
        ("deepseek_v3", "interleaved", {"rope_interleave": True}),
        ("deepseek_v3", "half", {"rope_interleave": False}),
    ],
    ids=["v2", "v3", "v3-half"],
)
def test_layer(
    family: str, pairs: str, more: dict[str, Any], q_lora_rank: int | None, yarn: bool, padded: dict[str, int]
) -> None:
    module, rotary = peer(family, q_lora_rank, yarn=yarn, **more)
    x, key_mask = (
        normal(2, LENGTH, EMBED_DIM, dtype=torch.float32, requires_grad=True),
        padding(length=LENGTH, **padded),
    )
    causal, angles = mask("causal", module.config, x, key_mask), rotary(x, torch.arange(LENGTH)[None])
    theirs = module(x, position_embeddings=angles, attention_mask=causal)
    mechanism = spec(q_lora_rank, yarn=yarn, pairs=pairs)
    assert mechanism.scale == pytest.approx(module.scaling, rel=1e-12)
    assert_same_layer(attend(module, x, mechanism, key_mask), theirs, [x, *module.parameters()], rows=key_mask)
