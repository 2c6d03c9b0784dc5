"""The values of the four choices whose product is tested. A new mechanism is added to one of these tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import polyhead as ph
from polyhead.spec.position import Position
from polyhead.spec.rules import Choices


class Sizes(NamedTuple):
    """Random sizes that the values below are built for; the trained length is shorter than the sequences."""

    num_heads: int
    width: int  # of a query, or of the RoPE key with Latent
    v_width: int | None
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Sizes:
        v_width = rng.choice(np.array([None, 3, 10]))
        return cls(int(rng.choice([4, 4, 4, 6])), int(rng.choice([4, 8])), v_width, int(rng.integers(1000)))


TRAINED = 4
LONGEST = 10

Table = Mapping[str, Callable[[Sizes], Any]]


def _grouped(sizes: Sizes, kv_heads: int) -> ph.Grouped:
    heads = sizes.num_heads
    return ph.Grouped(num_heads=heads, num_kv_heads=kv_heads, head_dim=sizes.width, v_head_dim=sizes.v_width)


def _latent(sizes: Sizes, q_lora_rank: int | None) -> ph.Latent:
    return ph.Latent(
        num_heads=sizes.num_heads,
        kv_lora_rank=5,
        q_lora_rank=q_lora_rank,
        qk_nope_head_dim=3,
        qk_rope_head_dim=sizes.width,
        v_head_dim=sizes.v_width or 4,
    )


STORAGES: Table = {
    "mha": lambda s: _grouped(s, s.num_heads),
    "gqa": lambda s: _grouped(s, s.num_heads // 2),
    "mqa": lambda s: _grouped(s, 1),
    "mla": lambda s: _latent(s, None),
    "mla-low-rank-query": lambda s: _latent(s, 6),
}


def _rope(**options: Any) -> ph.Rotary:
    return ph.Rotary(theta=50.0, **options)  # a small base, so that every plane turns within ten tokens


def _long_rope(sizes: Sizes) -> ph.LongRopeScaling:
    planes = range(sizes.width // 2)
    short, long = (tuple(1.0 + step * plane for plane in planes) for step in (0.1, 0.7))
    return ph.LongRopeScaling(short_factor=short, long_factor=long, original_max_seq_len=TRAINED, factor=4.0)


def _yarn() -> ph.YarnScaling:
    return ph.YarnScaling(factor=4.0, original_max_seq_len=TRAINED, beta_fast=0.5, beta_slow=0.1)


def _llama3() -> ph.Llama3Scaling:
    return ph.Llama3Scaling(low_freq_factor=0.2, high_freq_factor=0.6, original_max_seq_len=TRAINED)


POSITIONS: Mapping[str, Callable[[Sizes], Position]] = {
    "none": lambda s: ph.NoPosition(),
    "t5-two-sided": lambda s: ph.RelativeBias.t5(num_buckets=8, max_distance=7),
    "t5-one-sided": lambda s: ph.RelativeBias.t5(num_buckets=6, max_distance=8, bidirectional=False),
    "clipped": lambda s: ph.RelativeBias.clipped(max_distance=3),
    "shaw": lambda s: ph.RelativeBias.shaw(max_distance=3),
    "rope-half": lambda s: _rope(),
    "rope-interleaved": lambda s: _rope(pairs="interleaved"),
    "rope-reversed": lambda s: _rope(direction="reversed"),
    "rope-partial": lambda s: _rope(rotary_dim=s.width // 2),
    "rope-linear": lambda s: _rope(scaling=ph.LinearScaling(factor=3.0)),
    "rope-ntk": lambda s: _rope(scaling=ph.NTKScaling(factor=3.0)),
    "rope-dynamic-ntk": lambda s: _rope(scaling=ph.DynamicNTKScaling(factor=3.0, original_max_seq_len=TRAINED)),
    "rope-yarn": lambda s: _rope(pairs="interleaved", scaling=_yarn()),
    "rope-llama3": lambda s: _rope(scaling=_llama3()),
    "rope-longrope": lambda s: _rope(scaling=_long_rope(s)),
    "alibi": lambda s: ph.Alibi(),
}


def _table(sizes: Sizes, tables: int, rows: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    rng = np.random.default_rng(sizes.seed)
    return tuple(
        tuple(tuple(rng.choice(rows, size=rng.integers(0, 3), replace=False).tolist()) for _ in range(rows))
        for _ in range(tables)
    )


_PRIMITIVES: Table = {
    "window-two-sided": lambda s: ph.SlidingWindow(left=3, right=1),
    "chunks": lambda s: ph.Chunked(size=3),
    "global-first": lambda s: ph.Global(first=2),
    "global-last": lambda s: ph.Global(first=1, last=2),
    "random-past": lambda s: ph.RandomLinks(per_query=2, seed=s.seed),
    "random-all": lambda s: ph.RandomLinks(per_query=2, seed=s.seed, span="all"),
    "random-blocks-past": lambda s: ph.RandomLinks(per_query=1, seed=s.seed, block=2),
    "random-blocks-all": lambda s: ph.RandomLinks(per_query=2, seed=s.seed, block=2, span="all"),
    "links": lambda s: ph.Links(table=_table(s, 1, LONGEST)),
    "links-per-head": lambda s: ph.Links(table=_table(s, s.num_heads, LONGEST)),
    "links-by-block": lambda s: ph.Links(table=_table(s, 1, LONGEST // 2), block=2),
    "bigbird": lambda s: ph.BigBird(seed=s.seed),
}


def _causal(name: str) -> Callable[[Sizes], ph.spec.Pattern]:
    return lambda s: _PRIMITIVES[name](s) & ph.Causal()


PATTERNS: Table = {
    "full": lambda s: ph.Full(),
    "causal": lambda s: ph.Causal(),
    "window-past": lambda s: ph.SlidingWindow.causal(3),  # its own intersection with causal
    **_PRIMITIVES,
    **{f"{name}-and-causal": _causal(name) for name in _PRIMITIVES},
}

WEIGHTINGS: Table = {
    "softmax": lambda s: ph.Softmax(),
    "softcap": lambda s: ph.Softmax(scale=0.7, softcap=2.0),
    "sink": lambda s: ph.Softmax(sink=True),
    "linear": lambda s: ph.Linear(feature_map=("elu+1", "softplus")[s.seed % 2]),
    "paper": lambda s: ph.Differential(layer=1 + s.seed % 3),
    "diffllama": lambda s: ph.Differential(form="diffllama"),
    "clipped-differential": lambda s: ph.Differential(form="clipped", lambda_init=0.5),
}


class Combination(NamedTuple):
    """One value of each choice, by name."""

    storage: str
    position: str
    pattern: str
    weighting: str

    def __str__(self) -> str:
        return " × ".join(self)

    def choices(self, sizes: Sizes) -> Choices:
        """Return the four choices, legal or not."""
        return Choices(
            storage=STORAGES[self.storage](sizes),
            position=POSITIONS[self.position](sizes),
            pattern=PATTERNS[self.pattern](sizes),
            weighting=WEIGHTINGS[self.weighting](sizes),
        )


def combinations() -> Iterator[Combination]:
    """Return the whole product."""
    return itertools.starmap(Combination, itertools.product(STORAGES, POSITIONS, PATTERNS, WEIGHTINGS))
