"""Bytes of what is kept of a sequence: what must be, what engines reserve, and what our caches allocate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from polyhead.cost.precision import BITS, Precision, precision_of
from polyhead.errors import SpecError
from polyhead.spec import AttentionSpec, Grouped, Latent, LayerSpec, Retention, Rotary, retention
from polyhead.spec.choice import as_int

SMALLEST = 64
"""Slots that a growing cache of ours reserves at first where no ``max_seq_len`` is given."""

OURS = ("float32", "bf16", "fp16")
"""The formats that our caches keep."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """How a serving engine reserves memory.

    Attributes:
        page: Tokens in a page, of which it reserves whole ones; 16 is vLLM's default.
        keeps_windows_whole: Whether layers with a window keep every token all the same, as engines do that give all
            layers the same pages.
    """

    page: int = 16
    keeps_windows_whole: bool = True

    def __post_init__(self) -> None:
        as_int("page", self.page, at_least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheBytes:
    """Bytes of a cache, for all sequences and all layers that it was asked for.

    Attributes:
        ideal: What the next tokens need and no more, each layer by its own spec; ``used_bytes`` of our caches.
        reserved: What an `Engine` sets aside.
        allocated: What our caches allocate, ``allocated_bytes``; None in formats that they do not keep.
    """

    ideal: int
    reserved: int
    allocated: int | None


def cache_bytes(
    layers: Iterable[LayerSpec],
    length: int,
    *,
    batch: int = 1,
    precision: Precision | str = "bf16",
    max_seq_len: int | None = None,
    context_length: int = 0,
    engine: Engine | None = None,
) -> CacheBytes:
    """Count the bytes that a stack of layers keeps.

    ::

        cache_bytes(ph.model("llama-3-8b").layers, 1).ideal  # 131072

    Args:
        layers: The layers; those over another sequence (``source="cross"``) keep that one.
        length: Tokens of each sequence.
        batch: Number of sequences.
        precision: The formats; ``cache`` is read.
        max_seq_len: What our caches are made for. None: they grow, and all tokens came at once.
        context_length: Tokens of the other sequence.
        engine: How an engine reserves. None: pages of 16 tokens, windows kept whole.

    Returns:
        The bytes.

    Raises:
        SpecError: If a number is too small, or a layer has no cache, since its queries see later tokens.
    """
    as_int("length", length, at_least=0)
    as_int("batch", batch, at_least=1)
    as_int("context_length", context_length, at_least=0)
    if max_seq_len is not None and max_seq_len < length:
        raise SpecError(f"max_seq_len={max_seq_len} is below length={length}; give at least that")
    stored, engine = precision_of(precision).cache, engine or Engine()
    ideal = reserved = allocated = 0
    for layer in layers:
        kept = retention(layer.attention, layer.source)
        tokens = context_length if kept.kind == "context" else length
        one = _bytes_of_number(kept, stored)
        ideal += math.ceil(kept.numbers(tokens) * one)
        reserved += math.ceil(_reserved(kept, tokens, engine) * one)
        allocated += math.ceil(_allocated(kept, tokens, max_seq_len) * one)
    return CacheBytes(
        ideal=batch * ideal,
        reserved=batch * reserved,
        allocated=batch * allocated if stored in OURS else None,
    )


def expanded(spec: AttentionSpec) -> AttentionSpec:
    """Return the spec whose cache holds the keys and values of every head that a latent stands for.

    It is what an engine keeps that makes keys and values before it stores them.

    Args:
        spec: A spec with `Latent` storage; another is returned as it is.

    Returns:
        A spec with `Grouped` storage. RoPE turns a part of its keys' width then.
    """
    storage = spec.storage
    if not isinstance(storage, Latent):
        return spec
    grouped = Grouped(num_heads=storage.num_heads, head_dim=storage.qk_head_dim, v_head_dim=storage.v_head_dim)
    position = spec.position
    if isinstance(position, Rotary):
        position = dataclasses.replace(position, rotary_dim=spec.rotary_dim)
    return dataclasses.replace(spec, storage=grouped, position=position)


def _bytes_of_number(kept: Retention, stored: str) -> float:
    return (max(BITS["float32"], BITS[stored]) if kept.kind == "state" else BITS[stored]) / 8


def _reserved(kept: Retention, tokens: int, engine: Engine) -> int:
    if kept.kind == "state":
        return kept.row
    if kept.kind == "rolling" and not engine.keeps_windows_whole:
        tokens = min(tokens, int(kept.reach.size()))
    return kept.row * engine.page * -(-tokens // engine.page)


def _allocated(kept: Retention, tokens: int, max_seq_len: int | None) -> int:
    if kept.kind in {"state", "context"}:
        return kept.numbers(tokens)
    if kept.kind == "rolling":
        return kept.row * int(kept.reach.size())
    if max_seq_len is not None:
        return kept.row * max_seq_len
    return kept.row * (max(tokens, SMALLEST) if tokens else 0)
