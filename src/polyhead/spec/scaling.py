"""RoPE scalings: how the rotation's frequencies are stretched to reach past the trained length.

A scaling turns the base θ and a width into one frequency per plane, in float64, and names the factor that cos
and sin are multiplied with. Those that look at the length take it from each query's own position, so that a
row's result never depends on how many tokens were processed with it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from polyhead.errors import SpecError
from polyhead.spec.choice import Choice, as_flag, as_float, as_floats, as_int

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def base_frequencies(theta: Any, rotary_dim: int) -> NDArray[np.float64]:
    """Return ``θ^(−2t/rotary_dim)`` for each plane t: ``[..., rotary_dim / 2]``, radians per token."""
    import numpy as np

    exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    return np.asarray(theta, dtype=np.float64)[..., None] ** -exponents


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Scaling(Choice):
    """Base of the scalings."""

    def frequencies(self, theta: float, rotary_dim: int, seq_len: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return one frequency per plane.

        Args:
            theta: RoPE's base.
            rotary_dim: Number of rotated widths.
            seq_len: For each query, its position plus 1; looked at only by scalings that are ``per_query``.

        Returns:
            ``[rotary_dim / 2]``, or ``[..., rotary_dim / 2]`` for each query if ``per_query``.
        """
        raise NotImplementedError

    @property
    def amplitude(self) -> float:
        """The factor on cos and sin."""
        return 1.0

    @property
    def per_query(self) -> bool:
        """Whether each query has frequencies of its own, so that keys must be kept unrotated."""
        return False

    def problem(self, rotary_dim: int) -> str | None:
        """Return why this scaling is undefined at a width, or None."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LinearScaling(Scaling):
    """Position interpolation: every frequency divided by ``factor``.

    Attributes:
        factor: How many times longer the context becomes.

    *Source*: arXiv 2306.15595.
    """

    factor: float

    def __post_init__(self) -> None:
        self._keep(as_float, "factor", above=0.0)

    def frequencies(self, theta: float, rotary_dim: int, seq_len: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: D102
        return base_frequencies(theta, rotary_dim) / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class NTKScaling(Scaling):
    """NTK-aware scaling: the base times ``factor^(d/(d−2))``, which spares the fast planes.

    Attributes:
        factor: How many times longer the context becomes.

    *Source*: the NTK-aware interpolation of 2023, described in arXiv 2309.00071, section 3.1.
    """

    factor: float

    def __post_init__(self) -> None:
        self._keep(as_float, "factor", above=0.0)

    def frequencies(self, theta: float, rotary_dim: int, seq_len: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: D102
        return base_frequencies(theta * self.factor ** (rotary_dim / (rotary_dim - 2)), rotary_dim)

    def problem(self, rotary_dim: int) -> str | None:  # noqa: D102
        return _ntk_problem(rotary_dim)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class DynamicNTKScaling(Scaling):
    """NTK-aware scaling whose base grows with the position of the query once it passes the trained length.

    *Differs from* transformers, which takes one base per call from the longest position in it; the two agree
    on the last row.

    Attributes:
        factor: How strongly the base grows.
        original_max_seq_len: The trained length, in tokens.

    *Source*: arXiv 2309.00071, section 3.3; the formula is transformers'.
    """

    factor: float
    original_max_seq_len: int

    def __post_init__(self) -> None:
        self._keep(as_float, "factor", above=0.0)
        self._keep(as_int, "original_max_seq_len", at_least=1)

    def frequencies(self, theta: float, rotary_dim: int, seq_len: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: D102
        import numpy as np

        stretch = np.maximum(seq_len, self.original_max_seq_len) / self.original_max_seq_len
        grown = (self.factor * stretch - (self.factor - 1)) ** (rotary_dim / (rotary_dim - 2))
        return base_frequencies(theta * grown, rotary_dim)

    @property
    def per_query(self) -> bool:  # noqa: D102
        return True

    def problem(self, rotary_dim: int) -> str | None:  # noqa: D102
        return _ntk_problem(rotary_dim)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class YarnScaling(Scaling):
    """YaRN: fast planes as trained, slow planes interpolated, a ramp between, and cos and sin made larger.

    Attributes:
        factor: How many times longer the context becomes.
        original_max_seq_len: The trained length, in tokens.
        beta_fast: Planes that turn more often than this over the trained length stay as trained.
        beta_slow: Planes that turn less often are interpolated.
        attention_factor: The factor on cos and sin. None: from ``factor`` and the two mscales.
        mscale: DeepSeek's numerator of that factor. None: not used.
        mscale_all_dim: Its denominator. None: not used.
        truncate: Whether the ramp's ends are rounded outwards to whole planes (gpt-oss does not).

    *Source*: arXiv 2309.00071, section 3.4; mscale as in DeepSeek-V2's code. DeepSeek-V2 also multiplies the
    score by mscale_all_dim's square: that belongs to ``Softmax(scale=...)``.
    """

    factor: float
    original_max_seq_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        self._keep(as_int, "original_max_seq_len", at_least=1)
        names = ("factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
        self._keep(as_float, *names, above=0.0)
        self._keep(as_flag, "truncate")

    def frequencies(self, theta: float, rotary_dim: int, seq_len: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: D102
        import numpy as np

        def plane_turning(turns: float) -> float:
            length = self.original_max_seq_len / (turns * 2 * math.pi)
            return rotary_dim * math.log(length) / (2 * math.log(theta))

        low, high = plane_turning(self.beta_fast), plane_turning(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        if low == high:
            high += 0.001  # the ramp becomes a step
        trained = base_frequencies(theta, rotary_dim)
        interpolated = np.clip((np.arange(rotary_dim // 2) - low) / (high - low), 0.0, 1.0)
        return np.asarray(trained * (1 - interpolated) + trained / self.factor * interpolated)

    @property
    def amplitude(self) -> float:  # noqa: D102
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)
        return yarn_mscale(self.factor, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Llama3Scaling(Scaling):
    """LLaMA 3.1's scaling: short wavelengths as trained, long ones divided by ``factor``, a ramp between.

    Attributes:
        factor: How many times longer the context becomes.
        low_freq_factor: Wavelengths above ``original_max_seq_len / low_freq_factor`` are divided.
        high_freq_factor: Wavelengths below ``original_max_seq_len / high_freq_factor`` stay.
        original_max_seq_len: The trained length, in tokens.

    *Source*: Meta's LLaMA 3.1 model code, 2024.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        self._keep(as_int, "original_max_seq_len", at_least=1)
        self._keep(as_float, "factor", "low_freq_factor", "high_freq_factor", above=0.0)
        if self.high_freq_factor <= self.low_freq_factor:
            raise SpecError(
                f"high_freq_factor={self.high_freq_factor:g} must be above low_freq_factor={self.low_freq_factor:g}"
            )

    def frequencies(self, theta: float, rotary_dim: int, seq_len: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: D102
        import numpy as np

        trained = base_frequencies(theta, rotary_dim)
        turns = self.original_max_seq_len * trained / (2 * math.pi)
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(ramp, 0.0, 1.0)
        return trained * kept + trained / self.factor * (1 - kept)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LongRopeScaling(Scaling):
    """LongRoPE: a searched divisor for each plane, one set up to the trained length and one past it.

    A query takes the long set if its own position is past the trained length; then so do all keys it meets.

    *Differs from* transformers, which takes one set per call from the longest position in it.

    Attributes:
        short_factor: Divisors up to the trained length, one per plane.
        long_factor: Divisors past it.
        original_max_seq_len: The trained length, in tokens.
        factor: Ratio of the longest length to the trained one, from which the factor on cos and sin follows.
        attention_factor: The factor on cos and sin. None: ``√(1 + ln factor / ln original_max_seq_len)``.

    *Source*: arXiv 2402.13753; Phi-3's code for the factor on cos and sin.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_seq_len: int
    factor: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        self._keep(as_int, "original_max_seq_len", at_least=2)
        self._keep(as_floats, "short_factor", "long_factor", above=0.0)
        self._keep(as_float, "factor", "attention_factor", above=0.0)

    def frequencies(self, theta: float, rotary_dim: int, seq_len: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: D102
        import numpy as np

        is_long = (seq_len > self.original_max_seq_len)[..., None]
        divisors = np.where(is_long, np.array(self.long_factor), np.array(self.short_factor))
        return base_frequencies(theta, rotary_dim) / divisors

    @property
    def amplitude(self) -> float:  # noqa: D102
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1.0:
            return 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_seq_len))

    @property
    def per_query(self) -> bool:  # noqa: D102
        return True

    def problem(self, rotary_dim: int) -> str | None:  # noqa: D102
        for name in ("short_factor", "long_factor"):
            if (given := len(getattr(self, name))) != rotary_dim // 2:
                return f"{name} has {given} entries and the rotation {rotary_dim // 2} planes; give one per plane"
        return None


def yarn_mscale(factor: float, mscale: float) -> float:
    """Return YaRN's ``0.1·mscale·ln(factor) + 1``, or 1 where nothing is stretched."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _ntk_problem(rotary_dim: int) -> str | None:
    return (
        f"NTK scaling divides by rotary_dim - 2, and rotary_dim={rotary_dim}; use at least 4"
        if rotary_dim <= 2
        else None
    )
