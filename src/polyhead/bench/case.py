"""A case, what is timed, as data: a mechanism at a size, its peers, and what its time is meant to be. No torch here."""

from __future__ import annotations

import dataclasses
from typing import Self

from polyhead.errors import ShapeError
from polyhead.spec import AttentionSpec, LayerSpec

EXPONENT = "exponent"
"""What a target is against where it bounds how time grows with length."""

MEMORY = "memory"
"""What a target is against where it bounds the MiB that ours takes beyond inputs, outputs and gradients."""

MEMORY_LENGTH = 16384
"""Keys of the run whose memory a target bounds."""

SHORTEST = 16
"""Fewest tokens that a case is made for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What a case is meant to reach.

    Attributes:
        against: The peer whose time is the unit; or ``"exponent"`` for the growth of time with length, ``"memory"``
            for MiB.
        at_most: The largest ratio, exponent or number of MiB that meets it.
        share_of_pairs: Whether the unit is the peer's time for as many pairs as ours sees.
    """

    against: str
    at_most: float
    share_of_pairs: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table.

    Attributes:
        name: What to type to ask for it.
        title: What is computed.
        spec: The mechanism, for `polyhead.attend`; or the layer, for `polyhead.Attention` with its projections.
        length: Number of keys.
        queries: Number of queries, the last ones. None: one for each key.
        training: Whether the backward pass is timed with the forward pass.
        peers: Names of what it is compared with, see `polyhead.bench.peers`; the first that is there is the base.
        lengths: Numbers of keys from which the exponent is fitted.
        quick: Number of keys in the quick table. None: it is not in it.
        targets: What it is meant to reach at ``length``, and in memory at `MEMORY_LENGTH`.
        decoding: Whether ours goes through a cache, which holds all keys but those of the queries.
        sequences: With a cache, the number of keys of each sequence, the longest first. Empty: one sequence.
        kernel: The kernel that ours runs on.
        dtype: Dtype of the tensors, where the case is about it. None: that of the run.
        model: What to load, where a whole model decodes, of which ``spec`` is a layer. None: the layer or mechanism.
    """

    name: str
    title: str
    spec: AttentionSpec | LayerSpec
    length: int
    queries: int | None = None
    training: bool = False
    peers: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    quick: int | None = None
    targets: tuple[Target, ...] = ()
    decoding: bool = False
    sequences: tuple[int, ...] = ()
    kernel: str = "auto"
    dtype: str | None = None
    model: str | None = None

    @property
    def attention(self) -> AttentionSpec:
        """The four choices."""
        return self.spec.attention if isinstance(self.spec, LayerSpec) else self.spec

    @property
    def layer(self) -> LayerSpec | None:
        """The layer, or None where tensors are attended to as they are."""
        return self.spec if isinstance(self.spec, LayerSpec) else None

    @property
    def q_len(self) -> int:
        """Number of queries."""
        return self.length if self.queries is None else self.queries

    @property
    def direction(self) -> str:
        """``"forward"``, or ``"training"`` for forward and backward."""
        return "training" if self.training else "forward"

    def at(self, length: int) -> Self:
        """Return this case for another number of keys, and queries in proportion; it says nothing of growth then."""
        if length < SHORTEST:
            raise ShapeError(f"length={length} is too short for a case; give at least {SHORTEST}")
        queries = self.queries  # decoding asks for as many at any length
        if queries is not None and not self.decoding:
            queries = max(1, queries * length // self.length)
        sequences = tuple(max(1, one * length // self.length) for one in self.sequences)
        same = length == self.length
        targets = self.targets if same else ()
        return dataclasses.replace(
            self, length=length, queries=queries, sequences=sequences, targets=targets, lengths=()
        )

    def quickened(self) -> Self | None:
        """Return this case as the quick table has it, or None; targets are for the documented size alone."""
        if self.quick is None:
            return None
        lengths = (self.quick // 2, self.quick) if self.lengths else ()
        return dataclasses.replace(self.at(self.quick), lengths=lengths)
