"""The cache of linear attention: two sums over all tokens, of one size whatever their number."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyhead.cache.base import Cache, Saved, new_tensor
from polyhead.errors import UnsupportedError
from polyhead.kernels import linear
from polyhead.kernels.common import Call, compute_dtype
from polyhead.spec import AttentionSpec


class StateCache(Cache):
    """``Σ φ(k) vᵀ`` and ``Σ φ(k)`` for each key/value head, in float32, or float64 for float64 inputs.

    A token that has gone into the sums cannot be taken out of them, so `crop` can only empty it.
    """

    _reads: ClassVar[frozenset[str]] = frozenset({"w_uk", "w_uv"})

    def __init__(
        self, spec: AttentionSpec, *, batch: int, max_seq_len: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(spec, batch=batch, max_seq_len=max_seq_len, dtype=dtype, device=device)
        self._tensors = self._zeros()

    def _zeros(self) -> dict[str, Tensor]:
        return {name: new_tensor(shape, dtype, self.device) for name, (shape, dtype) in self._shapes().items()}

    def _shapes(self) -> dict[str, Saved]:
        heads, width, v_width = self.spec.num_kv_heads, self.spec.qk_head_dim, self.spec.v_head_dim
        wide = self._stored_dtype
        return {"sum": ((self.batch, heads, width, v_width), wide), "normaliser": ((self.batch, heads, width), wide)}

    @property
    def _stored_dtype(self) -> torch.dtype:
        return compute_dtype(self.dtype)

    @contextlib.contextmanager
    def _appending(self, call: Call, counts: Sequence[int]) -> Iterator[Call]:
        state = (self._tensors["sum"], self._tensors["normaliser"])
        tokens = call.key.shape[2]
        counted = call
        if any(count != tokens for count in counts):
            real = torch.arange(tokens, device=self.device) < torch.tensor(counts, device=self.device)[:, None]
            counted = dataclasses.replace(call, key_mask=real if call.key_mask is None else real & call.key_mask)
        more = linear.sums(counted)
        self._tensors = {"sum": state[0] + more[0], "normaliser": state[1] + more[1]}
        self.lengths = self._grown(counts)
        case = dataclasses.replace(call.case, aligned=False, state=True)
        yield dataclasses.replace(call, case=case, state=state)

    def _crop(self, lengths: tuple[int, ...]) -> None:
        kept = [left == there for left, there in zip(lengths, self.lengths, strict=True)]
        for row, left in enumerate(lengths):
            if left and not kept[row]:
                raise UnsupportedError(
                    f"crop cannot leave {left} of the {self.lengths[row]} tokens of sequence {row}: they are one sum; "
                    "clone() the cache before tokens that may have to go, or crop it to 0"
                )
        emptied = torch.tensor([not left for left in lengths], device=self.device)
        self._tensors = {
            name: tensor.masked_fill(emptied.view(-1, *(1,) * (tensor.dim() - 1)), 0.0)
            for name, tensor in self._tensors.items()
        }

    def _saved_shapes(self, options: Mapping[str, Any], *, masked: bool) -> dict[str, Saved]:
        return self._shapes()

    def _restore(self, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        self._tensors = dict(tensors)
