"""The mask that a model hands to its attention function: which pairs may meet, as data in a tensor's shape.

transformers calls `lazy_mask` in place of what builds ``[batch, 1, q_len, kv_len]``. What it returns has that shape and
nothing of that size inside, so that it goes through a model as a mask does, and nobody can compute with it unseen.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polyhead.errors import UnsupportedError
from polyhead.hf.mask_functions import Reading, check, read
from polyhead.spec import AllOf, Band, Full
from polyhead.spec.pattern import Pattern
from polyhead.spec.ranges import BlockState

_UNREAD = ("allow_is_causal_skip", "allow_is_bidirectional_skip", "allow_torch_fix", "local_size", "dtype", "config")
"""What transformers tells those who build masks: when they need not, in which dtype, what the function says too."""

Span = tuple[int, int]
"""A half-open range of positions."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Allowed:
    """Which pairs may meet.

    Attributes:
        pattern: As the model says it.
        query_positions: ``[q_len]`` or ``[batch, q_len]``.
        key_positions: ``[kv_len]`` or ``[batch, kv_len]``.
        spans: Between which positions queries and keys lie, if they count on by one. None: they do not.
        key_mask: Booleans ``[batch or 1, kv_len]``, True may be attended. None: all may.
        segments: Whole numbers ``[batch or 1, len]``; a pair meets only inside one. None: there is one.
    """

    pattern: Pattern
    query_positions: Tensor
    key_positions: Tensor
    spans: tuple[Span, Span] | None = None
    key_mask: Tensor | None = None
    segments: Tensor | None = None

    @functools.cached_property
    def seen(self) -> int:
        """How many keys, from the first, some query may see."""
        kv_len = self.key_positions.shape[-1]
        if self.spans is None or not self.pattern.is_causal:
            return kv_len
        (_, query_end), (first_key, _) = self.spans
        return min(kv_len, max(query_end - first_key, 0))

    @functools.cached_property
    def aligned(self) -> bool:
        """Whether the same pairs may meet if the keys seen count from 0, and the last query stands at their last."""
        if self.spans is None:
            return False
        (_, query_end), (first_key, _) = self.spans
        return query_end == first_key + self.seen and (isinstance(self.pattern, Band) or first_key == 0)

    @functools.cached_property
    def binding(self) -> Pattern:
        """What of the pattern binds here: a window longer than the text leaves `Causal`, a last query alone `Full`."""
        return self.bound(self.pattern)

    def bound(self, pattern: Pattern) -> Pattern:
        """Return a pattern without the parts that allow every pair here."""
        if self.spans is None:
            return pattern
        queries, (first_key, _) = self.spans
        keys = (first_key, first_key + self.seen)
        if queries[0] == queries[1] or keys[0] == keys[1]:
            return pattern
        parts = [
            half for part in (pattern.parts if isinstance(pattern, AllOf) else (pattern,)) for half in _halves(part)
        ]
        bound = [part for part in parts if part.block_state(queries, keys, kv_len=keys[1]) is not BlockState.FULL]
        return AllOf.of(bound) if bound else Full()

    def cut(self, dim: int, start: int, stop: int) -> Allowed:
        """Return this for some of the sequences (dim 0), queries (2) or keys (3)."""
        by_dim = {0: ("query_positions", "key_positions", "key_mask", "segments"), 2: ("query_positions",)}
        by_dim[3] = ("key_positions", "key_mask")
        if dim not in by_dim or (dim and self.segments is not None):
            raise UnsupportedError(
                f"the model slices dim {dim} of its mask, and {self.pattern!r}"
                f"{' over packed sequences' if self.segments is not None else ''} cannot be cut there; use "
                "attn_implementation='eager' or 'sdpa'"
            )
        changes: dict[str, Any] = {}
        for name in by_dim[dim]:
            tensor = getattr(self, name)
            if tensor is not None and (dim or tensor.dim() == 2):
                changes[name] = tensor[start:stop] if dim == 0 else tensor[..., start:stop]
        if dim and self.spans is not None:
            queries, keys = self.spans
            first = (queries if dim == 2 else keys)[0]
            cut = (first + start, first + stop)
            changes["spans"] = (cut, keys) if dim == 2 else (queries, cut)
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device) -> Allowed:
        """Return this with its tensors on a device."""
        tensors: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return dataclasses.replace(self, **tensors)


def _halves(pattern: Pattern) -> tuple[Pattern, ...]:
    """Return a window as its two bounds, since one may bind without the other."""
    return (Band(left=pattern.left), Band(right=pattern.right)) if isinstance(pattern, Band) else (pattern,)


