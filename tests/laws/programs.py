"""Programs of operations on a layer's cache: each knows what it does to whole sequences, or why it is refused."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import polyhead as ph
from polyhead.spec import retention
from tests import reference
from tests.inputs import Array
from tests.laws.decoding import CONTEXT_TOKENS, Decoding, Past
from tests.strategies import cached_layers
from tests.tolerances import as_array, assert_close


@dataclasses.dataclass(frozen=True)
class Feed:
    """Give new tokens to the layer.

    Attributes:
        tokens: How many, padding included.
        counts: How many of them each sequence has, for as many sequences as there are. None: all.
        nan_padding: Whether the others are NaN, as new memory may be.
        masked: Whether some may not be attended; of a context, that comes with them, likewise.
        kernel: The kernel to ask for.
    """

    tokens: int
    counts: tuple[int, ...] | None = None
    nan_padding: bool = False
    masked: bool = False
    kernel: str = "auto"

    def run(self, on: Decoding) -> None:
        given, counts, pasts = self.drawn(on)
        if on.is_too_long(pasts):
            on.refused(ph.ShapeError, f"past max_seq_len={on.bound}", lambda: on.module(**given))
            return
        if self.is_refused(on, given):
            given["kernel"] = "auto"
        output = on.module(**given)
        assert output.dtype == on.dtype
        on.pasts = pasts
        for row, (count, past) in enumerate(zip(counts, pasts, strict=True)):
            expected = on.expected(past)[len(past.x) - count :]
            assert_close(output[row, :count], expected, on.dtype, what=f"output of sequence {row}")
            assert (output[row, count:] == 0).all(), "output of padding"

    def is_refused(self, on: Decoding, given: dict[str, Any]) -> bool:
        """Whether the kernel does not take the case, which must change nothing then; plain takes all that is no sum."""
        if self.kernel == "auto" or (self.kernel == "plain" and on.retention.kind != "state"):
            return False
        try:
            on.twin().module(**{**given, "cache": on.cache.clone()})
        except ph.UnsupportedError:
            on.refused(ph.UnsupportedError, f"kernel='{self.kernel}' does not run this", lambda: on.module(**given))
            return True
        return False

    def drawn(self, on: Decoding) -> tuple[dict[str, Any], list[int], list[Past]]:
        """Return what the layer is given, how many tokens of it each sequence has, and its sequences then."""
        batch = len(on.pasts)
        counts = [self.tokens] * batch
        given: dict[str, Any] = {"cache": on.cache, "kernel": self.kernel}
        if self.counts is not None:
            counts = [min(count, self.tokens) for count in self.counts[:batch]]
            given["lengths"] = counts
        x, source, seen = self.rows(on)
        pasts = []
        for row, (past, count) in enumerate(zip(on.pasts, counts, strict=True)):
            grown = np.concatenate([past.x, x[row, :count]])
            longest = max(past.longest, len(grown))
            if on.layer.source == "cross":
                pasts.append(past._replace(x=grown) if source is None else Past(grown, source[row], seen[row]))
            else:
                pasts.append(Past(grown, grown, np.concatenate([past.seen, seen[row, :count]]), longest))
            x[row, count:] = np.nan if self.nan_padding else 9.0
        given["x"] = on.tensor(x)
        if source is not None:
            given["context"] = on.tensor(source)
        if self.masked and (source is not None or on.layer.source == "self"):
            given["key_mask"] = torch.tensor(seen)
        return given, counts, pasts

    def rows(self, on: Decoding) -> tuple[Array, Array | None, Array]:
        batch = len(on.pasts)
        x = on.drawn(batch, self.tokens, on.layer.embed_dim)
        source, keys = None, self.tokens
        if on.layer.source == "cross" and all(past.source is None for past in on.pasts):
            source, keys = on.drawn(batch, CONTEXT_TOKENS, on.layer.context_dim), CONTEXT_TOKENS
        seen = on.rng.random((batch, keys)) < (0.6 if self.masked else 1.0)
        return x, source, seen


@dataclasses.dataclass(frozen=True)
class Store:
    """Give new tokens to the cache alone: its keys and values, or a context's."""

    tokens: int
    masked: bool = False

    def run(self, on: Decoding) -> None:
        given, _, pasts = Feed(self.tokens, masked=self.masked).drawn(on)
        if on.layer.source == "cross":
            if "context" not in given:
                return
            pasts = [new._replace(x=old.x) for new, old in zip(pasts, on.pasts, strict=True)]
        source = given.get("context", given["x"])
        key, value = reference.stored(on.layer, on.numbers, as_array(source))
        params = {name: on.tensor(on.numbers[name]) for name in on.layer.attention.parameter_shapes()}

        def append() -> None:
            mask = {"key_mask": given["key_mask"]} if "key_mask" in given else {}
            on.cache.append(on.tensor(key), None if value is None else on.tensor(value), params=params, **mask)

        if on.is_too_long(pasts):
            on.refused(ph.ShapeError, f"past max_seq_len={on.bound}", append)
            return
        append()
        on.pasts = pasts


