"""What the fifteen are run on, and how each mechanism takes its queries, keys and values from it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyhead.catalog import EXAMPLE, Mechanism, Settings
from polyhead.compare.latent import half_rank, latent_of
from polyhead.errors import ShapeError, UnknownNameError, UnsupportedError
from polyhead.oracle import rotate
from polyhead.spec import AttentionSpec, Differential, Grouped, Latent, Rotary
from polyhead.spec.position import ClippedBias

Array = NDArray[Any]

MAX_PAIRS = 2**26
"""Largest number of weights, over all heads, that one mechanism may need: 512 MiB in float64."""

LARGEST = 1e100
"""Largest number in an input: products of two, summed and squared, stay finite in float64."""


class Cross(NamedTuple):
    """What cross-attention meets.

    Attributes:
        query: ``[heads, q_len, width]``.
        key: ``[kv_heads, kv_len, width]``, of the other sequence.
        value: ``[kv_heads, kv_len, v_width]``, of the other sequence.
        key_tokens: Its tokens.
    """

    query: Array
    key: Array
    value: Array
    key_tokens: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """One sequence's queries, keys and values, and the spec that mechanisms are put into.

    Attributes:
        tokens: The tokens, one per position.
        query: ``[heads, len, width]``, before rotation.
        key: ``[kv_heads, len, width]``, before rotation.
        value: ``[kv_heads, len, v_width]``.
        base: The spec that the input comes with.
        cross: What #4 meets, or None if there is nothing.
        latent: W_down ``[width, rank]`` and W_up ``[rank, width]`` of #15, or None for an SVD.
        own: The own mechanism of the model that they come from, or None where they come from none. The base is
            the same, unless the textbook's form was asked for.
        token: The token, or its position, whose row is shown where none is asked for.
        layer: The number of the model's layer that they come from, or None.
        num_layers: How many layers that model has, or None.
    """

    tokens: tuple[str, ...]
    query: Array
    key: Array
    value: Array
    base: AttentionSpec
    cross: Cross | None = None
    latent: tuple[Array, Array] | None = None
    own: AttentionSpec | None = None
    token: str | int = -1
    layer: int | None = None
    num_layers: int | None = None


class Fitted(NamedTuple):
    """A spec with inputs of its shapes, ready to run.

    Attributes:
        spec: The spec.
        query: ``[maps, q_len, width]``.
        key: ``[maps, kv_len, width]``, or latent rows.
        value: ``[kv_heads, kv_len, v_width]``, or None with a latent.
        params: The learned tensors.
        key_tokens: The tokens of the keys.
        is_cross: Whether keys belong to another sequence, which counts from 0 as the queries' does.
        note: What was done to the inputs, in a sentence, or nothing.
    """

    spec: AttentionSpec
    query: Array
    key: Array
    value: Array | None
    params: dict[str, Array]
    key_tokens: tuple[str, ...]
    is_cross: bool
    note: str


def example_inputs() -> Inputs:
    """Return the textbook's shared example."""
    query, key, value, cross_query = (
        np.array(rows, dtype=np.float64)[None]
        for rows in (EXAMPLE.query, EXAMPLE.key, EXAMPLE.value, EXAMPLE.cross_query)
    )
    return Inputs(
        tokens=EXAMPLE.tokens,
        query=query,
        key=key,
        value=value,
        base=EXAMPLE.base,
        cross=Cross(cross_query, key, value, EXAMPLE.tokens),
        latent=(np.array(EXAMPLE.latent_down), np.array(EXAMPLE.latent_up)),
        token=EXAMPLE.token,
    )


