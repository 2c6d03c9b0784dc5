"""MLA in the latent space: the up-projections go into query and output, so the stored rows are never expanded.

``q·(W_UK c) = (W_UKᵀ q)·c`` and ``Σ w_j W_UV c_j = W_UV Σ w_j c_j``: each stored row is read once for all heads.

*Source*: arXiv 2405.04434, section 2.1.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyhead.kernels import stages
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
    case, spec = call.case, call.case.spec
    assert isinstance(spec.storage, Latent)
    rank = spec.storage.kv_lora_rank
    stored = call.key.to(compute_dtype(case.dtype))
    query = call.query.to(stored.dtype) * spec.scale
    nope, rope = query.split([spec.storage.qk_nope_head_dim, spec.storage.qk_rope_head_dim], dim=-1)
    absorbed = torch.cat([nope @ call.params["w_uk"], rope], dim=-1)
    by_map = grouped.by_group(query, spec)
    allowed = allowed_pairs(call)
    pairs = stages.by_group(allowed, spec)
    weights: list[Tensor] = []

    def attend(stored: Tensor) -> Tensor:
        # all maps and heads are rows of one product: they meet the same stored row
        products = (absorbed.flatten(1, 2)[:, None] @ stored.mT).view(*absorbed.shape[:3], stored.shape[2])
        weights.append(stages.weigh(call, grouped.by_group(products, spec), by_map, pairs))
        mixed = weights[-1].flatten(1, 3)[:, None] @ stored[..., :rank]
        per_head = mixed.view(*weights[-1].shape[:4], rank).flatten(1, 2)
        values = per_head @ call.params["w_uv"].mT
        return stages.finish(call, weights[-1], values[:, :, None])

    output = confined(attend, (stored,), lambda: ~torch.isfinite(stored).all(dim=-1, keepdim=True), lambda: allowed)
    return output.to(case.dtype), weights[0].flatten(1, 2) if case.weights else None


KERNEL = Kernel("absorbed", "MLA against the stored rows, never expanded", refuse, run, pass_over)