@dataclasses.dataclass(frozen=True)
class Crop:
    """Forget the last tokens, so many of each sequence, for as many sequences as there are."""

    tokens: tuple[int, ...]

    def run(self, on: Decoding) -> None:
        wanted = [length - less for length, less in zip(on.lengths, self.tokens, strict=False)]
        given: Any = wanted[0] if len(set(wanted)) == 1 else wanted
        if any(not 0 <= left <= length for left, length in zip(wanted, on.lengths, strict=True)):
            on.refused(ph.ShapeError, "crop cannot leave", lambda: on.cache.crop(given))
        elif not all(self.is_kept(on, past, left) for past, left in zip(on.pasts, wanted, strict=True)):
            on.refused(ph.UnsupportedError, "crop cannot leave", lambda: on.cache.crop(given))
        else:
            on.cache.crop(given)
            on.pasts = [self.cropped(on, past, left) for past, left in zip(on.pasts, wanted, strict=True)]

    @staticmethod
    def is_kept(on: Decoding, past: Past, left: int) -> bool:
        """Whether a cache still has what a shorter sequence needs."""
        if on.retention.kind == "state":
            return left in (0, len(past.x))
        if on.retention.kind == "rolling":
            return left >= past.longest - on.slack or Crop.is_whole(on, past, left)
        return True

    @staticmethod
    def is_whole(on: Decoding, past: Past, left: int) -> bool:
        """Whether a rolling cache has overwritten none of the first tokens of a sequence."""
        return past.longest <= on.room or left <= on.retention.reach.first

    @staticmethod
    def cropped(on: Decoding, past: Past, left: int) -> Past:
        if on.layer.source == "cross":
            return past._replace(x=past.x[:left])
        whole = on.retention.kind == "rolling" and Crop.is_whole(on, past, left)
        return Past(past.x[:left], past.x[:left], past.seen[:left], left if whole else past.longest)


@dataclasses.dataclass(frozen=True)
class Reorder:
    """Let each sequence continue another; numbers past the batch count round."""

    rows: tuple[int, ...]

    def run(self, on: Decoding) -> None:
        rows = [row % len(on.pasts) for row in self.rows]
        on.cache.reorder(rows)
        on.pasts = [on.pasts[row] for row in rows]


@dataclasses.dataclass(frozen=True)
class Clone:
    """Go on with a clone, after something else was done with the original, or the other way round.

    Attributes:
        meanwhile: What is done with the other, before its first tokens are overwritten.
        keep: Which to go on with, ``"clone"`` or ``"original"``.
    """

    meanwhile: Feed
    keep: str = "clone"

    def run(self, on: Decoding) -> None:
        other = on.twin()
        if self.keep == "clone":
            on.cache, other.cache = other.cache, on.cache
        for operation in (self.meanwhile, Reset(), Feed(6)):
            operation.run(other)
            other.check()


@dataclasses.dataclass(frozen=True)
class Save:
    """Write the cache to a file, and go on with what is read from it."""

    def run(self, on: Decoding) -> None:
        on.cache.save(on.folder / "cache.safetensors")
        on.cache = on.module.load_cache(on.folder / "cache.safetensors")


