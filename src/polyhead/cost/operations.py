"""What a layer computes and moves in prefill, in a decode step and in a training step.

Operations are floating-point multiplications and additions, two for each pair of numbers multiplied; softmax, norms,
rotations and biases are not counted, as `torch.utils.flop_counter` does not count them.
"""

from __future__ import annotations

import dataclasses
import math

from polyhead.cost.cache import cache_bytes
from polyhead.cost.pairs import allowed_pairs, computed_pairs
from polyhead.cost.precision import Precision, precision_of
from polyhead.errors import SpecError
from polyhead.spec import AttentionSpec, Latent, LayerSpec, Linear, retention
from polyhead.spec.choice import as_int

CHUNK = 64
"""Tokens among which linear weighting forms pairs when all come at once; what came before is in its sums."""

RECOMPUTED = 0.5
"""What a backward pass that forms the scores anew adds, as a part of the forward's products of pairs."""

SCORE_BYTES = 4
"""Bytes of a score: sums are made in float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a layer does; one's can be added to another's, and multiplied by a number of layers.

    Attributes:
        useful: Operations that the mathematics asks for: projections, and 4·d for each allowed pair where keys and
            values are d wide, in training three times that.
        executed: Operations that the kernels execute: pairs by whole blocks of queries, a latent absorbed where it is
            decoded, scores formed again in a backward pass.
        moved: Bytes read and written: each weight, each activation between two products, and the cache, once; what a
            kernel reads again from a processor's own caches does not count.
        temporary: Bytes of the largest tensor that is made between input and output. Of a sum of layers the largest.
        attending: Those of ``executed`` that are attention's own and no product with weights.
        cached: Those of ``moved`` that are a cache's.
        layers: Number of layers that are gone through.
    """

    useful: float = 0.0
    executed: float = 0.0
    moved: float = 0.0
    temporary: int = 0
    attending: float = 0.0
    cached: float = 0.0
    layers: int = 0

    def __rmul__(self, times: int) -> Work:
        return Work(
            temporary=self.temporary,
            **{name: times * getattr(self, name) for name in _ADDED},
        )

    def __add__(self, other: Work) -> Work:
        return Work(
            temporary=max(self.temporary, other.temporary),
            **{name: getattr(self, name) + getattr(other, name) for name in _ADDED},
        )


_ADDED = ("useful", "executed", "moved", "attending", "cached", "layers")


def prefill(
    layer: LayerSpec,
    tokens: int,
    *,
    batch: int = 1,
    context_length: int = 0,
    precision: Precision | str = "bf16",
) -> Work:
    """Count what a layer does with all tokens of its sequences at once.

    Args:
        layer: The layer.
        tokens: Tokens of each sequence.
        batch: Number of sequences.
        context_length: Tokens of the other sequence, with ``source="cross"``.
        precision: The formats.

    Returns:
        The work, all sequences together.

    Raises:
        SpecError: If a number is too small, or a layer over another sequence is given none.
    """
    formats, spec = precision_of(precision), layer.attention
    source = _source_length(layer, tokens, batch, context_length)
    projected = 2.0 * batch * (tokens * _matrices(layer, _OF_QUERIES) + source * _matrices(layer, _OF_KEYS))
    useful = float(batch * attended(spec, tokens, source, cross=layer.source == "cross"))
    if isinstance(spec.weighting, Linear):
        in_chunks = _chunk_pairs(tokens) if spec.pattern.is_causal else 0
        executed = useful + batch * _pair_width(spec) * spec.num_heads * in_chunks
    else:
        executed = float(batch * _pair_width(spec) * _blocks(layer, tokens, source))
    made, largest = activations(layer, tokens, source)
    kept = _kept(layer, tokens, batch, context_length, formats)
    return Work(
        useful=projected + useful,
        executed=projected + executed,
        moved=_around(layer, made, batch, formats) + kept,
        temporary=formats.bytes_of("activations", batch * largest),
        attending=executed,
        cached=kept,
        layers=1,
    )


def decode_step(
    layer: LayerSpec,
    length: int,
    *,
    batch: int = 1,
    queries: int = 1,
    context_length: int = 0,
    precision: Precision | str = "bf16",
) -> Work:
    """Count what a layer does with the next tokens of its sequences, the others being in its cache.

    Args:
        layer: The layer.
        length: Tokens of each sequence, the new ones included.
        batch: Number of sequences.
        queries: New tokens of each.
        context_length: Tokens of the other sequence, with ``source="cross"``; they are in the cache.
        precision: The formats.

    Returns:
        The work, all sequences together.

    Raises:
        SpecError: If a number is too small, or the layer has no cache.
    """
    formats, spec = precision_of(precision), layer.attention
    source = _source_length(layer, length, batch, context_length)
    kept = retention(spec, layer.source)  # raises, where there is no cache
    as_int("queries", queries, at_least=1)
    is_self = layer.source == "self"
    if is_self and queries > length:
        raise SpecError(
            f"queries={queries} of length={length}: the length has the new tokens in it; give at least that"
        )
    names, new_keys = (_OF_QUERIES + _OF_KEYS, queries) if is_self else (_OF_QUERIES, 0)
    projected = 2.0 * batch * queries * _matrices(layer, names)
    if isinstance(spec.weighting, Linear):
        useful = float(batch * attended(spec, queries, new_keys))
        executed = useful + batch * _pair_width(spec) * spec.num_heads * _chunk_pairs(new_keys)
    else:
        useful = float(batch * attended(spec, queries, source, cross=not is_self))
        executed = float(batch * _blocks(layer, queries, source) * _pair_width(spec, absorbed=True))
    made, _ = activations(layer, queries, new_keys)
    seen = min(source, int(kept.reach.size())) if kept.kind == "rolling" else source
    scores = 0 if kept.kind == "state" else spec.num_heads * spec.num_maps * queries * seen
    cached = _kept(layer, length, batch, context_length, formats)
    return Work(
        useful=projected + useful,
        executed=projected + executed,
        moved=_around(layer, made, batch, formats) + cached,
        temporary=SCORE_BYTES * batch * scores,
        attending=executed,
        cached=cached,
        layers=1,
    )


