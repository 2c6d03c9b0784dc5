"""A layer that decodes, and beside it whole sequences: from these follow its outputs and what its cache must hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead import cache as caches
from polyhead.spec import retention
from tests import reference
from tests.inputs import Array
from tests.tolerances import as_array

CLASSES = {
    "growing": caches.GrowingCache,
    "rolling": caches.RollingCache,
    "state": caches.StateCache,
    "context": caches.ContextCache,
}
CONTEXT_TOKENS = 4


class Past(NamedTuple):
    """All that has gone through for one sequence.

    Attributes:
        x: ``[tokens, embed_dim]``.
        source: What keys are made of, ``[tokens, width]``: the same, or a context. None: it has not come.
        seen: Which tokens of the source may be attended, ``[tokens]``.
        longest: How long the sequence was at most since the cache last had all its tokens.
    """

    x: Array
    source: Array | None
    seen: Array
    longest: int = 0


class Decoding:
    """A layer that decodes, its cache, and beside it whole sequences, from which a reference says what comes out."""

    def __init__(
        self,
        layer: ph.LayerSpec,
        batch: int,
        max_seq_len: int | None,
        *,
        slack: int,
        dtype: torch.dtype,
        seed: int,
        folder: Path,
    ) -> None:
        self.layer, self.max_seq_len, self.slack, self.dtype, self.folder = layer, max_seq_len, slack, dtype, folder
        self.rng = np.random.default_rng(seed)
        self.numbers = reference.drawn_numbers(layer, seed, dtype)
        self.module = reference.layer_of(layer, self.numbers, dtype)
        self.retention = retention(layer.attention, layer.source)
        self.cache = self.module.new_cache(batch, max_seq_len, slack=slack)
        self.pasts = [self.nothing()] * batch
        assert type(self.cache) is CLASSES[self.retention.kind]

    def nothing(self) -> Past:
        x = np.zeros((0, self.layer.embed_dim))
        return Past(x, None if self.layer.source == "cross" else x, np.zeros(0, dtype=bool))

    def twin(self) -> Decoding:
        """Return another with a clone of the cache."""
        twin = object.__new__(Decoding)
        vars(twin).update(vars(self), cache=self.cache.clone(), pasts=list(self.pasts))
        return twin

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(past.x) for past in self.pasts)

    @property
    def bound(self) -> int | None:
        """Length that no sequence may pass; a rolling cache has none."""
        return None if self.retention.kind == "rolling" else self.max_seq_len

    def is_too_long(self, pasts: list[Past]) -> bool:
        """Whether a sequence passes the bound."""
        return self.bound is not None and any(len(past.x) > self.bound for past in pasts)

    @property
    def room(self) -> int:
        """Tokens that a rolling cache has room for."""
        left, first = self.retention.reach
        return left + 1 + self.slack + first

    def drawn(self, *shape: int) -> Array:
        return as_array(torch.tensor(self.rng.standard_normal(shape), dtype=self.dtype))

    def tensor(self, array: Array) -> torch.Tensor:
        return torch.tensor(array, dtype=self.dtype)

    def expected(self, past: Past) -> Array:
        """Return the output of one whole sequence, ``[tokens, embed_dim]``."""
        context = past.source[None] if self.layer.source == "cross" else None
        return reference.forward(self.layer, self.numbers, past.x[None], context, key_mask=past.seen[None])[0]

    def check(self) -> None:
        """The cache says of itself what is so."""
        assert (self.cache.lengths, self.cache.batch) == (self.lengths, len(self.pasts))
        assert self.cache.length == max((0, *self.lengths))
        assert self.cache.used_bytes == self.needed_bytes()
        assert self.cache.used_bytes <= self.cache.allocated_bytes

    def needed_bytes(self) -> int:
        spec, storage = self.layer.attention, self.layer.attention.storage
        if isinstance(storage, ph.Latent):
            row = storage.kv_lora_rank + storage.qk_rope_head_dim
        else:
            row = spec.num_kv_heads * (spec.num_maps * storage.head_dim + spec.v_head_dim)
        if self.retention.kind == "state":
            return len(self.pasts) * spec.num_kv_heads * spec.qk_head_dim * (spec.v_head_dim + 1) * self.dtype.itemsize
        rows = [0 if past.source is None else len(past.source) for past in self.pasts]
        if self.retention.kind == "rolling":
            rows = [min(count, self.room - self.slack) for count in rows]
        return sum(rows) * row * self.dtype.itemsize

    def refused(self, error: type[Exception], match: str, call: Callable[[], Any]) -> None:
        """The call raises, and the cache is as it was."""
        before, held = self.said(), self.held()
        with pytest.raises(error, match=match):
            call()
        assert self.said() == before
        assert all(map(torch.equal, self.held(), held))

    def said(self) -> tuple[Any, ...]:
        """Return what the cache says of itself."""
        return repr(self.cache), self.cache.lengths, self.cache.allocated_bytes, self.cache.options()

    def held(self) -> list[torch.Tensor]:
        """Return what the cache holds of each sequence; in a growing one what lies past a length is nothing."""
        tensors = self.cache.saved_tensors().values()
        lengths = self.lengths if self.retention.kind == "growing" else [None] * len(self.pasts)
        return [tensor[row, :, :length].clone() for tensor in tensors for row, length in enumerate(lengths)]