def array_inputs(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, tokens: Any = None, cross_query: ArrayLike | None = None
) -> Inputs:
    """Check one's own arrays and return them as inputs.

    Args:
        query: ``[len, width]`` or ``[heads, len, width]``.
        key: ``[len, width]`` or ``[kv_heads, len, width]``.
        value: ``[len, v_width]`` or ``[kv_heads, len, v_width]``.
        tokens: A name for each position. None: their numbers.
        cross_query: A decoder's queries, of query's shape. None: #4 is left out.

    Returns:
        The inputs, with a base of full, position-free softmax attention.

    Raises:
        ShapeError: If an array is empty, not finite, or fits neither the others nor the tokens.
    """
    q, k, v = (_heads(name, array) for name, array in {"query": query, "key": key, "value": value}.items())
    length = q.shape[1]
    if k.shape[1] != length or v.shape[1] != length:
        raise ShapeError(f"query, key and value have {length}, {k.shape[1]} and {v.shape[1]} tokens; make them equal")
    if k.shape[0] != v.shape[0] or q.shape[0] % k.shape[0]:
        raise ShapeError(f"{q.shape[0]} query, {k.shape[0]} key and {v.shape[0]} value heads do not share out evenly")
    if q.shape[2] != k.shape[2]:
        raise ShapeError(f"query has width {q.shape[2]} and key {k.shape[2]}; make them equal")
    names = _names(range(length) if tokens is None else tokens)
    if len(names) != length:
        raise ShapeError(f"there are {len(names)} tokens for {length} positions; give one each")
    cross = None
    if cross_query is not None:
        decoder = _heads("cross_query", cross_query)
        if decoder.shape != q.shape:
            raise ShapeError(f"cross_query has shape {list(decoder.shape)} and query {list(q.shape)}; make them equal")
        cross = Cross(decoder, k, v, names)
    storage = Grouped(num_heads=q.shape[0], num_kv_heads=k.shape[0], head_dim=q.shape[2], v_head_dim=v.shape[2])
    return Inputs(tokens=names, query=q, key=k, value=v, base=AttentionSpec(storage=storage), cross=cross)


def check_size(inputs: Inputs) -> None:
    """Refuse inputs whose whole weight matrices would fill the memory.

    Args:
        inputs: The inputs.

    Raises:
        ShapeError: If one mechanism would need more than ``MAX_PAIRS`` weights.
    """
    heads, length, _ = inputs.query.shape
    if heads * length**2 > MAX_PAIRS:
        most = int((MAX_PAIRS / heads) ** 0.5)
        raise ShapeError(
            f"{length} tokens and {heads} heads make {heads * length**2:,} weights for each mechanism; "
            f"a comparison keeps whole matrices, give at most {most} tokens"
        )


def checked_head(inputs: Inputs, head: int) -> int:
    """Return a head's number, counted from 0.

    Args:
        inputs: The inputs.
        head: The head; negative numbers count from the last.

    Returns:
        Its number.

    Raises:
        UnknownNameError: If it does not exist.
    """
    count = len(inputs.query)
    if not -count <= head < count:
        there_is = f"heads 0 to {count - 1}" if count > 1 else "one head, 0"
        raise UnknownNameError(f"head={head} does not exist; the input has {there_is}")
    return head % count


def fit_mechanism(mechanism: Mechanism, inputs: Inputs, settings: Settings) -> Fitted:
    """Put a mechanism into the inputs' base spec and give it inputs of its shapes.

    Args:
        mechanism: The mechanism.
        inputs: The inputs.
        settings: The mechanisms' parameters.

    Returns:
        The fitted spec.

    Raises:
        UnsupportedError: If cross-attention has nothing to meet.
        SpecError: If the base cannot take the mechanism.
    """
    source = inputs
    key_tokens = inputs.tokens
    if mechanism.is_cross:
        if inputs.cross is None:
            raise UnsupportedError("cross-attention needs a second sequence: give cross_query, or a second text")
        source = dataclasses.replace(inputs, query=inputs.cross.query, key=inputs.cross.key, value=inputs.cross.value)
        key_tokens = inputs.cross.key_tokens
    settings = dataclasses.replace(settings, max_distance=max(len(inputs.tokens), len(key_tokens)) - 1)
    if mechanism.inputs == "latent" and settings.latent_rank is None:
        settings = dataclasses.replace(settings, latent_rank=half_rank(inputs.key, inputs.value))
    spec = mechanism.substitute(inputs.base, settings)
    if mechanism.inputs in ("halves", "latent"):  # these keep no position: it enters before they cut heads up
        source = _entered(source)
    fitted = fit(spec, source, settings)
    return fitted._replace(key_tokens=key_tokens, is_cross=mechanism.is_cross)


