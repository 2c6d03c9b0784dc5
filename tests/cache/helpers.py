"""What the tests of caches share: a spec for each way of keeping, its tokens, and all that a cache holds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
import torch
from torch import Tensor

import polyhead as ph
from polyhead import cache as caches
from tests.inputs import INPUTS, Inputs, spec
from tests.tolerances import assert_close

SINKS = (ph.SlidingWindow.causal(3) | ph.Global(first=2)) & ph.Causal()


class Kind(NamedTuple):
    """A spec and how its past is kept."""

    spec: ph.AttentionSpec
    kept: type[caches.Cache]
    slack: int = 0

    @property
    def source(self) -> str:
        return self.kept.source


KINDS = {
    "growing": Kind(spec("gqa", pattern=ph.Causal(), position=ph.Rotary()), caches.GrowingCache),
    "growing latent": Kind(spec("mla", pattern=ph.Causal(), position=ph.Rotary()), caches.GrowingCache),
    "growing ALiBi": Kind(spec("mqa", pattern=ph.Causal(), position=ph.Alibi()), caches.GrowingCache),
    "rolling": Kind(spec("gqa", pattern=ph.SlidingWindow.causal(3), position=ph.Rotary()), caches.RollingCache),
    "rolling first": Kind(spec("gqa", pattern=SINKS, position=ph.Alibi()), caches.RollingCache, slack=1),
    "rolling latent": Kind(spec("mla", pattern=ph.SlidingWindow.causal(3)), caches.RollingCache, slack=2),
    "state": Kind(spec("gqa", pattern=ph.Causal(), weighting=ph.Linear(), position=ph.Rotary()), caches.StateCache),
    "state latent": Kind(spec("mla", pattern=ph.Causal(), weighting=ph.Linear()), caches.StateCache),
    "context": Kind(spec("gqa", pattern=ph.Full()), caches.ContextCache),
    "context latent": Kind(spec("mla", pattern=ph.Full()), caches.ContextCache),
}
"""Every class, over heads and over a latent."""

by_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=[name.replace(" ", "-") for name in KINDS])


def of_kind(*names: str) -> pytest.MarkDecorator:
    """Parametrise over the kinds whose names begin so."""
    chosen = {name: kind for name, kind in KINDS.items() if name.startswith(names)}
    return pytest.mark.parametrize("kind", chosen.values(), ids=[name.replace(" ", "-") for name in chosen])


ONE_OF_EACH = {name: KINDS[name] for name in ("growing", "rolling first", "state", "context")}
by_class = pytest.mark.parametrize("kind", ONE_OF_EACH.values(), ids=[name.replace(" ", "-") for name in ONE_OF_EACH])


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Queries, keys and values of a whole sequence, which go through a cache piece by piece.

    A context, where there is one, comes with the first piece.
    """

    kind: Kind
    inputs: Inputs
    dtype: torch.dtype = torch.float32

    @classmethod
    def draw(
        cls,
        kind: Kind,
        count: int = 12,
        *,
        batch: int = 2,
        context: int = 5,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> Self:
        kv_len = context if kind.source == "cross" else count
        inputs = Inputs.draw(kind.spec, seed, batch=batch, q_len=count, kv_len=kv_len).rounded(dtype)
        if kind.source == "cross":
            inputs = inputs.giving(query_positions=np.arange(count), key_positions=np.arange(kv_len))
        return cls(kind, inputs, dtype)

    def masked(self, mask: np.ndarray) -> Self:
        """Return the same tokens, of which some keys may not be seen."""
        return dataclasses.replace(self, inputs=self.inputs.giving(key_mask=mask))

    def of_sequences(self, rows: Sequence[int]) -> Self:
        """Return the tokens of some sequences."""
        learned = self.inputs.learned
        chosen = {n: learned[n][list(rows)] for n in INPUTS if n in learned}
        return dataclasses.replace(self, inputs=self.inputs.changing(**chosen))

    @property
    def count(self) -> int:
        return int(self.inputs.learned["query"].shape[2])

    @property
    def batch(self) -> int:
        return int(self.inputs.learned["query"].shape[0])

    def new_cache(self, **options: Any) -> caches.Cache:
        asked = {"batch": self.batch, "slack": self.kind.slack, "source": self.kind.source, "dtype": self.dtype}
        return caches.new_cache(self.kind.spec, **{**asked, **options})

    def params(self) -> dict[str, Tensor]:
        """Return the learned tensors, in float32 at least, as training keeps them."""
        wide = torch.promote_types(self.dtype, torch.float32)
        return {name: torch.tensor(x, dtype=wide) for name, x in self.inputs.learned.items() if name not in INPUTS}

    def piece(self, cache: caches.Cache, start: int, stop: int | None = None) -> dict[str, Tensor | None]:
        """Return query, key and value of some tokens; of a context that the cache has already, none."""
        seen = slice(start, stop)
        of_context = slice(0, 0) if isinstance(cache, caches.ContextCache) and cache.has_context else slice(None)
        rows = {"query": seen, "key": seen, "value": seen}
        if self.kind.source == "cross":
            rows.update(key=of_context, value=of_context)
        learned = self.inputs.learned
        return {n: torch.tensor(learned[n][:, :, rows[n]]).to(self.dtype) if n in learned else None for n in rows}

    def decode(self, cache: caches.Cache, start: int, stop: int | None = None, **options: Any) -> Any:
        """Attend with some tokens, which go into the cache."""
        piece = self.piece(cache, start, stop)
        return ph.attend(**piece, spec=self.kind.spec, params=self.params(), cache=cache, **options)

    def append(self, cache: caches.Cache, start: int, stop: int | None = None, **options: Any) -> None:
        """Store some tokens, attending to nothing."""
        piece = self.piece(cache, start, stop)
        cache.append(piece["key"], piece["value"], params=self.params(), **options)

    def filled(self, count: int, **options: Any) -> caches.Cache:
        """Return a cache that has seen the first ``count`` tokens, three at a time."""
        cache = self.new_cache(**options)
        for start in range(0, count, 3):
            self.decode(cache, start, min(start + 3, count))
        return cache

    def ragged(
        self, cache: caches.Cache, starts: Sequence[int], counts: Sequence[int], *, padding: float = 9.0
    ) -> dict[str, Tensor | None]:
        """Return each sequence's next tokens, padded at the right to the longest count."""
        piece = self.piece(cache, 0)
        for name, whole in piece.items():
            if whole is not None and (name == "query" or self.kind.source == "self"):
                rows = whole.new_full((*whole.shape[:2], max(counts), whole.shape[3]), padding)
                for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
                    rows[row, :, :count] = whole[row, :, start : start + count]
                piece[name] = rows
        return piece

    def expected(self) -> np.ndarray:
        """Return the oracle's output for the whole sequence."""
        return self.inputs.oracle()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor that can be reached from an object's attributes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)


def held(cache: caches.Cache) -> list[Tensor]:
    """Return every tensor that a cache holds, wherever it keeps it."""
    return list(tensors_in(vars(cache)))


def held_bytes(cache: caches.Cache) -> int:
    """Return the bytes of the memory behind a cache's tensors, each once."""
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held(cache)}
    return sum(storages.values())