def training_step(
    layer: LayerSpec, tokens: int, *, batch: int = 1, context_length: int = 0, precision: Precision | str = "bf16"
) -> Work:
    """Count what a layer does forward and backward; arguments and result as those of `prefill`.

    The backward pass of a product is two products. That of attention forms its scores again, which is executed and not
    useful. Weights move three times, for both directions and their gradient, and so do activations.
    """
    forward = prefill(layer, tokens, batch=batch, context_length=context_length, precision=precision)
    source = _source_length(layer, tokens, batch, context_length)
    again = 0.0
    if not isinstance(layer.attention.weighting, Linear):
        again = RECOMPUTED * batch * _pair_width(layer.attention) * _blocks(layer, tokens, source)
    more = Work(executed=again, attending=again)
    return 3 * forward + more


def attended(spec: AttentionSpec, q_len: int, kv_len: int, *, cross: bool = False) -> int:
    """Count the useful operations of attention alone, without projections, for one sequence.

    Args:
        spec: The mechanism.
        q_len: Number of queries.
        kv_len: Number of keys; with linear weighting those that are new to its sums.
        cross: Whether the keys are of another sequence, of which each query sees all.

    Returns:
        The number.
    """
    if isinstance(spec.weighting, Linear):  # each key adds to one sum, each query reads both
        added = spec.num_kv_heads * kv_len * spec.v_head_dim
        return 2 * spec.qk_head_dim * (added + spec.num_heads * q_len * (spec.v_head_dim + 1))
    return _pair_width(spec) * (spec.num_heads * q_len * kv_len if cross else allowed_pairs(spec, q_len, kv_len))


_OF_QUERIES = ("q_proj", "q_a_proj", "q_b_proj", "o_proj")
_OF_KEYS = ("k_proj", "v_proj", "kv_a_proj", "w_uk", "w_uv")


def _source_length(layer: LayerSpec, length: int, batch: int, context_length: int) -> int:
    """Return the number of keys, and check the numbers."""
    as_int("length", length, at_least=1)
    as_int("batch", batch, at_least=1)
    as_int("context_length", context_length, at_least=0)
    if layer.source == "self":
        return length
    if not context_length:
        raise SpecError("a layer over another sequence needs context_length=, its number of tokens")
    return context_length


def _blocks(layer: LayerSpec, queries: int, keys: int) -> int:
    if layer.source == "cross":
        return layer.attention.num_heads * queries * keys
    return computed_pairs(layer.attention, queries, keys)


def _pair_width(spec: AttentionSpec, *, absorbed: bool = False) -> int:
    """Return the operations of a pair in all maps of a head."""
    if absorbed and isinstance(spec.storage, Latent):
        rank = spec.storage.kv_lora_rank
        return 2 * (spec.num_maps * (rank + spec.storage.qk_rope_head_dim) + rank)
    return 2 * (spec.num_maps * spec.qk_head_dim + spec.v_head_dim)


def _chunk_pairs(tokens: int) -> int:
    """Count the pairs that causal linear weighting forms inside its chunks, of each head."""
    whole, rest = divmod(tokens, CHUNK)
    return whole * CHUNK**2 + rest**2


def _matrices(layer: LayerSpec, names: tuple[str, ...]) -> int:
    """Count the numbers of some of the layer's matrices, which each token is multiplied with."""
    shapes = layer.parameter_shapes()
    return sum(math.prod(shape) for name, shape in shapes.items() if name.removesuffix(".weight") in names)


def _around(layer: LayerSpec, made: int, batch: int, formats: Precision) -> float:
    """Return the bytes of weights and activations."""
    return float(formats.bytes_of("weights", layer.parameters) + formats.bytes_of("activations", batch * made))


def _kept(layer: LayerSpec, length: int, batch: int, context_length: int, formats: Precision) -> float:
    """Return the bytes of what a cache keeps, written or read once; 0 where there is none, see `retention`."""
    try:
        found = cache_bytes([layer], length, batch=batch, precision=formats, context_length=context_length)
    except SpecError:  # queries see later keys
        return 0.0
    return float(found.ideal)


def activations(layer: LayerSpec, queries: int, keys: int) -> tuple[int, int]:
    """Return how many numbers of one sequence lie between products, written and read, and the largest tensor's.

    Args:
        layer: The layer.
        queries: Number of queries.
        keys: Number of new keys.

    Returns:
        Both.
    """
    spec = layer.attention
    query = spec.num_heads * spec.num_maps * spec.qk_head_dim * queries
    key = spec.num_kv_heads * spec.num_maps * spec.qk_head_dim * keys
    value, output = spec.num_kv_heads * spec.v_head_dim * keys, spec.num_heads * spec.v_head_dim * queries
    around = 2 * layer.embed_dim * queries + (layer.context_dim or 0) * keys
    return around + 2 * (query + key + value + output), max(query, key, value, output)