def fit(spec: AttentionSpec, inputs: Inputs, settings: Settings, params: dict[str, Array] | None = None) -> Fitted:
    """Give a spec inputs of its shapes: heads split, repeated or averaged, halved into maps, or a latent.

    Args:
        spec: The spec.
        inputs: The inputs.
        settings: Where a shared head comes from, and #7's slope.
        params: The learned tensors. None: #7's bias and the latent's, which follow from the inputs, and those of
            differential weighting's other forms as before any training.

    Returns:
        The fitted spec.

    Raises:
        ShapeError: If the spec's heads or widths cannot be made from the inputs.
    """
    query, key, value = inputs.query, inputs.key, inputs.value
    notes: list[str] = []
    if len(query) == 1 < spec.num_heads:
        query, key, value = (_split(x, spec.num_heads) for x in (query, key, value))
        notes.append(f"width split into {spec.num_heads} heads")
    implied: dict[str, Array] = {}
    fitted_value: Array | None = value
    if isinstance(spec.storage, Latent):
        _check_latent(spec.storage, key, value)
        key, implied, note = latent_of(spec, key, value, inputs.latent)
        fitted_value = None
    else:
        key, value, note = _share(key, value, spec.num_kv_heads, settings.shared_head)
        fitted_value = value
    notes.append(note)
    if isinstance(spec.weighting, Differential):
        planes, note = _halves(query.shape[-1], inputs.base)
        query = _maps(query, planes, spec.weighting)
        if isinstance(spec.storage, Latent):  # whose key is the latent, so its expansion is what has two maps
            implied["w_uk"] = _maps(implied["w_uk"].swapaxes(1, 2), planes, spec.weighting).swapaxes(1, 2)
        else:
            key = _maps(key, planes, spec.weighting)
        notes.append(note)
        if spec.weighting.form != "clipped" and not params:
            implied |= _untrained(spec)
            notes.append("λ is λ_init and the norm's weight 1, as before any training")
    if isinstance(spec.position, ClippedBias) and not params:
        implied["bias_table"] = _distance_table(spec, settings.bias_slope)
        notes.append(f"bias −{settings.bias_slope:g}·|i − j|")
    _check_fit(spec, {"query": query, "key": key, "value": fitted_value})
    note = "; ".join(filter(None, notes))
    return Fitted(spec, query, key, fitted_value, implied | (params or {}), inputs.tokens, False, note)


def _names(tokens: Any) -> tuple[str, ...]:
    try:
        return tuple(map(str, tokens))
    except TypeError:
        raise ShapeError(f"tokens={tokens!r} is no list of names; give one for each position") from None


def _heads(name: str, array: ArrayLike) -> Array:
    try:
        if np.iscomplexobj(array):
            raise TypeError("it is complex")
        heads = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # the last is torch's, of a tensor with a gradient
        raise ShapeError(f"{name} is not an array of real numbers: {error}") from None
    if heads.ndim not in (2, 3):
        raise ShapeError(f"{name} has shape {list(heads.shape)}; give [len, width] or [heads, len, width]")
    if not heads.size:
        raise ShapeError(f"{name} has shape {list(heads.shape)} and so is empty; give at least one token of width 1")
    if not np.isfinite(heads).all():
        where = np.argwhere(~np.isfinite(heads))[0].tolist()
        raise ShapeError(f"{name} is not finite at {where}; a comparison needs numbers")
    if (largest := np.abs(heads).max()) > LARGEST:
        raise ShapeError(f"{name} holds {largest:.0e}, and products of numbers above {LARGEST:.0e} overflow; scale it")
    return heads if heads.ndim == 3 else heads[None]


def _split(x: Array, pieces: int) -> Array:
    """Cut one head ``[1, len, width]`` into ``[pieces, len, width / pieces]``."""
    if x.shape[-1] % pieces:
        raise ShapeError(f"width {x.shape[-1]} does not split into {pieces} heads")
    return np.asarray(x[0].reshape(x.shape[1], pieces, -1).swapaxes(0, 1))