class Mask(Tensor):
    """What stands for a mask of shape ``[batch, 1, q_len, kv_len]`` and dtype bool, without its elements.

    It can be sliced, detached and moved. Whatever else would read elements is an UnsupportedError: a model that does
    so computes attention by itself.

    Args:
        allowed: What it says.
        shape: Its shape.

    Attributes:
        allowed: What it says.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, allowed: Allowed, shape: tuple[int, ...]) -> Mask:  # noqa: D102
        device = allowed.key_positions.device
        shell: Mask = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=device)
        return shell

    def __init__(self, allowed: Allowed, shape: tuple[int, ...]) -> None:
        self.allowed = allowed

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Mask({self.allowed.pattern!r}, shape={list(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Mask:
        handler = _HANDLERS.get(function)
        if handler is None or not isinstance(args[0], Mask):
            raise UnsupportedError(
                f"the model computes with its attention mask ({function}), to attend by itself or to mask more than "
                "positions and padding say; use polyhead.hf.adopt(model) if its type is adopted, else "
                "attn_implementation='eager'"
            )
        return handler(*args, **(kwargs or {}))


def _same(mask: Mask, **unread: Any) -> Mask:
    return Mask(mask.allowed, tuple(mask.shape))


def _sliced(mask: Mask, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> Mask:
    if step != 1:
        raise UnsupportedError(f"a mask is sliced with step {step}; what is read are steps of 1")
    first, last, _ = slice(start, stop).indices(mask.shape[dim])
    last = max(first, last)
    if (first, last) == (0, mask.shape[dim]):
        return _same(mask)
    shape = [last - first if i == dim % 4 else size for i, size in enumerate(mask.shape)]
    return Mask(mask.allowed.cut(dim % 4, first, last), tuple(shape))


def _moved(mask: Mask, *, dtype: torch.dtype | None = None, device: Any = None, **unread: Any) -> Mask:
    if dtype not in (None, torch.bool):
        raise UnsupportedError(
            f"the model turns its attention mask into {dtype}, to compute with it; use polyhead.hf.adopt(model) if its "
            "type is adopted, else attn_implementation='eager'"
        )
    return Mask(mask.allowed if device is None else mask.allowed.to(device), tuple(mask.shape))


_HANDLERS: dict[Any, Callable[..., Mask]] = {
    torch.ops.aten.detach.default: _same,
    torch.ops.aten.alias.default: _same,
    torch.ops.aten.clone.default: _same,
    torch.ops.aten.slice.Tensor: _sliced,
    torch.ops.aten._to_copy.default: _moved,
}


def lazy_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    use_vmap: bool = False,
    **unread: Any,
) -> Mask:
    """Return which pairs may meet, without listing them; what transformers calls to make a mask.

    It costs O(batch · kv_len): three whole rows are asked of the mask function and compared with how it was read. On a
    GPU it waits for the device a few times.

    Args:
        batch_size: Number of sequences.
        q_length: Number of queries.
        kv_length: Number of keys.
        mask_function: Of a batch, head, query and key index; see `polyhead.hf.mask_functions`.
        q_offset: The first query's index.
        kv_offset: The first key's index.
        attention_mask: ``[batch, tokens so far]``, True or not 0 for what is no padding. None: there is none.
        device: Where the mask is to be.
        use_vmap: Whether a model adds a mask function of its own, which is read like any other.
        **unread: What only a mask with elements needs.

    Returns:
        The mask.

    Raises:
        UnsupportedError: If the mask function is not read, or says something else than it was read as.
    """
    if unknown := sorted(set(unread) - set(_UNREAD)):
        raise UnsupportedError(
            f"transformers asks for a mask with {unknown[0]}, which is not read; use another version"
        )
    reading = read(mask_function)
    if reading is None:  # no pair may meet, as under Qwen2-MoE's window of 0, which none of its layers then uses
        reading = Reading(padding=torch.zeros(batch_size, kv_offset + kv_length, dtype=torch.bool, device=device))
    # A static cache counts in a tensor, which it changes in place before attention comes to look at the mask.
    first = int(q_offset)
    queries = torch.arange(first, first + q_length, device=device)
    keys = torch.arange(kv_offset, kv_offset + kv_length, device=device)
    check(mask_function, reading, batch=batch_size, queries=queries, keys=keys)
    if reading.shift is not None and not reading.shift.any():
        reading = dataclasses.replace(reading, shift=None)
    query_positions, key_positions = reading.places(queries, keys)
    counts_on = reading.positions is None and reading.shift is None
    allowed = Allowed(
        pattern=reading.pattern,
        query_positions=query_positions,
        key_positions=key_positions,
        spans=((first, first + q_length), (kv_offset, kv_offset + kv_length)) if counts_on else None,
        segments=reading.segments,
    )
    key_mask = _key_mask(attention_mask, reading.padding, keys, kv_offset + kv_length)
    if key_mask is not None and not key_mask[:, : allowed.seen].all():
        allowed = dataclasses.replace(allowed, key_mask=key_mask)
    return Mask(allowed, (batch_size, 1, q_length, kv_length))


def _key_mask(given: Tensor | None, padding: Tensor | None, keys: Tensor, end: int) -> Tensor | None:
    """Return which keys are no padding, ``[batch, kv_len]``, or None if nothing says so."""
    if given is None:
        return None if padding is None else padding[:, keys]
    if given.dim() != 2:
        raise UnsupportedError(f"attention_mask is {list(given.shape)}; give [batch, tokens], 0 for padding")
    known = functional.pad(given.bool(), (0, max(end - given.shape[1], 0)))[:, keys]
    return known if padding is None else known & padding[:, keys]
