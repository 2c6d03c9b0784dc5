"""MLA in torch: the keys and values of every head, expanded from the latent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyhead.spec import AttentionSpec, Latent


def expand(stored: Tensor, params: Mapping[str, Tensor], spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Expand the stored rows: ``key = [W_UK·c | RoPE key]`` and ``value = W_UV·c`` for each head.

    Args:
        stored: ``[batch, 1, kv_len, kv_lora_rank + qk_rope_head_dim]``.
        params: ``w_uk`` and ``w_uv``.
        spec: A spec with `Latent` storage.

    Returns:
        Keys ``[batch, num_heads · maps, kv_len, qk_head_dim]`` and values ``[batch, num_heads, kv_len, v_head_dim]``.
    """
    assert isinstance(spec.storage, Latent)
    latent, rope_key = stored.split([spec.storage.kv_lora_rank, spec.storage.qk_rope_head_dim], dim=-1)
    nope = latent @ params["w_uk"].mT
    key = torch.cat([nope, rope_key.expand(-1, nope.shape[1], -1, -1)], dim=-1)
    return key, latent @ params["w_uv"].mT
