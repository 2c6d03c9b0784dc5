"""The cache of cross-attention: the rows of another sequence, which came once and does not change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyhead.cache.base import Saved, own
from polyhead.cache.rows import RowCache, new_rows
from polyhead.errors import ShapeError
from polyhead.kernels.common import Call


class ContextCache(RowCache):
    """A context's rows, given with the first call, and how many queries have met them since.

    ``lengths`` count the queries' sequence, which `crop` shortens; the context stays until `reset`.
    """

    source: ClassVar[str] = "cross"

    @property
    def context_length(self) -> int:
        """Number of tokens in the context; 0 before it came."""
        return self._tensors["key"].shape[2] if self.has_context else 0

    @property
    def has_context(self) -> bool:
        """Whether the context has come."""
        return "key" in self._tensors

    @property
    def slots(self) -> int:  # noqa: D102
        return self.context_length

    @property
    def _filled(self) -> int:
        return self.context_length

    @property
    def _stored_lengths(self) -> tuple[int, ...]:
        return (self.context_length,) * self.batch

    @contextlib.contextmanager
    def _appending(self, call: Call, counts: Sequence[int]) -> Iterator[Call]:
        if call.key.shape[2]:
            if self.has_context:
                raise ShapeError(
                    f"the cache has a context of {self.context_length} tokens already, which is fixed; give none, "
                    "or reset() the cache"
                )
            self._tensors = {name: own(tensor) for name, tensor in new_rows(call).items()}
        self.lengths = self._grown(counts)
        if not self.has_context:
            yield call
            return
        key_positions = torch.arange(self.context_length, device=self.device)[None]
        yield self._over(call, self._tensors, key_positions, aligned=False)

    def reset(self) -> None:  # noqa: D102
        vars(self).update(_tensors={}, **self._cropped((0,) * self.batch))

    def _places(self, call: Call) -> tuple[Tensor, Tensor]:
        return self.positions(call.query.shape[2]), call.key_positions

    def _saved_shapes(self, options: Mapping[str, Any], *, masked: bool) -> dict[str, Saved]:
        tokens = options["context_length"]
        return {} if tokens is None else self._row_shapes(tokens, masked=masked)

    def _restore(self, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        self._tensors = {name: own(tensor) for name, tensor in tensors.items()}

    def options(self) -> dict[str, Any]:  # noqa: D102
        return {**super().options(), "context_length": self.context_length if self.has_context else None}