@dataclasses.dataclass(frozen=True)
class Reset:
    """Forget everything."""

    def run(self, on: Decoding) -> None:
        on.cache.reset()
        on.pasts = [on.nothing()] * len(on.pasts)


@dataclasses.dataclass(frozen=True)
class Fail:
    """Make a call that raises.

    Attributes:
        how: What is wrong with it.
        feed: What is given otherwise.
    """

    how: str
    feed: Feed

    def run(self, on: Decoding) -> None:
        tokens = min([self.feed.tokens] if on.bound is None else [self.feed.tokens, on.bound - max(on.lengths)])
        fitting = dataclasses.replace(self.feed, tokens=tokens)
        if (found := getattr(self, self.how)(on, fitting.drawn(on)[0])) is not None:
            error, match, call = found
            on.refused(error, match, call)

    def kernel(self, on: Decoding, given: dict[str, Any]) -> Any:
        return ph.UnknownNameError, "kernel", lambda: on.module(**{**given, "kernel": "fast"})

    def refusal(self, on: Decoding, given: dict[str, Any]) -> Any:
        """The kernel is asked when the tokens are in the cache already."""
        kernel = {"state": "plain"}.get(on.retention.kind, "linear")
        if kernel == "linear" and isinstance(on.layer.attention.weighting, ph.Linear):
            kernel = "dense"
        return ph.UnsupportedError, f"kernel='{kernel}'", lambda: on.module(**{**given, "kernel": kernel})

    def dtype(self, on: Decoding, given: dict[str, Any]) -> Any:
        other = torch.float32 if on.dtype == torch.float64 else torch.float64
        module = reference.layer_of(on.layer, on.numbers, other)
        given.update({name: given[name].to(other) for name in ("x", "context") if name in given})
        return ph.ShapeError, "make them alike", lambda: module(**given)

    def batch(self, on: Decoding, given: dict[str, Any]) -> Any:
        for name in {"x", "context", "key_mask"} & set(given):
            given[name] = torch.cat([given[name], given[name][-1:]])
        given.pop("lengths", None)
        return ph.ShapeError, "has batch", lambda: on.module(**given)

    def lengths(self, on: Decoding, given: dict[str, Any]) -> Any:
        given["lengths"] = [*[0] * (len(on.pasts) - 1), given["x"].shape[1] + 1]
        return ph.ShapeError, "is not a whole number from 0", lambda: on.module(**given)

    def max_seq_len(self, on: Decoding, given: dict[str, Any]) -> Any:
        if on.bound is None:
            return None
        tokens = on.bound - max(on.lengths) + 1
        given["x"] = on.tensor(on.drawn(len(on.pasts), tokens, on.layer.embed_dim))
        needed = {name: given[name] for name in ("x", "context", "cache") if name in given}
        return ph.ShapeError, "past max_seq_len", lambda: on.module(**needed)

    def positions(self, on: Decoding, given: dict[str, Any]) -> Any:
        if on.layer.source == "cross":
            return None
        positions = torch.arange(given["x"].shape[1])
        return ph.UnsupportedError, "positions are given", lambda: on.module(**given, positions=positions)

    def weights(self, on: Decoding, given: dict[str, Any]) -> Any:
        match = {"rolling": "a rolling cache has forgotten keys", "state": "no kernel runs this"}.get(on.retention.kind)
        return match and (ph.UnsupportedError, match, lambda: on.module(**given, return_weights=True))

    def context(self, on: Decoding, given: dict[str, Any]) -> Any:
        if on.layer.source == "self":
            return ph.ShapeError, "attends to x alone", lambda: on.module(**{**given, "context": given["x"]})
        if "context" in given:
            return ph.ShapeError, "needs context=", lambda: on.module(given["x"], cache=on.cache)
        context = on.tensor(on.drawn(len(on.pasts), 1, on.layer.context_dim))
        return ph.ShapeError, "has a context of", lambda: on.module(**given, context=context)

    def row(self, on: Decoding, given: dict[str, Any]) -> Any:
        return ph.ShapeError, "reorder got sequence", lambda: on.cache.reorder([0, len(on.pasts)])


