"""The knobs of the fifteen: what a mechanism needs to know beyond the spec that it is put into."""

from __future__ import annotations

import dataclasses

from polyhead.spec import BigBird, Pattern, Rotary, SlidingWindow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The parameters of the fifteen mechanisms, with the defaults for inputs other than the textbook's.

    Attributes:
        num_heads: Heads that a single head's width is split into (#2, #5, #6).
        num_groups: Key/value heads of #6. None: the largest proper divisor above 1.
        shared_head: Where #5's one key/value head comes from: the ``"mean"`` of the heads, or the ``"first"``.
        bias_slope: #7's bias is ``−bias_slope·|i − j|``.
        max_distance: Distance from which #7's bias grows no more; a comparison sets it to its longest.
        rotary: #8's RoPE, where the base spec has none of its own.
        alibi_slopes: #9's slopes, one for each head or one for all. None: the paper's.
        feature_map: #10's φ.
        window: #11's window.
        bigbird: #12's pattern.
        tile: Keys in a tile of #13.
        lambda_init: #14's λ.
        differential_form: #14's form: ``"clipped"`` as in the textbook, or ``"paper"``, see `Differential`.
        latent_rank: #15's latent width. None: half the rank of the keys and values given.
    """

    num_heads: int = 2
    num_groups: int | None = None
    shared_head: str = "mean"
    bias_slope: float = 0.5
    max_distance: int = 128
    rotary: Rotary = Rotary()  # noqa: RUF009 - frozen
    alibi_slopes: tuple[float, ...] | None = None
    feature_map: str = "elu+1"
    window: Pattern = SlidingWindow.symmetric(2)  # noqa: RUF009
    bigbird: Pattern = BigBird(radius=2, num_global=1, num_random=1, seed=0)  # noqa: RUF009
    tile: int = 16
    lambda_init: float = 0.5
    differential_form: str = "clipped"
    latent_rank: int | None = None


TEXTBOOK = Settings(
    num_groups=2,
    shared_head="first",
    max_distance=4,
    rotary=Rotary(pairs="interleaved", direction="reversed"),
    alibi_slopes=(1.0,),
    window=SlidingWindow.symmetric(1),
    bigbird=BigBird(radius=1, num_global=1, num_random=0),
    tile=2,
    latent_rank=2,
)
"""The settings of the textbook's shared example. It multiplies rows by RoPE's matrix from the right, which turns
against the paper's direction, and draws no random link, which would change the row it prints."""
