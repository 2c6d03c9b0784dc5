"""PyTorch's scaled dot-product attention, wherever it computes exactly the function asked for."""

from __future__ import annotations

import functools

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from polyhead.kernels import flash, flex_operator
from polyhead.kernels.common import (
    Call,
    Case,
    Kernel,
    allowed_pairs,
    confined,
    keys_and_values,
    not_finite,
    rotates_in_kernel,
)
from polyhead.spec import Alibi, Causal, Full, RelativeBias, Softmax

MOST_MASKED = 2**16
"""Pairs from which a mask of all of them is not worth its memory."""


def refuse(case: Case) -> str | None:
    """Return why SDPA does not compute this case, or None."""
    spec = case.spec
    if not isinstance(spec.weighting, Softmax):
        return f"SDPA knows softmax weights alone, not {type(spec.weighting).__name__}"
    if spec.weighting.softcap is not None:
        return "SDPA has no softcap"
    if spec.weighting.sink:
        return "SDPA has no sink"
    if isinstance(spec.position, RelativeBias | Alibi):
        return "SDPA takes a bias only as a whole q_len × kv_len matrix for each head"
    if rotates_in_kernel(spec):
        return "each query meets keys rotated by frequencies of its own"
    if case.dropout:
        return "dropout is in the plain kernel alone: SDPA on the CPU would build the whole matrix for it"
    if case.weights:
        return "SDPA does not return weights"
    if 0 in (case.q_len, case.kv_len):
        return "there is no query or no key"
    return None


def pass_over(case: Case) -> str | None:
    """Return why another kernel is quicker or smaller, or None."""
    if case.compiled or case.q_len * case.kv_len < MOST_MASKED:
        return None
    tiles = case.device == "cpu" and not flash.missing()
    blocks = case.device == "cuda" and not flex_operator.missing()
    if not (tiles or blocks):
        return None  # what else takes it goes block by block, in Python
    if not _sees_everything(case) and not _is_causal(case):
        return f"it would be given a mask of all {case.q_len:,} × {case.kv_len:,} pairs"
    if tiles and case.spec.qk_head_dim != case.spec.v_head_dim:
        return "PyTorch's quick kernels want keys and values of one width"
    return None


def run(call: Call) -> tuple[Tensor, None]:
    """Compute one call of SDPA; see `Kernel.run`."""
    case, spec = call.case, call.case.spec
    key, value = keys_and_values(call)
    if _sees_everything(case):
        return _sdpa(call, key, value), None
    bad = functools.partial(not_finite, key, value, spec)
    if _is_causal(case):
        causal = functools.partial(_sdpa, call, is_causal=True)
        return confined(causal, (key, value), bad, lambda: allowed_pairs(call)), None
    allowed = allowed_pairs(call)
    blind = ~allowed.any(dim=-1, keepdim=True)
    mask = allowed | blind  # what SDPA gives a row without keys depends on its backend: let it see all, then zero it

    def masked(key: Tensor, value: Tensor) -> Tensor:
        return _sdpa(call, key, value, mask=mask).masked_fill(blind, 0.0)

    return confined(masked, (key, value), bad, lambda: allowed), None


def _sdpa(call: Call, key: Tensor, value: Tensor, *, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    spec = call.case.spec
    return scaled_dot_product_attention(
        call.query, key, value, mask, is_causal=is_causal, scale=spec.scale, enable_gqa=spec.group_size > 1
    )


def _is_causal(case: Case) -> bool:
    """Whether SDPA's ``is_causal``, which counts both sides from 0, is the pattern."""
    is_square = case.aligned and case.q_len == case.kv_len
    return case.spec.pattern == Causal() and is_square and not (case.key_mask or case.segments)


def _sees_everything(case: Case) -> bool:
    if case.key_mask or case.segments:
        return False
    single_last = case.aligned and case.q_len == 1 and case.spec.pattern == Causal()
    return single_last or case.spec.pattern == Full()


KERNEL = Kernel("dense", "PyTorch's scaled_dot_product_attention", refuse, run, pass_over)
