"""Which pairs may meet: transformers' mask utilities, and BigBird's block-sparse layer with its own random blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import polyhead as ph
from tests.peers.helpers import assert_same_layer, eager, filled, heads, joined, mask, modeling, normal, padding

LENGTH = 13


def pairs_seen(pattern: ph.Pattern, **masks: Tensor) -> Tensor:
    """Return ``[batch, q_len, kv_len]``, True where a pair has weight."""
    storage = ph.Grouped(num_heads=1, head_dim=2)
    equal = torch.zeros(2, 1, LENGTH, 2)
    spec = ph.AttentionSpec(storage=storage, pattern=pattern)
    return ph.attend(equal, equal, equal, spec, return_weights=True, **masks)[1][:, 0] > 0


def their_pairs(kind: str, key_mask: Tensor | None = None, position_ids: Tensor | None = None, **fields: Any) -> Tensor:
    config = eager(modeling("mistral").MistralConfig(**fields))
    options = {} if position_ids is None else {"position_ids": position_ids}  # not every mask takes them
    added = mask(kind, config, torch.zeros(2, LENGTH, 4), key_mask, **options)
    return (added == 0).expand(2, 1, LENGTH, LENGTH)[:, 0]


@pytest.mark.parametrize("size", [1, 2, 5, LENGTH - 1])
@pytest.mark.parametrize(
    ("kind", "field", "ours"),
    [
        ("sliding_window_causal", "sliding_window", ph.SlidingWindow.causal),
        ("bidirectional_sliding_window", "sliding_window", ph.SlidingWindow.symmetric),
        ("chunked_causal", "attention_chunk_size", lambda size: ph.Chunked(size=size) & ph.Causal()),
    ],
    ids=["window", "two-sided window", "chunks"],
)
def test_windows_and_chunks(kind: str, field: str, ours: Callable[[int], ph.Pattern], size: int) -> None:
    assert torch.equal(pairs_seen(ours(size)), their_pairs(kind, **{field: size}))


@pytest.mark.parametrize("padded", [{"left": 4}, {"right": 3}], ids=["left", "right"])
@pytest.mark.parametrize(
    ("kind", "ours"),
    [
        ("causal", ph.Causal()),
        ("bidirectional", ph.Full()),
        ("sliding_window_causal", ph.SlidingWindow.causal(5)),
    ],
    ids=["causal", "full", "window"],
)
def test_padding(kind: str, ours: ph.Pattern, padded: dict[str, int]) -> None:
    key_mask = padding(length=LENGTH, **padded)
    theirs = their_pairs(kind, key_mask, sliding_window=5)
    assert torch.equal(pairs_seen(ours, key_mask=key_mask)[key_mask], theirs[key_mask])


@pytest.mark.parametrize(
    ("kind", "ours"),
    [("causal", ph.Causal()), ("sliding_window_causal", ph.SlidingWindow.causal(3))],
    ids=["causal", "window"],
)
def test_packed_sequences(kind: str, ours: ph.Pattern) -> None:
    """transformers finds packed sequences where position_ids start again; ours are given as segments."""
    segments = torch.tensor([[0] * 4 + [1] * 7 + [2] * 2, [5] * 9 + [3] * 4])
    position_ids = torch.stack([torch.cat([torch.arange(n) for n in counts]) for counts in ([4, 7, 2], [9, 4])])
    theirs = their_pairs(kind, position_ids=position_ids, sliding_window=3)
    assert torch.equal(pairs_seen(ours, segments=segments), theirs)


@pytest.mark.parametrize("seed", [0, 1])
def test_bigbird_by_blocks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first and last blocks are global, the window is three blocks, and each block draws one block at random."""
    code, block, num_blocks, num_heads, head_dim = modeling("big_bird"), 3, 10, 2, 4
    embed_dim, length = num_heads * head_dim, block * num_blocks
    config = code.BigBirdConfig(
        hidden_size=embed_dim, num_attention_heads=num_heads, block_size=block, num_random_blocks=1
    )
    module = filled(code.BigBirdBlockSparseAttention(config, seed=seed), torch.float64).train()  # eval draws block 0
    drawn: list[np.ndarray] = []
    draw = module._bigbird_block_rand_mask_with_head
    monkeypatch.setattr(module, "_bigbird_block_rand_mask_with_head", lambda **kw: drawn.append(draw(**kw)) or drawn[0])
    x = normal(2, length, embed_dim, requires_grad=True)
    real = torch.ones(2, length, dtype=torch.float64)
    blocked, band, rows, columns = code.BigBirdModel.create_masks_for_block_sparse_attn(real, block)
    theirs = module(x, band, rows, columns, blocked, blocked)

    table = [[(), *(tuple(row) for row in head.tolist()), ()] for head in drawn[0]]  # the ends, being global, draw none
    pattern = (
        ph.Chunked(size=block, left=1, right=1)
        | ph.Global(first=block, last=block)
        | ph.Links(table=table, block=block)
    )
    spec = ph.AttentionSpec(storage=ph.Grouped(num_heads=num_heads, head_dim=head_dim), pattern=pattern)
    projected = (heads(project(x), head_dim) for project in (module.query, module.key, module.value))
    output, weights = ph.attend(*projected, spec, return_weights=True)
    assert_same_layer((joined(output), weights), theirs, [x, *module.parameters()])
    assert 0.3 < (weights > 0).double().mean() < 0.8
