"""What decoding is compared with: PyTorch over the same keys, reading these once, and ours where less is to do."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polyhead.bench.contender import Contender, Peer
from polyhead.bench.decoding import GROUPED
from polyhead.bench.work import Work
from polyhead.spec import AttentionSpec, Causal, NoPosition, Softmax


def sdpa_cached(work: Work) -> Contender | str:
    """Run PyTorch's attention of a query over all keys, each read once for every query head of its group."""
    spec, query = work.case.attention, work.query
    if work.case.q_len > 1 or not isinstance(spec.weighting, Softmax) or not isinstance(spec.position, NoPosition):
        return f"it is one query's, with softmax and no bias, and this is {spec!r}"
    key, value = work.tensors["key"], work.tensors["value"]

    def forward() -> Tensor:
        grouped = spec.group_size > 1
        return functional.scaled_dot_product_attention(query, key, value, scale=spec.scale, enable_gqa=grouped)

    return Contender(work.timed(forward, []), same=True)


def read(work: Work) -> Contender | str:
    """Read keys and values once: a sum of their bits, taken as float32."""
    stored = [x.view(torch.float32) for x in (work.tensors["key"], work.tensors["value"])]

    def forward() -> Tensor:
        return torch.stack([x.sum() for x in stored])

    return Contender(work.timed(forward, []), same=False)


def _ours(work: Work, *, dtype: torch.dtype | None = None, **changes: Any) -> Contender:
    """Run ours on another case of the same kind, with tensors of its own."""
    other = Work.of(dataclasses.replace(work.case, **changes), dtype or work.dtype)
    return Contender(other.ours(), same=False)


def _plain(work: Work) -> Contender:
    return _ours(work, spec=AttentionSpec(storage=GROUPED, pattern=Causal()))


def _one_sequence(work: Work) -> Contender:
    return _ours(work, length=sum(work.case.sequences), sequences=())


PEERS: Mapping[str, Peer] = {
    "sdpa-cached": Peer("PyTorch's SDPA over the keys", sdpa_cached),
    "read": Peer("reading keys and values once", read),
    "ours-plain": Peer("ours, GQA without it", _plain),
    "ours-float32": Peer("ours in float32", functools.partial(_ours, dtype=torch.float32)),
    "ours-one-query": Peer("ours, one query", functools.partial(_ours, queries=1)),
    "ours-one-sequence": Peer("ours, as many keys in one sequence", _one_sequence),
}
"""Every peer of decoding but other people's layers, by the name that a case has for it."""
