"""The cache of linear attention: two sums over all tokens, of one size whatever their number."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyhead.cache.base import Cache, Saved, new_tensor, own
from polyhead.errors import UnsupportedError
from polyhead.kernels import checks, linear
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
        before = (self._tensors["sum"], self._tensors["normaliser"])
        more = linear.sums(self._counted(call, counts))
        sums = {"sum": own(before[0] + more[0]), "normaliser": own(before[1] + more[1])}
        vars(self).update(_tensors=sums, lengths=self._grown(counts))
        case = call.case._replace(aligned=False, state=True)
        yield call._replace(case=case, state=before)

    def _counted(self, call: Call, counts: Sequence[int]) -> Call:
        """Return the call with padding masked, so that it is in no sum."""
        if call.lengths is None:
            return call
        real = checks.real_tokens(call.key.movedim(2, 1), counts)
        return call._replace(key_mask=real if call.key_mask is None else real & call.key_mask)

    def _cropped(self, lengths: tuple[int, ...]) -> dict[str, Any]:
        for row, (left, there) in enumerate(zip(lengths, self.lengths, strict=True)):
            if left not in (0, there):
                raise UnsupportedError(
                    f"crop cannot leave {left} of the {there} tokens of sequence {row}: they are one sum; "
                    "clone() the cache before tokens that may have to go, or crop it to 0"
                )
        emptied = torch.tensor([left == 0 for left in lengths], dtype=torch.bool, device=self.device)
        tensors = {
            name: own(tensor.masked_fill(emptied.view(-1, *(1,) * (tensor.dim() - 1)), 0.0))
            for name, tensor in self._tensors.items()
        }
        return {"_tensors": tensors, "lengths": lengths}

    def _saved_shapes(self, options: Mapping[str, Any], *, masked: bool) -> dict[str, Saved]:
        return self._shapes()

    def _restore(self, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        self._tensors = {name: own(tensor) for name, tensor in tensors.items()}