def content(cache: caches.Cache) -> dict[str, Any]:
    """Return what a cache says of itself, and copies of what it keeps for each sequence."""
    kept = {}
    for name, tensor in cache.saved_tensors().items():
        if isinstance(cache, caches.GrowingCache):  # what lies past a sequence's length is nothing
            kept[name] = [row[:, :length].clone() for row, length in zip(tensor, cache.lengths, strict=True)]
        else:
            kept[name] = [row.clone() for row in tensor]
    return {
        "kept": kept,
        "lengths": cache.lengths,
        "batch": cache.batch,
        "used": cache.used_bytes,
        "allocated": cache.allocated_bytes,
        "held": held_bytes(cache),
        "options": cache.options(),
    }


def assert_same_content(now: dict[str, Any], before: dict[str, Any], *, besides: Sequence[str] = ()) -> None:
    """Assert that two contents are equal to the bit, NaN included."""
    for name in before:
        if name != "kept" and name not in besides:
            assert now[name] == before[name], name
    assert now["kept"].keys() == before["kept"].keys()
    for name, rows in before["kept"].items():
        for row, (ours, theirs) in enumerate(zip(now["kept"][name], rows, strict=True)):
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape, (name, row)
            assert torch.equal(as_bits(ours), as_bits(theirs)), f"{name} of sequence {row} differs"


def as_bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


@contextlib.contextmanager
def left_as_it_was(cache: caches.Cache, tokens: Tokens, at: int) -> Iterator[None]:
    """Check that nothing of a cache changes inside the block, and that it goes on as if nothing had been."""
    before, where = content(cache), [x.data_ptr() for x in held(cache)]
    yield
    assert_same_content(content(cache), before)
    assert [x.data_ptr() for x in held(cache)] == where
    assert_close(tokens.decode(cache.clone(), at), tokens.expected()[:, :, at:], torch.float32)