FAILURES = (
    "kernel", "refusal", "dtype", "batch", "lengths", "max_seq_len", "positions", "weights", "context", "row",
)  # fmt: skip
Operation = Feed | Store | Crop | Reorder | Clone | Save | Reset | Fail


@dataclasses.dataclass(frozen=True)
class Program:
    """A layer, a cache, and what is done with it; its repr can be pasted into ``run``."""

    layer: ph.LayerSpec
    batch: int
    operations: Sequence[Operation]
    max_seq_len: int | None = None
    slack: int = 0
    dtype: str = "float64"
    seed: int = 0


def run(program: Program, folder: Path) -> None:
    """Run a program; after each operation the cache must be what its sequences make it."""
    dtype = getattr(torch, program.dtype)
    decoding = Decoding(
        program.layer,
        program.batch,
        program.max_seq_len,
        slack=program.slack,
        dtype=dtype,
        seed=program.seed,
        folder=folder,
    )
    decoding.check()
    for operation in (*program.operations, Feed(1)):  # what the last operation did shows in what comes next
        operation.run(decoding)
        decoding.check()


MOST = 4
"""Sequences in a batch."""


@functools.cache  # making a strategy costs more than drawing from it
def feeds(most: int = 6) -> st.SearchStrategy[Feed]:
    return st.builds(
        Feed,
        tokens=st.integers(0, most),
        counts=st.none() | st.lists(st.integers(0, most), min_size=MOST, max_size=MOST).map(tuple),
        nan_padding=st.booleans(),
        masked=st.booleans(),
        kernel=st.sampled_from(["auto", "auto", "plain", "plain", "dense", "absorbed"]),
    )


@functools.cache
def operations(slack: int) -> st.SearchStrategy[tuple[Operation, ...]]:
    """Return one operation, or one and a crop: what a cache has forgotten, or not undone, shows after a crop."""

    def each(lowest: int, highest: int) -> st.SearchStrategy[tuple[int, ...]]:
        return st.lists(st.integers(lowest, highest), min_size=MOST, max_size=MOST).map(tuple)

    alike = st.integers(0, slack + 1).map(lambda n: (n,) * MOST)
    crops = st.builds(Crop, st.one_of(alike, each(0, slack), each(0, slack), each(-1, 4)))
    some = st.one_of(
        feeds(),
        feeds(2),
        crops,
        st.builds(Store, tokens=st.integers(0, 4), masked=st.booleans()),
        st.builds(Reorder, st.lists(st.integers(0, 3), min_size=1, max_size=MOST).map(tuple)),
        st.builds(Clone, meanwhile=feeds(4), keep=st.sampled_from(["clone", "original"])),
        st.sampled_from([Save(), Save(), Save(), Reset()]),
        st.builds(Fail, st.sampled_from(["kernel", "refusal", *FAILURES]), feeds(3)),
    )
    return st.tuples(some) | st.tuples(some, crops)


def programs() -> st.SearchStrategy[Program]:
    return st.integers(0, 3).flatmap(_programs)


@functools.cache
def _programs(slack: int) -> st.SearchStrategy[Program]:
    first = st.tuples(feeds(13))  # as long as any window
    return st.builds(
        _program,
        layer=cached_layers(),
        batch=st.integers(1, 3),
        operations=st.tuples(first, st.lists(operations(slack), min_size=3, max_size=5)).map(
            lambda drawn: [*drawn[0], *itertools.chain(*drawn[1])]
        ),
        max_seq_len=st.none() | st.integers(1, 40),
        slack=st.just(slack),
        dtype=st.sampled_from(["float64", "float32"]),
        seed=st.integers(0, 999),
    )


def _program(layer: ph.LayerSpec, slack: int, dtype: str, **fields: Any) -> Program:
    weighting = layer.attention.weighting
    if retention(layer.attention, layer.source).kind == "state":
        slack = 0  # sums have none
    if isinstance(weighting, ph.Linear) and weighting.feature_map == "relu":
        dtype = "float64"  # a row's features can all be as small as float32 rounds, and their shares nothing but that
    return Program(layer=layer, slack=slack, dtype=dtype, **fields)
