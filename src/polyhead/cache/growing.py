"""The cache that keeps every token: keys and values, or the latent rows of MLA, written in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyhead.cache.rows import RowCache
from polyhead.kernels.common import Call
from polyhead.position.counted import counted
from polyhead.spec import AttentionSpec

SMALLEST = 64
"""Slots reserved at first where no ``max_seq_len`` is given."""


class GrowingCache(RowCache):
    """Every token's rows. With ``max_seq_len`` all are reserved at once; without, room doubles when it runs out.

    With `Latent` storage a row is the latent and the rotated RoPE key, ``kv_lora_rank + qk_rope_head_dim`` numbers,
    and nothing else is kept. A sequence's token n lies in slot n. Where each query turns all keys by frequencies of
    its own (dynamic NTK, LongRoPE), keys are kept unrotated.
    """

    def __init__(
        self, spec: AttentionSpec, *, batch: int, max_seq_len: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(spec, batch=batch, max_seq_len=max_seq_len, dtype=dtype, device=device)
        self._tensors = self._reserved(max_seq_len or 0)

    @contextlib.contextmanager
    def _appending(self, call: Call, counts: Sequence[int]) -> Iterator[Call]:
        even = self._is_even and len(set(counts)) <= 1
        aligned = even and all(count == call.case.q_len for count in counts)
        # a token lies in the slot of its position
        slots = slice(self.length, self.length + call.case.q_len) if aligned and self.batch else call.key_positions
        grown = self._grown(counts)
        self._make_room(max((0, *grown)))
        self._write(self._with_mask(call), counts, slots)
        self.lengths = grown
        seen = {name: tensor[:, :, : self.length] for name, tensor in self._tensors.items()}
        full = self._over(call, seen, counted(0, self.length, self.device), aligned=aligned)
        yield full if aligned else _ragged(full, grown)

    def _make_room(self, needed: int) -> None:
        """Move to larger tensors if need be; the old ones stay as they are."""
        if needed <= self.slots:
            return
        small = self._tensors
        slots = max(needed, 2 * self.slots, SMALLEST)
        self._tensors = self._reserved(slots)
        if "mask" in small:
            self._tensors["mask"] = self._all_may_be_seen()
        for name, tensor in small.items():
            self._tensors[name][:, :, : self._filled] = tensor[:, :, : self._filled]

    @property
    def _filled(self) -> int:
        return self.length

    def _restore(self, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        self._tensors = self._reserved(max(self.length, self.slots))
        super()._restore(tensors, options)


def _ragged(call: Call, lengths: tuple[int, ...]) -> Call:
    """Return a call whose sequences have keys of their own number, which lie in order from position 0."""
    return call._replace(case=call.case._replace(ragged=True), kv_lengths=lengths)