def _share(key: Array, value: Array, num_kv_heads: int, shared_head: str) -> tuple[Array, Array, str]:
    """Repeat key/value heads, or pool them, to a number that divides or is divided by theirs."""
    count = len(key)
    if num_kv_heads == count:
        return key, value, ""
    if num_kv_heads % count == 0:
        key, value = (np.repeat(x, num_kv_heads // count, axis=0) for x in (key, value))
        return key, value, f"{count} key/value heads repeated to {num_kv_heads}, which changes nothing"
    if count % num_kv_heads:
        raise ShapeError(f"{count} key/value heads cannot be pooled to {num_kv_heads}; give a divisor of {count}")
    key, value = (x.reshape(num_kv_heads, -1, *x.shape[1:]) for x in (key, value))
    if shared_head == "first":
        return key[:, 0], value[:, 0], f"the first of every {count // num_kv_heads} key/value heads shared"
    return key.mean(axis=1), value.mean(axis=1), f"{count} key/value heads averaged to {num_kv_heads}"


def _entered(inputs: Inputs) -> Inputs:
    """Return the inputs with the base's RoPE applied to queries and keys."""
    rotary = inputs.base.position
    if not isinstance(rotary, Rotary):
        return inputs

    def turned(x: Array) -> Array:
        # scalings that look at the length do nothing within the trained length, which is where inputs come from
        angles = np.arange(x.shape[1])[:, None] * rotary.frequencies(
            inputs.base.rotary_dim, np.zeros(1, dtype=np.int64)
        )
        return rotate(x, angles, rotary, start=inputs.base.rotary_offset, width=inputs.base.rotary_dim)

    return dataclasses.replace(inputs, query=turned(inputs.query), key=turned(inputs.key))


def _maps(heads: Array, planes: tuple[list[int], list[int]], weighting: Differential) -> Array:
    """Cut each head into two maps, in the order in which the form of differential attention pairs them."""
    first, second = (heads[..., part] for part in planes)
    pairs = np.stack([first, second], axis=0 if weighting.form == "diffllama" else 1)
    return pairs.reshape(-1, *first.shape[1:])


def _halves(width: int, base: AttentionSpec) -> tuple[tuple[list[int], list[int]], str]:
    """Return the widths of each of two maps, and what they are: planes of RoPE where any turn, else halves."""
    turning = base.rotary_dim if base.qk_head_dim == width else 0
    planes: list[list[int]] = []
    if turning and isinstance(base.position, Rotary):
        half = turning // 2
        interleaved = base.position.pairs == "interleaved"
        planes = [[2 * t, 2 * t + 1] if interleaved else [t, t + half] for t in range(half)]
    rest = list(range(turning, width))
    even, odd = (sorted(i for plane in planes[start::2] for i in plane) for start in (0, 1))
    first, second = even + rest[: len(rest) // 2], odd + rest[len(rest) // 2 :]
    if len(first) != len(second):
        raise ShapeError(
            f"a head of width {width} does not halve evenly into two maps: its width, or its RoPE planes, are odd"
        )
    return (first, second), f"maps are the {'even and odd planes of RoPE' if planes else 'halves'}"


def _untrained(spec: AttentionSpec) -> dict[str, Array]:
    """Return λ vectors of zeros, which leave λ_init, and a norm's weight of ones."""
    shapes = spec.parameter_shapes()
    vectors = {name: np.zeros(shape) for name, shape in shapes.items() if name.startswith("lambda_")}
    return vectors | {name: np.ones(shapes[name]) for name in ("sub_norm",) if name in shapes}


def _check_latent(storage: Latent, key: Array, value: Array) -> None:
    width = len(key) * (key.shape[-1] + value.shape[-1])
    if storage.kv_lora_rank * width > MAX_PAIRS:
        raise ShapeError(
            f"kv_lora_rank={storage.kv_lora_rank} makes {storage.kv_lora_rank * width:,} numbers to unfold from; "
            f"these keys and values have at most rank {min(key.shape[1], width)}, give that or less"
        )


def _distance_table(spec: AttentionSpec, slope: float) -> Array:
    assert isinstance(spec.position, ClippedBias)
    limit = spec.position.max_distance
    table = np.zeros((spec.position.num_entries, spec.num_heads))
    table[spec.position.buckets()] = -slope * np.abs(np.arange(-limit, limit + 1))[:, None]
    return table


def _check_fit(spec: AttentionSpec, arrays: dict[str, Array | None]) -> None:
    for name, wanted in spec.input_shapes().items():
        array = arrays[name]
        if array is not None and wanted is not None and (len(array), array.shape[-1]) != wanted:
            raise ShapeError(
                f"these inputs give {name} {len(array)} heads of width {array.shape[-1]}, and {spec!r} needs "
                f"{wanted[0]} of width {wanted[1]}; change the spec's storage"
            )
