"""The second choice: how position enters, by rotating queries and keys or by a bias on the score."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, ClassVar

from polyhead.errors import SpecError
from polyhead.spec.choice import Choice, as_flag, as_float, as_floats, as_int, one_of
from polyhead.spec.scaling import Scaling, base_frequencies

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class NoPosition(Choice):
    """Scores do not depend on position (the pattern still may)."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RelativeBias(Choice):
    """A learned function of the distance between key and query.

    Built with `RelativeBias.t5`, `RelativeBias.clipped` or `RelativeBias.shaw`. All three look an index up by
    ``key - query``, clipped to ±``max_distance``; they differ in how distances share entries, and in what an
    entry is: a number per head that is added to the score, or Shaw's vectors.

    Attributes:
        max_distance: Distance from which all share one entry.
    """

    max_distance: int

    def __post_init__(self) -> None:
        if type(self) is RelativeBias:
            raise SpecError("RelativeBias alone is no bias; use RelativeBias.t5(), .clipped(...) or .shaw(...)")
        self._keep(as_int, "max_distance", at_least=0)

    @staticmethod
    def t5(*, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True) -> T5Bias:
        """Return T5's bias: exact buckets near the query, logarithmic ones further out; see `T5Bias`."""
        return T5Bias(num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional)

    @staticmethod
    def clipped(*, max_distance: int) -> ClippedBias:
        """Return a bias with one learned number per distance; see `ClippedBias`."""
        return ClippedBias(max_distance=max_distance)

    @staticmethod
    def shaw(*, max_distance: int) -> ShawBias:
        """Return Shaw's relative keys and values; see `ShawBias`."""
        return ShawBias(max_distance=max_distance)

    @property
    def num_entries(self) -> int:
        """Number of learned entries."""
        return 2 * self.max_distance + 1

    def buckets(self) -> NDArray[np.int64]:
        """Return the entry of each distance ``key - query`` from ``-max_distance`` to ``max_distance``."""
        import numpy as np

        return np.arange(self.num_entries)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class T5Bias(RelativeBias):
    """T5's bias: a learned number per bucket of distances and head, added to the score.

    T5 also has score scale 1: ``Softmax(scale=1.0)``.

    Attributes:
        num_buckets: Number of buckets.
        max_distance: Distance from which all fall into the last bucket.
        bidirectional: Whether later keys have buckets of their own (half of them), as in an encoder. If not,
            all later keys share the query's own bucket, as in a decoder.

    *Source*: Raffel et al., JMLR 2020, section 2.1; the bucket formula is T5's code.
    """

    _shown_as: ClassVar[str | None] = "RelativeBias.t5"

    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True

    def __post_init__(self) -> None:
        self._keep(as_flag, "bidirectional")
        sides = 2 if self.bidirectional else 1
        self._keep(as_int, "num_buckets", at_least=2 * sides)
        if self.num_buckets % sides:
            raise SpecError(
                f"num_buckets={self.num_buckets} is odd; a bidirectional bias halves it, use an even number"
            )
        exact = self.num_buckets // sides // 2
        self._keep(as_int, "max_distance", at_least=exact + 1)

    @property
    def num_entries(self) -> int:  # noqa: D102
        return self.num_buckets

    def buckets(self) -> NDArray[np.int64]:  # noqa: D102
        import numpy as np

        distance = np.arange(-self.max_distance, self.max_distance + 1)  # key - query
        count = self.num_buckets // (2 if self.bidirectional else 1)
        far = np.abs(distance) if self.bidirectional else np.maximum(-distance, 0)
        exact = count // 2
        # float32 on purpose: T5's checkpoints were trained on the buckets that float32 rounds to
        ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
        logarithmic = exact + (ratio / np.float32(math.log(self.max_distance / exact)) * (count - exact)).astype(
            np.int64
        )
        bucket = np.where(far < exact, far, np.minimum(logarithmic, count - 1))
        return bucket + count * (distance > 0) if self.bidirectional else bucket


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ClippedBias(RelativeBias):
    """A learned number per distance and head, added to the score; distances past ``max_distance`` share its entry.

    Attributes:
        max_distance: Largest distance told apart.

    *Source*: the textbook form of arXiv 1803.02155's idea, with T5's scalar in place of Shaw's vector.
    """

    _shown_as: ClassVar[str | None] = "RelativeBias.clipped"


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ShawBias(RelativeBias):
    """Shaw's relative positions: ``q_i·(k_j + a^K_(j−i))`` as score and ``v_j + a^V_(j−i)`` as value.

    The vectors are shared by all heads, as in the paper.

    Attributes:
        max_distance: Largest distance told apart (the paper's k).

    *Source*: arXiv 1803.02155, eqs. 3-5.
    """

    _shown_as: ClassVar[str | None] = "RelativeBias.shaw"


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Rotary(Choice):
    """RoPE: queries and keys rotated by an angle that grows with position, plane by plane.

    Attributes:
        theta: Base θ; plane t turns by ``θ^(−2t/rotary_dim)`` radians per token.
        pairs: Which widths make a plane: ``"half"`` joins t and t + rotary_dim/2 (LLaMA, GPT-NeoX),
            ``"interleaved"`` joins 2t and 2t + 1 (the paper, DeepSeek-V2).
        direction: ``"paper"`` turns (x, y) to (x cos − y sin, x sin + y cos); ``"reversed"`` the other way,
            which is what multiplying rows by the paper's matrix from the right does, and gives other scores.
        rotary_dim: How many leading widths rotate. None: all (with `Latent`: the RoPE key).
        scaling: How the frequencies are stretched. None: not.

    *Source*: arXiv 2104.09864, eqs. 12-16 and 34.
    """

    theta: float = 10000.0
    pairs: str = "half"
    direction: str = "paper"
    rotary_dim: int | None = None
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        self._keep(as_float, "theta", above=1.0)
        one_of("pairs", self.pairs, ("half", "interleaved"))
        one_of("direction", self.direction, ("paper", "reversed"))
        self._keep(as_int, "rotary_dim", at_least=2)
        if self.rotary_dim is not None and self.rotary_dim % 2:
            raise SpecError(f"rotary_dim={self.rotary_dim} is odd; a plane joins two widths, use an even number")
        if self.scaling is not None and not isinstance(self.scaling, Scaling):
            raise SpecError(f"scaling={self.scaling!r} is not a scaling; use LinearScaling(factor=...) or another")

    @property
    def per_query(self) -> bool:
        """Whether frequencies depend on the query's position, so that keys are kept unrotated."""
        return self.scaling is not None and self.scaling.per_query

    @property
    def amplitude(self) -> float:
        """The factor on cos and sin."""
        return 1.0 if self.scaling is None else self.scaling.amplitude

    def frequencies(self, rotary_dim: int, query_positions: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return the angle per token of each plane.

        Args:
            rotary_dim: Number of rotated widths.
            query_positions: Whole numbers ``[..., q_len]``; needed if ``per_query``.

        Returns:
            Radians, ``[rotary_dim / 2]``, or ``[..., q_len, rotary_dim / 2]`` if ``per_query``; negative where
            the direction is reversed.
        """
        import numpy as np

        if self.scaling is None:
            frequencies = base_frequencies(self.theta, rotary_dim)
        else:
            seq_len = np.asarray(0) if query_positions is None else query_positions + 1
            frequencies = self.scaling.frequencies(self.theta, rotary_dim, seq_len)
        return frequencies if self.direction == "paper" else -frequencies


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Alibi(Choice):
    """ALiBi: ``−slope_h·|i − j|`` added to the score; nothing is learned.

    Attributes:
        slopes: One slope per head. None: the paper's, for any number of heads.
        first_head: Number of the first head, where heads are split over devices.
        total_heads: Number of heads over all devices, from which the paper's slopes follow. None: this spec's.

    *Source*: arXiv 2108.12409, section 3, and its code for head counts that are not powers of two.
    """

    slopes: tuple[float, ...] | None = None
    first_head: int = 0
    total_heads: int | None = None

    def __post_init__(self) -> None:
        self._keep(as_floats, "slopes")
        self._keep(as_int, "first_head", at_least=0)
        self._keep(as_int, "total_heads", at_least=1)
        if self.slopes is not None and (self.first_head or self.total_heads):
            raise SpecError(
                "slopes are given, so first_head and total_heads say nothing; give only this shard's slopes"
            )

    def head_slopes(self, num_heads: int) -> tuple[float, ...]:
        """Return the slope of each of this spec's heads."""
        if self.slopes is not None:
            return self.slopes
        every = alibi_slopes(self.total_heads or num_heads + self.first_head)
        return every[self.first_head : self.first_head + num_heads]


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Return the paper's slopes for any number of heads.

    For a power of two they run from ``2^(−8/n)`` geometrically to ``2^−8``. For other counts: those of the
    next smaller power of two, then every other one of the next larger's.

    Args:
        num_heads: Number of heads, at least 1.

    Returns:
        One slope per head.
    """

    def geometric(count: int) -> list[float]:
        return [2.0 ** (-8.0 * (head + 1) / count) for head in range(count)]

    smaller = 2 ** math.floor(math.log2(num_heads))
    return tuple(geometric(smaller) + geometric(2 * smaller)[0 : 2 * (num_heads - smaller) : 2])


Position = NoPosition | RelativeBias | Rotary | Alibi
