"""The textbook's tables, computed: what the fifteen cost, how they pull, and what they keep of each token."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from polyhead.catalog import Mechanism, Settings, mechanisms
from polyhead.cost.cache import cache_bytes
from polyhead.cost.operations import attended
from polyhead.cost.pairs import allowed_pairs
from polyhead.errors import SpecError
from polyhead.spec import (
    AttentionSpec,
    BigBird,
    Causal,
    Grouped,
    Latent,
    LayerSpec,
    Linear,
    NoPosition,
    Rotary,
    SlidingWindow,
)
from polyhead.spec.choice import as_int

Row = dict[str, Any]

COMPLEXITY_CONTEXT = 8192
"""Tokens for which complexity is printed where none are asked for: links at random are counted head by head."""

BOOK_LAYERS = 8
"""Layers for which the textbook's totals hold; it names none."""

GIB = 2**30

BOOK_GIB = {"MHA": 16.0, "GQA-8": 4.0, "MLA, a latent of 128 alone": 0.25}
"""What the textbook prints for 128K tokens: 16 GB, 4 GB and 250 MB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes that the tables are for; the defaults are the textbook's, of a model like LLaMA.

    Attributes:
        embed_dim: Width of a token.
        num_heads: Number of heads, of ``embed_dim / num_heads`` each.
        num_groups: Key/value heads of GQA.
        window: Tokens that a window holds.
        latent_rank: Width of MLA's latent.
        rope_dim: Width of its RoPE key.
        num_layers: Number of layers.
        context: Tokens of a sequence.
        precision: The format of what is kept.
    """

    embed_dim: int = 4096
    num_heads: int = 32
    num_groups: int = 8
    window: int = 4096
    latent_rank: int = 512
    rope_dim: int = 64
    num_layers: int = 32
    context: int = 131_072
    precision: str = "fp16"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "precision":
                as_int(field.name, getattr(self, field.name), at_least=1)
        if self.embed_dim % self.num_heads:
            raise SpecError(f"embed_dim={self.embed_dim} is not divisible by num_heads={self.num_heads}")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads


def complexity(shape: Shape) -> list[Row]:
    """Return a row for each of the fifteen, at the shape's context and at half of it.

    The window is causal, BigBird has blocks of 64 tokens: three about each one's own, two for all, three at random.

    Args:
        shape: The sizes.

    Returns:
        Rows with the formula of the time, the pairs that each head sees as a part of all, operations of a layer's
        attention, these against the baseline's, and the exponent with which they grow with the number of tokens.

    Raises:
        SpecError: If the context is a single token, from which nothing grows.
    """
    rows, tokens = [], shape.context
    if tokens < 2:
        raise SpecError(f"context={tokens} says nothing of growth; give at least 2 tokens")
    base, growth = _full(shape), math.log(tokens / (tokens // 2))
    baseline = attended(base, tokens, tokens)
    for entry in mechanisms():
        spec = _spec_of(entry, base, shape)
        done, before = (attended(spec, n, n, cross=entry.is_cross) for n in (tokens, tokens // 2))
        seen = 1.0 if entry.is_cross else allowed_pairs(spec, tokens, tokens) / (spec.num_heads * tokens**2)
        rows.append(
            {
                "number": entry.number,
                "name": entry.name,
                "time": entry.time,
                "pairs": None if isinstance(spec.weighting, Linear) else seen,
                "operations": done,
                "of_baseline": done / baseline,
                "exponent": math.log(done / before) / growth,
            }
        )
    return rows


def forces() -> list[Row]:
    """Return a row for each of the fifteen: how it pulls on the four forces, what it gains and what it loses."""
    return [
        {
            "number": entry.number,
            "name": entry.name,
            **dataclasses.asdict(entry.forces),
            "gains": entry.gains,
            "loses": entry.loses,
        }
        for entry in mechanisms()
    ]


def memory(shape: Shape) -> list[Row]:
    """Return what each way to store keeps of a token in a layer, and of a whole sequence in all layers.

    Args:
        shape: The sizes.

    Returns:
        Rows with bytes of a token and layer (None where a sequence takes the same whatever its length), MHA's as a
        multiple of these, GiB of a sequence in all layers, and, at the textbook's sizes, what the textbook prints and
        what comes out for its 8 layers.
    """
    rows: list[Row] = []
    at_books_sizes = dataclasses.replace(shape, num_layers=Shape.num_layers) == Shape()
    for name, spec in _storages(shape).items():
        layer = LayerSpec(attention=spec, embed_dim=shape.embed_dim)
        token = cache_bytes([layer], 1, precision=shape.precision).ideal
        whole = cache_bytes([layer], shape.context, precision=shape.precision).ideal
        grows = not isinstance(spec.weighting, Linear)
        rows.append(
            {
                "name": name,
                "token_bytes": token if grows else None,
                "of_mha": (rows[0]["token_bytes"] if rows else token) / token if grows else None,
                "layers": shape.num_layers,
                "context": shape.context,
                "gib": shape.num_layers * whole / GIB,
                "book_layers_gib": BOOK_LAYERS * whole / GIB,
                "book_gib": BOOK_GIB.get(name) if at_books_sizes else None,
            }
        )
    return rows


def _full(shape: Shape) -> AttentionSpec:
    return AttentionSpec(storage=Grouped(num_heads=shape.num_heads, head_dim=shape.head_dim))


def _spec_of(entry: Mechanism, base: AttentionSpec, shape: Shape) -> AttentionSpec:
    settings = Settings(
        num_heads=shape.num_heads,
        num_groups=shape.num_groups,
        window=SlidingWindow.causal(shape.window),
        bigbird=BigBird(block=64, radius=1, num_global=2, num_random=3, seed=0),
        latent_rank=shape.latent_rank,
    )
    return entry.substitute(base, settings)


def _storages(shape: Shape) -> dict[str, AttentionSpec]:
    """Return causal specs that differ in what is kept."""

    def grouped(kv_heads: int, **choices: Any) -> AttentionSpec:
        storage = Grouped(num_heads=shape.num_heads, num_kv_heads=kv_heads, head_dim=shape.head_dim)
        return AttentionSpec(storage=storage, **{"pattern": Causal(), **choices})

    def latent(rank: int, rope: int) -> AttentionSpec:
        storage = Latent(
            num_heads=shape.num_heads,
            kv_lora_rank=rank,
            qk_nope_head_dim=shape.head_dim,
            qk_rope_head_dim=rope,
            v_head_dim=shape.head_dim,
        )
        return AttentionSpec(storage=storage, position=Rotary() if rope else NoPosition(), pattern=Causal())

    rank, rope, window = shape.latent_rank, shape.rope_dim, SlidingWindow.causal(shape.window)
    return {
        "MHA": grouped(shape.num_heads),
        f"GQA-{shape.num_groups}": grouped(shape.num_groups),
        "MQA": grouped(1),
        f"MLA, a latent of {rank} alone": latent(rank, 0),
        f"MLA, {rank} and a RoPE key of {rope}": latent(rank, rope),
        "MLA, a latent of 128 alone": latent(128, 0),
        f"MHA, a window of {shape.window:,}": grouped(shape.num_heads, pattern=window),
        f"GQA-{shape.num_groups}, a window of {shape.window:,}": grouped(shape.num_groups, pattern=window),
        "linear": grouped(shape.num_heads, weighting=Linear()),
    }
