"""Softmax attention over tiles of queries, each with the keys that it can meet: no matrix of all pairs.

A window costs what its width asks, a bias by distance next to nothing, and what is kept between forward and backward
is one number for each row; see `tiles` for how, and `flash` for what computes a tile.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polyhead.kernels import flash, stages, tiles
from polyhead.kernels.common import (
    Call,
    Case,
    Kernel,
    allowed_pairs,
    beyond_flash,
    compute_dtype,
    confined,
    keys_and_values,
    not_finite,
)
from polyhead.kernels.table_gradient import table_gradient
from polyhead.spec import AttentionSpec, Band, Differential, Latent, Linear, RelativeBias, Softmax
from polyhead.storage import grouped, latent

COPIED_BYTES = 2**24
"""What is copied of keys and values at once, where they must be expanded or made as wide as each other."""

FEWEST_PAIRS = 2**16
"""Pairs below which laying out tiles takes longer than a matrix of scores."""


def refuse(case: Case) -> str | None:
    """Return why tiles do not compute this case, or None."""
    if case.device != "cpu":
        return f"the operator behind it is the CPU's, not {case.device}'s"
    if case.compiled:
        return "its tiles go by the lengths, which a compiled graph leaves open"
    return flash.missing() or _unknown_to_a_tile(case.spec) or _no_tile_gives(case)


def _unknown_to_a_tile(spec: AttentionSpec) -> str | None:
    if isinstance(spec.weighting, Linear):
        return "a tile's weights are a softmax"
    if isinstance(spec.weighting, Softmax) and spec.weighting.softcap is not None:
        return "the operator behind it has no softcap"
    return beyond_flash(spec)


def _no_tile_gives(case: Case) -> str | None:
    spec = case.spec
    if case.dropout:
        return "dropout is in the plain kernel alone"
    if case.weights:
        return "a tile's weights are not kept"
    if 0 in (case.q_len, case.kv_len):
        return "there is no query or no key"
    learns = isinstance(spec.position, RelativeBias) and case.needs_grad
    if learns and not (isinstance(spec.pattern, Band) and case.aligned and not case.key_mask and not case.segments):
        return "the gradient of a learned bias is taken along the diagonals of a band, without padding or positions"
    return None


def pass_over(case: Case) -> str | None:
    """Return why another kernel is quicker, or None."""
    if case.q_len * case.kv_len < FEWEST_PAIRS:
        return f"below {FEWEST_PAIRS} pairs, tiles cost more than they save"
    return None


def run(call: Call) -> tuple[Tensor, None]:
    """Compute tile by tile; see `Kernel.run`."""
    rows = (call.key,) if call.value is None else (call.key, call.value)

    def attend(*given: Tensor) -> Tensor:
        return _attend(call, *given)

    output = confined(attend, rows, functools.partial(_not_finite, call), lambda: allowed_pairs(call))
    return output, None


def _not_finite(call: Call) -> Tensor:
    return not_finite(*keys_and_values(call), call.case.spec)


def _attend(call: Call, key: Tensor, value: Tensor | None = None) -> Tensor:
    spec = call.case.spec
    bias = tiles.distance_bias(call) if call.case.aligned else None
    at_once = _heads_at_once(call)
    if at_once >= spec.num_kv_heads:
        return _heads(call, slice(0, spec.num_kv_heads), key, value, bias)
    chunks = [slice(i, min(i + at_once, spec.num_kv_heads)) for i in range(0, spec.num_kv_heads, at_once)]
    if call.case.needs_grad:  # what is copied for some heads is copied again, not kept
        some = functools.partial(checkpoint, _heads, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([some(call, heads, key, value, bias) for heads in chunks], dim=1)
    output = call.query.new_empty(len(key), spec.num_heads, call.case.q_len, spec.v_head_dim)
    for heads in chunks:
        output[:, heads.start * spec.group_size : heads.stop * spec.group_size] = _heads(call, heads, key, value, bias)
    return output


def _heads_at_once(call: Call) -> int:
    """Return how many key/value heads are computed together: all of them where nothing has to be copied."""
    spec = call.case.spec
    if isinstance(spec.storage, Latent) or spec.qk_head_dim != spec.v_head_dim:
        width = max(spec.qk_head_dim, spec.v_head_dim)
        size = len(call.key) * call.case.kv_len * width * (spec.num_maps + 1) * call.case.dtype.itemsize
        turns = -(-spec.num_kv_heads // max(1, COPIED_BYTES // size))
        return -(-spec.num_kv_heads // turns)  # alike in size, so that threads share each turn evenly
    return spec.num_kv_heads


def _heads(call: Call, heads: slice, key: Tensor, value: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return the output of some key/value heads, ``[batch, heads · group, q_len, v_head_dim]``."""
    spec = call.case.spec
    queries = grouped.by_group(call.query, spec)[:, :, heads].flatten(2, 3)
    keys, values = _keys_and_values(call, heads, key, value)
    own = slice(heads.start * spec.group_size, heads.stop * spec.group_size)
    sinks = call.params["sinks"][own] if isinstance(spec.weighting, Softmax) and spec.weighting.sink else None
    own_bias = None if bias is None else bias[own]
    width = max(spec.qk_head_dim, spec.v_head_dim)
    keys, values = (_in_runs(call, x) for x in (keys, _as_wide(values, width)))
    maps = [
        flash.attend(
            _as_wide(queries[:, m], width),
            _as_wide(keys[:, m], width),
            values,
            functools.partial(tiles.lay_out, call, range(own.start, own.stop)),
            scale=spec.scale,
            sinks=sinks,
            distance_bias=own_bias,
            gradient=None if own_bias is None else functools.partial(table_gradient, call, own_bias, sinks),
        )[..., : spec.v_head_dim]
        for m in range(spec.num_maps)
    ]
    if not isinstance(spec.weighting, Differential):
        return maps[0]
    first, second = (x.to(compute_dtype(call.case.dtype)) for x in maps)
    mixed = first - stages.difference(call, spec.weighting) * second
    by_group = grouped.heads_as(mixed, heads.stop - heads.start, spec.group_size)
    return stages.finish(call, None, by_group).to(call.case.dtype)


def _keys_and_values(call: Call, heads: slice, key: Tensor, value: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return keys ``[batch, maps, heads, kv_len, width]`` and values ``[batch, heads, kv_len, v_head_dim]``."""
    spec = call.case.spec
    if value is not None:
        return grouped.keys_by_map(key, spec)[:, :, heads], value[:, heads]
    up = call.params["w_uk"].to(key.dtype)[None]
    some = grouped.keys_by_map(up, spec)[0, :, heads].flatten(0, 1)
    params = {"w_uk": some, "w_uv": call.params["w_uv"].to(key.dtype)[heads]}
    keys, values = latent.expand(key, params, spec)
    return keys.unflatten(1, (spec.num_maps, -1)), values


def _in_runs(call: Call, x: Tensor) -> Tensor:
    """Lay keys or values out so that each head can take whole runs of its own; the last may be shorter."""
    pattern = call.case.spec.pattern
    if not pattern.per_head:
        return x
    missing = -x.shape[-2] % pattern.unit
    return (functional.pad(x, (0, 0, 0, missing)) if missing else x).contiguous()


def _as_wide(x: Tensor, width: int) -> Tensor:
    """Fill rows up with zeros, which add nothing to a product: the operator wants all of one width."""
    return x if x.shape[-1] == width else functional.pad(x, (0, width - x.shape[-1]))


KERNEL = Kernel(
    "tiled", "PyTorch's flash attention over tiles of queries and the keys they can meet", refuse, run, pass_over
)
