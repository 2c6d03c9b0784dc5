"""Keys and values compressed into a latent, for #15: by matrices that are given, or by a joint SVD."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import ShapeError
from polyhead.spec import AttentionSpec, Latent

Array = NDArray[Any]


def half_rank(key: Array, value: Array) -> int:
    """Return half the rank of all heads' keys and values side by side, at least 1."""
    joint = np.concatenate([*key, *value], axis=-1)
    return max(1, int(np.linalg.matrix_rank(joint)) // 2)


def latent_of(
    spec: AttentionSpec, key: Array, value: Array, given: tuple[Array, Array] | None
) -> tuple[Array, dict[str, Array], str]:
    """Compress keys and values into latent rows.

    Args:
        spec: A spec with `Latent` storage.
        key: ``[kv_heads, len, width]``.
        value: ``[kv_heads, len, v_width]``.
        given: W_down ``[width, rank]`` and W_up ``[rank, width]``, used where they fit. None: an SVD.

    Returns:
        The latent rows ``[1, len, rank]``, the matrices that expand them, and what was done in a sentence.

    Raises:
        ShapeError: If the latent has a RoPE key, which is no part of whole keys.
    """
    assert isinstance(spec.storage, Latent)
    rank, group = spec.storage.kv_lora_rank, spec.num_heads // len(key)
    if spec.storage.qk_rope_head_dim:
        raise ShapeError("a latent with a RoPE key cannot be made from whole keys; give qk_rope_head_dim=0")
    if given is not None and spec.num_heads == 1 and rank == given[0].shape[1]:
        down, up = given
        return key @ down, {"w_uk": up.T[None], "w_uv": up.T[None]}, "latent by the textbook's W_down"
    joint = np.concatenate([*key, *value], axis=-1)  # [len, all heads' widths]
    left, sizes, right = np.linalg.svd(joint, full_matrices=False)
    rank_found = min(rank, len(sizes))
    rows = np.zeros((1, len(joint), rank))
    rows[0, :, :rank_found] = left[:, :rank_found] * sizes[:rank_found]
    up = np.zeros((rank, joint.shape[1]))
    up[:rank_found] = right[:rank_found]
    split = len(key) * key.shape[-1]
    w_uk, w_uv = (
        np.repeat(part.T.reshape(len(key), -1, rank), group, axis=0) for part in (up[:, :split], up[:, split:])
    )
    kept = (sizes[:rank_found] ** 2).sum() / max((sizes**2).sum(), np.finfo(float).tiny)
    note = (
        f"joint SVD of keys and values at rank {rank} of {len(sizes)} keeps {kept:.1%} of their energy, "
        f"{rank} {'number' if rank == 1 else 'numbers'} per token for {joint.shape[1]}"
    )
    return rows, {"w_uk": w_uk, "w_uv": w_uv}, note
