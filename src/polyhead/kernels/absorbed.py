"""MLA in the latent space: the up-projections go into query and output, so the stored rows are never expanded.

``q·(W_UK c) = (W_UKᵀ q)·c`` and ``Σ w_j W_UV c_j = W_UV Σ w_j c_j``: each stored row is read once for all heads.

*Source*: arXiv 2405.04434, section 2.1.2.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from polyhead.kernels import decoding, stages
from polyhead.kernels.common import Call, Case, Kernel, allowed_pairs, compute_dtype, confined, rotates_in_kernel
from polyhead.spec import Latent, Linear
from polyhead.storage import grouped


def refuse(case: Case) -> str | None:
    """Return why the up-projections cannot be absorbed in this case, or None."""
    spec = case.spec
    if not isinstance(spec.storage, Latent):
        return f"there is no latent in {type(spec.storage).__name__} storage"
    if isinstance(spec.weighting, Linear):
        return "linear weighting's feature map needs the keys of every head"
    if rotates_in_kernel(spec):
        return "each query meets keys rotated by frequencies of its own"
    if case.dropout:
        return "dropout is in the plain kernel alone"
    return None


def pass_over(case: Case) -> str | None:
    """Return why expanding the rows costs less, or None.

    Expanding multiplies each row by W_UK and W_UV once; absorbing pays for the latent's width, mostly more than a
    head's, at each pair, and keeps all scores in memory.
    """
    spec = case.spec
    assert isinstance(spec.storage, Latent)
    if case.q_len == case.kv_len:  # asked first: it is so at every length, where a graph is traced for all of them
        return "there is no past, whose rows absorbing would save from being expanded again"
    rank, nope, maps = spec.storage.kv_lora_rank, spec.storage.qk_nope_head_dim, spec.num_maps
    projected = rank * (maps * nope + spec.v_head_dim)
    wider = maps * (rank - nope) + rank - spec.v_head_dim
    if case.kv_len * projected < case.q_len * (case.kv_len * wider + projected):
        return "with this many queries, expanding the stored rows once takes fewer multiplications"
    if case.q_len > maps * nope + spec.v_head_dim:
        return "with this many queries, the scores take more memory than expanded rows"
    return None


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    """Compute scores against the stored rows, and mix these; see `Kernel.run`."""
    case = call.case
    if case.needs_grad or case.weights or case.compiled:
        return _with_weights(call)
    outputs = [_decoded(one) for one in (decoding.sequences(call) if case.device == "cpu" else [call])]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), None


def _absorbed(call: Call, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the scaled queries by map, and all of them as rows that meet the stored ones, ``[batch, 1, rows, width]``.

    All maps and heads are rows of one product: they meet the same stored row.
    """
    spec = call.case.spec
    assert isinstance(spec.storage, Latent)
    query = call.query.to(dtype) * spec.scale
    nope, rope = query.split([spec.storage.qk_nope_head_dim, spec.storage.qk_rope_head_dim], dim=-1)
    rows = torch.cat([nope @ call.params["w_uk"], rope], dim=-1)
    return grouped.by_group(query, spec), rows.flatten(1, 2)[:, None]


def _by_map(call: Call, products: Tensor) -> Tensor:
    """Lay ``[batch, 1, maps · heads · q_len, keys]`` out as scores, ``[batch, maps, kv_heads, group, q_len, keys]``."""
    spec = call.case.spec
    per_head: Tensor = products[:, 0].unflatten(1, (spec.num_maps * spec.num_heads, call.case.q_len))
    return grouped.by_group(per_head, spec)


def _values(call: Call, weights: Tensor, mixed: Tensor) -> Tensor:
    """Return the output from mixed rows ``[batch, 1, heads · q_len, kv_lora_rank]``."""
    per_head: Tensor = mixed[:, 0].unflatten(1, weights.shape[1:4]).flatten(1, 2)
    return stages.finish(call, weights, (per_head @ call.params["w_uv"].mT)[:, :, None])


def _decoded(call: Call) -> Tensor:
    """Compute without a backward pass: what no query sees at either end is not read, and nothing is widened whole."""
    case, spec = call.case, call.case.spec
    assert isinstance(spec.storage, Latent)
    rank, seen = spec.storage.kv_lora_rank, decoding.visible(call)
    near = decoding.over(call, seen.keys)
    query, rows = _absorbed(call, compute_dtype(case.dtype))

    def attend(stored: Tensor) -> Tensor:
        some = stored[:, :, seen.keys]
        weights = decoding.weigh(near, _by_map(call, decoding.scores(rows, some)), query, seen)
        return _values(near, weights, decoding.mixed(weights.flatten(1, 3)[:, None], some[..., :rank]))

    bad = functools.partial(_not_finite, call.key)
    return confined(attend, (call.key,), bad, lambda: allowed_pairs(call)).to(case.dtype)


def _with_weights(call: Call) -> tuple[Tensor, Tensor | None]:
    """Compute so that there is a backward pass, or weights to return."""
    case, spec = call.case, call.case.spec
    assert isinstance(spec.storage, Latent)
    stored, rank = call.key.to(compute_dtype(case.dtype)), spec.storage.kv_lora_rank
    query, rows = _absorbed(call, stored.dtype)
    allowed = allowed_pairs(call)
    weights: list[Tensor] = []

    def attend(stored: Tensor) -> Tensor:
        weights.append(stages.weigh(call, _by_map(call, rows @ stored.mT), query, stages.by_group(allowed, spec)))
        return _values(call, weights[-1], weights[-1].flatten(1, 3)[:, None] @ stored[..., :rank])

    output = confined(attend, (stored,), functools.partial(_not_finite, stored), lambda: allowed)
    return output.to(case.dtype), weights[0].flatten(1, 2) if case.weights else None


def _not_finite(stored: Tensor) -> Tensor:
    return ~torch.isfinite(stored).all(dim=-1, keepdim=True)


KERNEL = Kernel("absorbed", "MLA against the stored rows, never expanded", refuse, run, pass_over)
