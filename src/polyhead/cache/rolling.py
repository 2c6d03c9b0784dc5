"""The cache of a window: the last tokens in a ring, and the first ones if the pattern keeps them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyhead.cache.rows import RowCache
from polyhead.errors import UnsupportedError
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
        rows = self._with_mask(call)
        longest = tuple(max(pair) for pair in zip(self._longest, grown, strict=True))
        fits = all(n <= self.slots or count <= self.slack + 1 for n, count in zip(grown, counts, strict=True))
        if not fits:
            beside = {
                name: torch.cat([tensor[:, :, : self._filled], rows[name]], 2) for name, tensor in self._tensors.items()
            }
            old, new = self._slot_positions(), call.key_positions
            most = max(len(old), len(new))
            positions = torch.cat([old.expand(most, -1), new.expand(most, -1)], dim=1)
            yield self._over(call, beside, positions, aligned=False)
            for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True)):
                self._write_last(row, {name: new[row] for name, new in rows.items()}, length, count)
            self.lengths, self._longest = grown, longest
            return
        slots = self._slots_of(call.key_positions)
        overwritten = self._read(slots)
        self._write(rows, counts, slots)
        self.lengths, self._longest = grown, longest
        try:
            seen = {name: tensor[:, :, : self._filled] for name, tensor in self._tensors.items()}
            yield self._over(call, seen, self._slot_positions(), aligned=False)
        except BaseException:
            self._write(overwritten, counts, slots)
            raise

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

    def _write_last(self, row: int, rows: Mapping[str, Tensor], length: int, count: int) -> None:
        """Write those of one sequence's new tokens that are kept, ``rows [heads, tokens, width]``."""
        token = torch.arange(count, device=self.device)
        token = token[(length + token < self._first) | (token >= count - self._ring)]
        slots = self._slots_of(length + token)
        for name, new in rows.items():
            self._tensors[name][row].index_copy_(1, slots, new[:, token])

    def _crop(self, lengths: tuple[int, ...]) -> None:
        for row, (left, longest) in enumerate(zip(lengths, self._longest, strict=True)):
            if not (self._is_whole(left, longest) or left >= longest - self.slack):
                raise UnsupportedError(
                    f"crop cannot leave {left} tokens of sequence {row}, once {longest} long: a rolling cache with "
                    f"slack={self.slack} can lose its last {self.slack}; leave {longest - self.slack} or more, or make "
                    "the cache with more slack"
                )
        self._longest = tuple(
            left if self._is_whole(left, longest) else longest
            for left, longest in zip(lengths, self._longest, strict=True)
        )

    def _is_whole(self, left: int, longest: int) -> bool:
        """Whether a sequence that was ``longest`` long still has all of its first ``left`` tokens."""
        return longest <= self.slots or left <= self._first

    def _reorder(self, rows: list[int]) -> None:
        super()._reorder(rows)
        self._longest = tuple(self._longest[row] for row in rows)

    def options(self) -> dict[str, Any]:  # noqa: D102
        return {"slack": self.slack, "longest": self._longest}

    def _restore(self, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        super()._restore(tensors, options)
        self._longest = tuple(options["longest"])
