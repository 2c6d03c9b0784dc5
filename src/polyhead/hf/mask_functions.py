"""transformers' mask functions, read as data: a pattern, segments, padding.

A model composes its mask from small closures over indices (``transformers/masking_utils.py``). They are recognised by
name, what they close over says the rest, and `check` has the function itself answer for whole rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from polyhead.errors import UnsupportedError
from polyhead.spec.pattern import Band, Causal, Chunked, Full, Pattern


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a mask function says.

    Attributes:
        pattern: Which pairs may meet, by position.
        positions: What takes the place of the indices as positions, ``[batch, tokens]``. None: the indices.
        shift: What is taken off both positions, ``[batch]``. None: nothing.
        segments: A pair meets only inside one segment, ``[batch, tokens]``. None: there is one.
        padding: Booleans by key index, ``[batch, keys or more]``, True may be attended. None: all may.
    """

    pattern: Pattern = Full()
    positions: Tensor | None = None
    shift: Tensor | None = None
    segments: Tensor | None = None
    padding: Tensor | None = None

    def places(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of queries and keys, each ``[len]`` or ``[batch, len]``, from their indices."""
        if self.positions is not None:
            queries, keys = self.positions[:, queries], self.positions[:, keys]
        if self.shift is not None:
            queries, keys = queries - self.shift[:, None], keys - self.shift[:, None]
        return queries, keys

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return which pairs may meet, ``[batch or 1, queries, keys]``, from their indices."""
        query_positions, key_positions = self.places(queries, keys)
        pairs: Tensor = self.pattern.allowed(query_positions, key_positions, kv_len=len(keys))
        pairs = pairs if pairs.dim() == 3 else pairs[None]
        if self.segments is not None:
            pairs = pairs & (self.segments[:, queries, None] == self.segments[:, None, keys])
        return pairs if self.padding is None else pairs & self.padding[:, None, keys]


_TENSORS = ("positions", "shift", "segments", "padding")

Closure = Mapping[str, Any]
"""What a function closes over, by name."""


def read(function: Callable[..., Any]) -> Reading | None:
    """Read a mask function.

    Args:
        function: Of a batch, head, query and key index; True where the pair may meet.

    Returns:
        What it says; None if it allows no pair.

    Raises:
        UnsupportedError: If it is not one of transformers' own, or if no pattern says the same.
    """
    name = _name(function)
    reader = _READERS.get(name.partition(":")[2]) if name.startswith("transformers.") else None
    if reader is None:
        raise UnsupportedError(
            f"the mask function {name} is not read; what is read are transformers' causal, windowed, chunked, packed "
            "and padded ones, joined by and_masks and or_masks; use attn_implementation='eager' or 'sdpa'"
        )
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    closure = dict(zip(function.__code__.co_freevars, cells, strict=True))
    try:
        return reader(closure)
    except KeyError as error:
        raise UnsupportedError(
            f"the mask function {name} is read by what it calls {error}, and this version's closes over "
            f"{list(closure)}; use attn_implementation='eager' or 'sdpa'"
        ) from error


def check(function: Callable[..., Any], reading: Reading, *, batch: int, queries: Tensor, keys: Tensor) -> None:
    """Ask a mask function for three whole rows, and compare them with how it was read.

    Args:
        function: The mask function.
        reading: What `read` returned.
        batch: Number of sequences.
        queries: The queries' indices, ``[q_len]``.
        keys: The keys' indices, ``[kv_len]``.

    Raises:
        UnsupportedError: If they differ.
    """
    if not len(queries):
        return
    rows = queries[sorted({0, len(queries) // 2, len(queries) - 1})]
    sequences, heads = torch.arange(batch, device=keys.device), torch.zeros(1, dtype=torch.int64, device=keys.device)
    answer = function(
        sequences[:, None, None, None], heads[:, None, None], rows[None, None, :, None], keys[None, None, None]
    )
    theirs = answer.expand(batch, 1, len(rows), len(keys))[:, 0]
    ours = reading.allowed(rows, keys).expand_as(theirs)
    if not torch.equal(theirs, ours):
        raise UnsupportedError(
            f"the mask function {_name(function)} was read as {reading.pattern!r}, and its own rows differ from that; "
            "use attn_implementation='eager' or 'sdpa'"
        )


def _name(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', repr(function))}"


def _band(left: int, right: int | None) -> Reading | None:
    return None if left < 0 else Reading(pattern=Band(left=left, right=right))


def _around(radius: int) -> Reading | None:
    return _band(radius, radius)


def _remapped(closure: Closure) -> Reading | None:
    inner = read(closure["mask_function"])
    if inner is None:
        return None
    if any(getattr(inner, name) is not None for name in ("positions", "segments", "padding")):
        raise UnsupportedError(
            "remap_positions_for_packed_sequence is used on a mask function with tensors of its own, which is not read"
        )
    return dataclasses.replace(inner, positions=closure["position_ids"])


def _all_of(closure: Closure) -> Reading | None:
    joined = Reading()
    for function in closure["mask_functions"]:
        part = read(function)
        if part is None:
            return None
        joined = _both(joined, part)
    return joined


def _both(first: Reading, second: Reading) -> Reading:
    tensors = {}
    for name in _TENSORS:
        given = {id(x): x for x in (getattr(first, name), getattr(second, name)) if x is not None}
        if len(given) == 2:
            raise UnsupportedError(f"and_masks joins two mask functions with {name} of their own, which is not read")
        tensors[name] = next(iter(given.values()), None)
    if Full() not in (first.pattern, second.pattern) and first.positions is not second.positions:
        raise UnsupportedError("and_masks joins a pattern on remapped positions with one on indices, which is not read")
    return Reading(pattern=first.pattern & second.pattern, **tensors)


def _any_of(closure: Closure) -> Reading | None:
    parts = [part for part in map(read, closure["mask_functions"]) if part is not None]
    if len(parts) < 2:
        return parts[0] if parts else None
    if any(getattr(part, name) is not None for part in parts for name in _TENSORS):
        raise UnsupportedError(
            "or_masks adds pairs that depend on more than positions, which no pattern says; use "
            "attn_implementation='eager' or 'sdpa'"
        )
    pattern = parts[0].pattern
    for part in parts[1:]:
        pattern = pattern | part.pattern
    return Reading(pattern=pattern)


def _blocks(closure: Closure) -> None:
    if (closure["block_sequence_ids"] >= 0).any():
        raise UnsupportedError(
            "blockwise_overlay lets the tokens of a block see one another, whatever their positions; no pattern says "
            "that; use attn_implementation='eager' or 'sdpa'"
        )


def _two_sided(closure: Closure) -> Reading | None:
    window = closure["sliding_window"]
    if not isinstance(window, tuple):  # T5Gemma 2's, of one number
        window = (window, 0) if closure["is_causal"] else ((window + 1) // 2, window // 2 + 1)
    left, right = window
    return _band(left - 1, max(right - 1, 0))


_READERS: dict[str, Callable[[Closure], Reading | None]] = {
    "causal_mask_function": lambda closure: Reading(pattern=Causal()),
    "bidirectional_mask_function": lambda closure: Reading(),
    "sliding_window_overlay.<locals>.inner_mask": lambda closure: _band(closure["sliding_window"] - 1, None),
    "sliding_window_bidirectional_overlay.<locals>.inner_mask": lambda closure: _around(closure["sliding_window"]),
    "chunked_overlay.<locals>.inner_mask": lambda closure: Reading(
        pattern=Chunked(size=closure["chunk_size"]), shift=closure["left_padding"]
    ),
    "packed_sequence_mask_function.<locals>.inner_mask": lambda closure: Reading(
        segments=closure["packed_sequence_mask"]
    ),
    "remap_positions_for_packed_sequence.<locals>.inner_mask": _remapped,
    "padding_mask_function.<locals>.inner_mask": lambda closure: Reading(padding=closure["padding_mask"].bool()),
    "blockwise_overlay.<locals>.inner_mask": _blocks,
    "and_masks.<locals>.and_mask": _all_of,
    "or_masks.<locals>.or_mask": _any_of,
    # of single models: Gemma 3's, which step3p7 has too; Gemma 4's, moonshine's and T5Gemma 2's
    "_bidirectional_window_overlay.<locals>.inner_mask": lambda closure: _around(closure["sliding_window"] - 1),
    "Gemma3TextModel.forward.<locals>.<lambda>": lambda closure: Reading(),
    "sliding_window_mask_function.<locals>.inner_mask": _two_sided,
}
"""By a function's qualified name: how it is read."""
