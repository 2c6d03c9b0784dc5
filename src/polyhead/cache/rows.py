"""Caches that keep a row for each token: keys and values, or with `Latent` the one row that both come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyhead.cache.base import Cache, Saved, new_tensor
from polyhead.kernels.common import Call
from polyhead.spec import AttentionSpec


def row_widths(spec: AttentionSpec) -> dict[str, tuple[int, int]]:
    """Return heads and width of what is kept for a token, by name."""
    return {name: shape for name, shape in spec.input_shapes().items() if name != "query" and shape is not None}


def new_rows(call: Call) -> dict[str, Tensor]:
    """Return what a call brings, by name: ``[batch, heads, tokens, width]``, a key mask as a row of width 1."""
    rows = {"key": call.key}
    if call.value is not None:
        rows["value"] = call.value
    if call.key_mask is not None:
        rows["mask"] = call.key_mask[:, None, :, None]
    return rows


class RowCache(Cache):
    """Base of the caches whose tensors are ``[batch, heads, slots, width]``, zeros where nothing was written."""

    def _reserved(self, slots: int) -> dict[str, Tensor]:
        """Return new tensors for keys and values, or latent rows."""
        return {
            name: new_tensor((self.batch, heads, slots, width), self.dtype, self.device)
            for name, (heads, width) in row_widths(self.spec).items()
        }

    @property
    def slots(self) -> int:
        """Number of tokens that there is room for."""
        return self._tensors["key"].shape[2]

    @property
    def _filled(self) -> int:
        """Number of leading slots that may hold something."""
        return min(self.length, self.slots)

    def _with_mask(self, call: Call) -> dict[str, Tensor]:
        """Return what a call brings, with a mask if there has been one before; if it brings the first, make room."""
        rows = new_rows(call)
        if "mask" in rows and "mask" not in self._tensors:
            self._tensors["mask"] = self._all_may_be_seen()
        if "mask" in self._tensors and "mask" not in rows:
            rows["mask"] = torch.ones_like(call.key[:, :1, :, :1], dtype=torch.bool)
        return rows

    def _all_may_be_seen(self) -> Tensor:
        return new_tensor((self.batch, 1, self.slots, 1), torch.bool, self.device).logical_not_()

    def _write(self, rows: Mapping[str, Tensor], counts: Sequence[int], slots: Tensor | slice) -> None:
        """Write the first ``counts[b]`` tokens of each sequence into its ``slots [1 or batch, tokens]``.

        A slice instead of these has all tokens of all sequences.
        """
        if isinstance(slots, slice):
            for name, new in rows.items():
                self._tensors[name][:, :, slots] = new
            return
        tokens = slots.shape[1]
        if len(slots) == 1 and all(count == tokens for count in counts):
            for name, new in rows.items():
                self._tensors[name].index_copy_(2, slots[0], new)
            return
        sequence, token = _each(counts, self.device)
        slot = slots.expand(self.batch, -1)[sequence, token]
        for name, new in rows.items():
            self._tensors[name][sequence, :, slot] = new[sequence, :, token]

    def _over(self, call: Call, tensors: dict[str, Tensor], key_positions: Tensor, *, aligned: bool) -> Call:
        """Return the call over other keys."""
        mask = tensors.get("mask")
        kv_len = tensors["key"].shape[2]
        return call._replace(
            case=call.case._replace(kv_len=kv_len, aligned=aligned, key_mask=mask is not None),
            key=tensors["key"],
            value=tensors.get("value"),
            key_positions=key_positions,
            key_mask=None if mask is None else mask[:, 0, :, 0],
        )

    def _picked(self, tensor: Tensor, rows: Tensor) -> Tensor:
        picked = new_tensor((len(rows), *tensor.shape[1:]), tensor.dtype, tensor.device)
        picked[:, :, : self._filled] = tensor[:, :, : self._filled].index_select(0, rows)
        return picked

    def saved_tensors(self) -> dict[str, Tensor]:  # noqa: D102
        return {name: tensor[:, :, : self._filled].contiguous() for name, tensor in self._tensors.items()}

    def _saved_shapes(self, options: Mapping[str, Any], *, masked: bool) -> dict[str, Saved]:
        return self._row_shapes(self._filled, masked=masked)

    def _row_shapes(self, slots: int, *, masked: bool) -> dict[str, Saved]:
        shapes: dict[str, Saved] = {
            name: ((self.batch, heads, slots, width), self.dtype)
            for name, (heads, width) in row_widths(self.spec).items()
        }
        return {**shapes, "mask": ((self.batch, 1, slots, 1), torch.bool)} if masked else shapes

    def _restore(self, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        if "mask" in tensors:
            self._tensors["mask"] = self._all_may_be_seen()
        for name, saved in tensors.items():
            self._tensors[name][:, :, : self._filled] = saved


def _each(counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the sequence and the place of every token that is no padding."""
    per_sequence = torch.tensor(counts, dtype=torch.int64)
    sequence = torch.arange(len(counts)).repeat_interleave(per_sequence)
    first = per_sequence.cumsum(0) - per_sequence
    return sequence.to(device), (torch.arange(len(sequence)) - first[sequence]).to(device)
