"""What every cache is: a batch of sequences that grow, and that are cropped, reordered, copied and saved."""

from __future__ import annotations

import abc
import contextlib
import copy
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from polyhead.errors import ShapeError, SpecError, UnsupportedError
from polyhead.kernels import checks
from polyhead.kernels.common import Call, full_precision, prepared
from polyhead.position.counted import counted
from polyhead.spec import AttentionSpec, retention
from polyhead.spec.choice import as_int

Saved = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of a tensor in a saved file."""


class Cache(abc.ABC):
    """The past of a batch of sequences, as the next tokens need it.

    Tokens go in with ``layer(x, cache=cache)`` or ``attend(..., cache=cache)``, or with `append` alone. After an
    error in `attend` or in a method here the cache is as it was; what a model does after attending is past its
    reach. Nothing is recorded for a backward pass.

    Args:
        spec: The mechanism.
        batch: Number of sequences.
        max_seq_len: Length that no sequence may pass, or None.
        dtype: Dtype of the keys and values that it takes.
        device: Where its tensors are.

    Attributes:
        spec: The mechanism.
        batch: Number of sequences.
        max_seq_len: Length that no sequence may pass, or None.
        dtype: Dtype of the keys and values that it takes.
        device: Where its tensors are.
        lengths: How many tokens have gone through, for each sequence.
    """

    source: ClassVar[str] = "self"
    _reads: ClassVar[frozenset[str]] = frozenset()  # learned tensors that what is stored depends on

    def __init__(
        self, spec: AttentionSpec, *, batch: int, max_seq_len: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.spec = spec
        self.batch = as_int("batch", batch, at_least=0)
        self.max_seq_len = None if max_seq_len is None else as_int("max_seq_len", max_seq_len, at_least=1)
        self.dtype = dtype
        self.device = device
        self.lengths: tuple[int, ...] = (0,) * self.batch
        self._retention = retention(spec, self.source)
        self._tensors: dict[str, Tensor] = {}

    @property
    def length(self) -> int:
        """How many tokens have gone through, for the longest sequence."""
        return max((0, *self.lengths))

    @property
    def used_bytes(self) -> int:
        """Bytes of what the tokens so far need, summed over the sequences."""
        return sum(map(self._retention.numbers, self._stored_lengths)) * self._stored_dtype.itemsize

    @property
    def _stored_lengths(self) -> tuple[int, ...]:
        return self.lengths

    @property
    def _stored_dtype(self) -> torch.dtype:
        return self.dtype

    @property
    def allocated_bytes(self) -> int:
        """Bytes of what is reserved."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())

    def append(
        self,
        key: Tensor,
        value: Tensor | None = None,
        *,
        params: Mapping[str, Tensor] | None = None,
        key_mask: Tensor | None = None,
        lengths: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Store tokens without attending to anything.

        Args:
            key: As in `polyhead.attend`, before rotation.
            value: As in `polyhead.attend`.
            params: The spec's learned tensors; linear weighting over a latent needs ``w_uk`` and ``w_uv`` to
                make its sums, nothing else reads them.
            key_mask: Booleans ``[batch, tokens]``, True may be attended. None: all may.
            lengths: How many of the new tokens each sequence has; the rest is padding at the right. None: all.

        Raises:
            ShapeError: If something does not fit the cache, or passes ``max_seq_len``.
        """
        if not isinstance(key, Tensor):
            raise ShapeError(f"key is a {type(key).__name__}; give a torch.Tensor")
        heads, width = self.spec.input_shapes()["query"] or (0, 0)
        tokens = key.shape[2] if key.dim() == 4 and self.source == "self" else 0
        dtype = key.dtype if key.is_floating_point() else self.dtype  # what is wrong with a key is said of the key
        nothing = torch.zeros((), dtype=dtype, device=key.device)
        shapes = self.spec.parameter_shapes()
        unread = {name: nothing.expand(shape) for name, shape in shapes.items() if name not in self._reads}
        with torch.no_grad():
            call = checks.checked_call(
                {"query": nothing.expand(key.shape[0], heads, tokens, width), "key": key, "value": value},
                self.spec,
                params={**unread, **(params or {})},
                key_mask=key_mask,
                lengths=lengths,
            )
            with full_precision(key.device.type), self.appending(prepared(self.placed(call))):
                pass

    def placed(self, call: Call) -> Call:
        """Return a call with its tokens placed after those that are stored.

        Args:
            call: The new tokens, checked against the spec.

        Returns:
            The call with positions.

        Raises:
            ShapeError: If the tokens do not fit the cache, or pass ``max_seq_len``.
            SpecError: If the cache is for another spec.
            UnsupportedError: If positions or segments are given, which a cache counts itself.
        """
        if not call.case.aligned or call.case.segments:
            given = "segments" if call.case.segments else "positions"
            raise UnsupportedError(f"{given} are given, and a cache counts on from its last token; leave them out")
        self._check(call)
        query_positions, key_positions = self._places(call)
        counted_from = self.length if self._is_even and key_positions is query_positions else None
        call = call._replace(query_positions=query_positions, key_positions=key_positions, counted_from=counted_from)
        return call if call.lengths is None else self._without_padding(call, call.lengths)

    def _without_padding(self, call: Call, counts: Sequence[int]) -> Call:
        """Blank what lies past the sequences' lengths, which may be anything."""
        padding = ~checks.real_tokens(call.query.movedim(2, 1), counts)[:, None, :, None]
        blanked: dict[str, Any] = {"query": call.query.masked_fill(padding, 0.0)}
        if self.source == "self":
            blanked["key"] = call.key.masked_fill(padding, 0.0)
            blanked |= {} if call.value is None else {"value": call.value.masked_fill(padding, 0.0)}
        return call._replace(**blanked)

    def _places(self, call: Call) -> tuple[Tensor, Tensor]:
        if call.query.shape[2] != call.key.shape[2]:
            raise ShapeError(
                f"query has {call.query.shape[2]} tokens and key {call.key.shape[2]}; with a cache both are new"
            )
        positions = self.positions(call.query.shape[2])
        return positions, positions

    @contextlib.contextmanager
    def appending(self, call: Call) -> Iterator[Call]:
        """Append a call's tokens, and undo that if the block raises.

        Args:
            call: The new tokens, `placed` and prepared.

        Yields:
            The call over everything that is stored, which a kernel can run.
        """
        before = {**vars(self), "_tensors": dict(self._tensors)}
        try:
            with self._appending(call, self._counts(call)) as full:
                yield full
        except BaseException:
            vars(self).update(before)
            raise

    @abc.abstractmethod
    def _appending(self, call: Call, counts: Sequence[int]) -> contextlib.AbstractContextManager[Call]:
        """Do `appending`; attributes and which tensors there are need no undoing, what was written into them does."""

    def positions(self, count: int) -> Tensor:
        """Return where the next tokens stand: ``[1 or batch, count]``; one row where all sequences are alike."""
        if self._is_even:
            return counted(self.length, count, self.device)
        return torch.tensor(self.lengths, device=self.device)[:, None] + torch.arange(count, device=self.device)

    def crop(self, length: int | Sequence[int] | Tensor) -> None:
        """Forget the last tokens.

        Args:
            length: How many tokens to leave, one number for all sequences or one for each.

        Raises:
            ShapeError: If a sequence has fewer.
            UnsupportedError: If what the shorter sequence needs was not kept.
        """
        wanted = _whole_numbers("length", length, times=self.batch)
        if len(wanted) != self.batch:
            raise ShapeError(f"crop got {len(wanted)} lengths for {self.batch} sequences; give one number, or one each")
        for row, (left, there) in enumerate(zip(wanted, self.lengths, strict=True)):
            if not 0 <= left <= there:
                raise ShapeError(
                    f"crop cannot leave {left} tokens of sequence {row}, which has {there}; give 0 to {there}"
                )
        vars(self).update(self._cropped(wanted))

    def _cropped(self, lengths: tuple[int, ...]) -> dict[str, Any]:
        """Return every attribute that `crop` changes, or raise UnsupportedError."""
        return {"lengths": lengths}

    def reorder(self, rows: Sequence[int] | Tensor) -> None:
        """Let sequence n continue what sequence ``rows[n]`` was, as beam search does; there may be more or fewer.

        Args:
            rows: Numbers of sequences.

        Raises:
            ShapeError: If a number is no sequence's.
        """
        wanted = _whole_numbers("rows", rows)
        for row in wanted:
            if not 0 <= row < self.batch:
                raise ShapeError(f"reorder got sequence {row} of {self.batch}; give numbers from 0 to {self.batch - 1}")
        vars(self).update(self._reordered(wanted))  # all at once, or not at all

    def _reordered(self, rows: tuple[int, ...]) -> dict[str, Any]:
        """Return every attribute that `reorder` changes."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        tensors = {name: self._picked(tensor, index) for name, tensor in self._tensors.items()}
        return {"_tensors": tensors, "lengths": tuple(self.lengths[row] for row in rows), "batch": len(rows)}

    def _picked(self, tensor: Tensor, rows: Tensor) -> Tensor:
        """Return some sequences' part of a tensor as a new one."""
        return own(tensor.index_select(0, rows))

    def reset(self) -> None:
        """Forget everything; what is reserved stays reserved."""
        self.crop(0)

    def clone(self) -> Self:
        """Return a cache of its own with the same content."""
        twin = copy.copy(self)
        twin._tensors = {name: own(tensor) for name, tensor in self._tensors.items()}
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cache to a safetensors file, which `Attention.load_cache` reads.

        Args:
            path: The file; what was there is replaced when the new one is complete.
        """
        from polyhead.cache.files import save  # it knows every kind of cache

        save(self, path)

    def options(self) -> dict[str, Any]:
        """Return what a new cache of this kind is made with, as JSON-ready data, for a saved file."""
        return {"max_seq_len": self.max_seq_len}

    def saved_tensors(self) -> dict[str, Tensor]:
        """Return what a saved file holds."""
        return dict(self._tensors)

    def restore(self, tensors: Mapping[str, Tensor], lengths: tuple[int, ...], options: Mapping[str, Any]) -> None:
        """Take over what a saved file holds; this cache is new.

        Args:
            tensors: What `saved_tensors` returned.
            lengths: The sequences' lengths.
            options: What `options` returned.

        Raises:
            ShapeError: If a tensor is missing, too many, or of another shape or dtype.
        """
        if self.max_seq_len is not None and max((0, *lengths)) > self.max_seq_len:
            raise ShapeError(f"its lengths {list(lengths)} pass its max_seq_len={self.max_seq_len}")
        self.lengths = lengths
        expected = self._saved_shapes(options, masked="mask" in tensors)
        if set(tensors) != set(expected):
            raise ShapeError(f"it holds {sorted(tensors)} and should hold {sorted(expected)}")
        for name, (shape, dtype) in expected.items():
            if tuple(tensors[name].shape) != shape or tensors[name].dtype != dtype:
                found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
                raise ShapeError(f"its {name!r} is {found} and should be {dtype} {list(shape)}")
        self._restore(tensors, options)

    @abc.abstractmethod
    def _saved_shapes(self, options: Mapping[str, Any], *, masked: bool) -> dict[str, Saved]:
        """Return what `saved_tensors` would hold at the present lengths."""

    @abc.abstractmethod
    def _restore(self, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
        """Take over tensors that have been checked."""

    def __repr__(self) -> str:
        longest = "" if self.max_seq_len is None else f" of {self.max_seq_len}"
        lengths = f"length {self.length}" if self._is_even else f"lengths {list(self.lengths)}"
        return f"{type(self).__name__}(batch {self.batch}, {lengths}{longest}, {self.used_bytes:,} bytes used)"

    @property
    def _is_even(self) -> bool:
        return len(set(self.lengths)) <= 1

    def _counts(self, call: Call) -> tuple[int, ...]:
        return (call.case.q_len,) * self.batch if call.lengths is None else call.lengths

    def _grown(self, counts: Sequence[int]) -> tuple[int, ...]:
        return tuple(length + count for length, count in zip(self.lengths, counts, strict=True))

    def _check(self, call: Call) -> None:
        if call.case.spec is not self.spec and call.case.spec != self.spec:
            raise SpecError(
                f"the cache was made for {self.spec!r} and this call is for {call.case.spec!r}; use its own"
            )
        for name, tensor in (("key", call.key), ("value", call.value), ("query", call.query)):
            if tensor is None:
                continue
            if tensor.shape[0] != self.batch:
                raise ShapeError(f"{name} has batch {tensor.shape[0]} and the cache {self.batch}; make a cache for it")
            if tensor.dtype != self.dtype or tensor.device != self.device:
                came, kept = f"{tensor.dtype} on {tensor.device}", f"{self.dtype} on {self.device}"
                raise ShapeError(
                    f"{name} is {came} and the cache {kept}; make them alike, with new_cache(dtype=, device=)"
                )
        longest = max((0, *self._grown(self._counts(call))))
        if self.max_seq_len is not None and longest > self.max_seq_len:
            raise ShapeError(
                f"{call.case.q_len} tokens more would make a sequence of {longest}, past "
                f"max_seq_len={self.max_seq_len}; make a longer cache, or crop or reset this one"
            )


def _whole_numbers(name: str, given: Any, *, times: int = 1) -> tuple[int, ...]:
    """Return several whole numbers, or a single one so many times, as a tuple."""
    listed = given.tolist() if hasattr(given, "tolist") else given
    try:
        if isinstance(listed, Sequence):
            return tuple(operator.index(number) for number in listed)
        return (operator.index(listed),) * times
    except TypeError:
        raise ShapeError(f"{name}={given!r} is not made of whole numbers; give some, as in [2, 0, 1]") from None


def new_tensor(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros that may be written into later, with or without `torch.inference_mode`."""
    with torch.inference_mode(False):
        return torch.zeros(tuple(shape), dtype=dtype, device=device)


def own(tensor: Tensor) -> Tensor:
    """Return a copy in memory of its own, which may be written into like that of `new_tensor`."""
    return new_tensor(tensor.shape, tensor.dtype, tensor.device).copy_(tensor)
