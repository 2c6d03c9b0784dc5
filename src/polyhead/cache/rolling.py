"""The cache of a window: the last tokens in a ring, and the first ones if the pattern keeps them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyhead.cache.base import own
from polyhead.cache.rows import RowCache
from polyhead.errors import ShapeError, UnsupportedError
from polyhead.kernels.common import Call
from polyhead.spec import AttentionSpec
from polyhead.spec.choice import as_int
from polyhead.spec.ranges import Reach

NOWHERE = 2**40
"""Position given to a slot that holds nothing: later than any query, so no causal pattern sees it."""


class RollingCache(RowCache):
    """The rows that a pattern of bounded reach can still see, however long the sequence; ``max_seq_len`` is no bound.

    Token p lies in slot p if it is one of the kept first ones, else in a ring, so that a slot's position follows
    from its sequence's length. Chunks of up to ``slack + 1`` tokens are written in place, and longer ones seen
    beside the window first and written after; the last ``slack`` tokens can be cropped.

    Args:
        spec: The mechanism, with a pattern of bounded reach.
        batch: Number of sequences.
        max_seq_len: Not read.
        slack: Tokens kept beyond the reach.
        dtype: Dtype of the keys and values that it takes.
        device: Where its tensors are.

    Attributes:
        reach: How far back a query looks.
        slack: Tokens kept beyond it.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        *,
        batch: int,
        max_seq_len: int | None,
        slack: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(spec, batch=batch, max_seq_len=None, dtype=dtype, device=device)
        self.slack = as_int("slack", slack, at_least=0)
        self.reach: Reach = self._retention.reach
        assert self.reach.left is not None
        self._left, self._first = self.reach.left, self.reach.first
        self._ring = self._left + 1 + self.slack
        self._longest = self.lengths  # the longest that each sequence was since it last had all its tokens here
        self._tensors = self._reserved(self._first + self._ring)

    def placed(self, call: Call) -> Call:  # noqa: D102
        if call.case.weights:
            raise UnsupportedError(
                "return_weights=True: a rolling cache has forgotten keys, and the others lie in no order; "
                "ask without a cache"
            )
        return super().placed(call)

    @contextlib.contextmanager
    def _appending(self, call: Call, counts: Sequence[int]) -> Iterator[Call]:
        grown = self._grown(counts)
        after = {"lengths": grown, "_longest": tuple(map(max, self._longest, grown))}
        rows = self._with_mask(call)
        if any(n > self.slots and count > self.slack + 1 for n, count in zip(grown, counts, strict=True)):
            yield self._over(call, *self._beside(rows, call.key_positions), aligned=False)
            vars(self).update(_tensors=self._rolled_on(rows, counts), **after)
            return
        slots = self._slots_of(call.key_positions)
        overwritten = self._read(slots)
        try:
            self._write(rows, counts, slots)
            vars(self).update(after)
            seen = {name: tensor[:, :, : self._filled] for name, tensor in self._tensors.items()}
            yield self._over(call, seen, self._slot_positions(), aligned=False)
        except BaseException:
            self._write(overwritten, counts, slots)
            raise

    def _beside(self, rows: Mapping[str, Tensor], positions: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return what is stored with new tokens after it, and the positions of all."""
        both = {name: torch.cat([self._tensors[name][:, :, : self._filled], new], dim=2) for name, new in rows.items()}
        stored = self._slot_positions()
        most = max(len(stored), len(positions))
        return both, torch.cat([stored.expand(most, -1), positions.expand(most, -1)], dim=1)

    def _rolled_on(self, rows: Mapping[str, Tensor], counts: Sequence[int]) -> dict[str, Tensor]:
        """Return new tensors that hold of old and new tokens those that are kept."""
        tensors = {name: own(tensor) for name, tensor in self._tensors.items()}
        for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
            token = torch.arange(count, device=self.device)
            token = token[(length + token < self._first) | (token >= count - self._ring)]
            slots = self._slots_of(length + token)
            for name, new in rows.items():
                tensors[name][row].index_copy_(1, slots, new[row][:, token])
        return tensors

    def _slots_of(self, positions: Tensor) -> Tensor:
        ring = self._first + (positions - self._first) % self._ring
        return torch.where(positions < self._first, positions, ring)

    def _slot_positions(self) -> Tensor:
        """Return the position of each filled slot's token: ``[1 or batch, filled]``."""
        last = self.positions(1) - 1
        slot = torch.arange(self._filled, device=self.device)
        laps = torch.div(last - slot, self._ring, rounding_mode="floor")
        position = torch.where(slot < self._first, slot, slot + laps * self._ring)
        return position.masked_fill(slot > last, NOWHERE)

    def _read(self, slots: Tensor) -> dict[str, Tensor]:
        every = torch.arange(self.batch, device=self.device)[:, None]
        return {
            name: tensor[every, :, slots.expand(self.batch, -1)].movedim(1, 2) for name, tensor in self._tensors.items()
        }

    def _cropped(self, lengths: tuple[int, ...]) -> dict[str, Any]:
        for row, (left, longest) in enumerate(zip(lengths, self._longest, strict=True)):
            if not (self._is_whole(left, longest) or left >= longest - self.slack):
                raise UnsupportedError(
                    f"crop cannot leave {left} tokens of sequence {row}, once {longest} long: a rolling cache with "
                    f"slack={self.slack} can lose its last {self.slack}; leave {longest - self.slack} or more, or make "
                    "the cache with more slack"
                )
        pairs = zip(lengths, self._longest, strict=True)
        longest_since = tuple(left if self._is_whole(left, longest) else longest for left, longest in pairs)
        return {"lengths": lengths, "_longest": longest_since}

    def _is_whole(self, left: int, longest: int) -> bool:
        """Whether a sequence that was ``longest`` long still has all of its first ``left`` tokens."""
        return longest <= self.slots or left <= self._first

    def _reordered(self, rows: tuple[int, ...]) -> dict[str, Any]:
        return {**super()._reordered(rows), "_longest": tuple(self._longest[row] for row in rows)}

    def options(self) -> dict[str, Any]:  # noqa: D102
        return {"slack": self.slack, "longest": self._longest}

    def _restore(self, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        super()._restore(tensors, options)
        longest = tuple(as_int("longest", length, at_least=0) for length in options["longest"])
        if len(longest) != self.batch or any(was < now for was, now in zip(longest, self.lengths, strict=True)):
            raise ShapeError(f"its sequences have lengths {self.lengths} and were once {longest} long")
        self._longest = longest
