"""Attention on tensors: the whole flow, from a spec and queries, keys and values to the output."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyhead.kernels import checks, select
from polyhead.kernels.common import Call, Case, rotates_in_kernel
from polyhead.kernels.select import Explanation
from polyhead.position import rotary
from polyhead.spec import AttentionSpec, Latent, Rotary


def attend(
    query: Float[Tensor, "batch query_maps q_len qk_head_dim"],
    key: Float[Tensor, "batch key_maps kv_len key_width"],
    value: Float[Tensor, "batch num_kv_heads kv_len v_head_dim"] | None,
    spec: AttentionSpec,
    *,
    params: Mapping[str, Tensor] | None = None,
    query_positions: Int[Tensor, "*query_batch q_len"] | None = None,
    key_positions: Int[Tensor, "*key_batch kv_len"] | None = None,
    key_mask: Bool[Tensor, "batch kv_len"] | None = None,
    segments: Int[Tensor, "batch len"] | None = None,
    dropout_p: float = 0.0,
    kernel: str = "auto",
    return_weights: bool = False,
) -> Any:
    """Compute attention as a spec says, forward and backward, with the kernel that the case allows.

    ::

        output_h = weighting(scale · q_h·k_g + bias, over the pairs that the pattern allows) · v_g

    A query that may see no key gets zeros. Values are not checked: a NaN reaches the rows that may see it and no
    other. Sums are made in at least float32, and the output has the query's dtype. Under autocast the three
    inputs are cast to its dtype first.

    Args:
        query: ``[batch, num_heads, q_len, qk_head_dim]`` before rotation; with differential weighting
            ``2·num_heads`` maps. With `Latent` each is ``[nope | rope]``.
        key: ``[batch, num_kv_heads, kv_len, head_dim]`` before rotation; with differential weighting
            ``2·num_kv_heads`` maps. With `Latent` the stored rows
            ``[batch, 1, kv_len, kv_lora_rank + qk_rope_head_dim]``.
        value: ``[batch, num_kv_heads, kv_len, v_head_dim]``; None with `Latent`.
        spec: The mechanism.
        params: The learned tensors named by ``spec.parameter_shapes()``.
        query_positions: Whole numbers ``[q_len]`` or ``[batch, q_len]``. None: the last query at the last key.
        key_positions: Whole numbers ``[kv_len]`` or ``[batch, kv_len]``. None: from 0.
        key_mask: Booleans ``[batch, kv_len]``, True may be attended. None: all may.
        segments: Whole numbers ``[batch, len]``; a pair meets only inside one segment. None: one segment.
        dropout_p: Probability of dropping a weight, for training.
        kernel: A kernel's name, or ``"auto"``; a named kernel runs or raises.
        return_weights: Whether to return the weights too. With linear weighting they are the equivalent ones,
            with differential weighting the difference, which may be negative.

    Returns:
        Output ``[batch, num_heads, q_len, v_head_dim]``; with weights the pair of it and
        ``[batch, num_heads, q_len, kv_len]``, in at least float32.

    Raises:
        ShapeError: If a tensor does not fit the spec or its neighbours, or a learned tensor is missing.
        UnsupportedError: If the kernel asked for by name does not take the case.
        UnknownNameError: If no kernel has that name.

    *Differs from* ``scaled_dot_product_attention``, whose ``is_causal`` aligns the first query with the first
    key; here the last query is aligned with the last key, so cached decoding needs no mask.
    """
    call = checks.checked_call(
        {"query": query, "key": key, "value": value},
        spec,
        params=params or {},
        query_positions=query_positions,
        key_positions=key_positions,
        key_mask=key_mask,
        segments=segments,
        dropout_p=dropout_p,
        return_weights=return_weights,
    )
    chosen = select.choose(call.case, kernel)
    with _full_precision(call.case.device):
        output, weights = chosen.run(_rotated(_hidden(call)))
    return (output, weights) if return_weights else output


def explain(
    spec: AttentionSpec,
    *,
    q_len: int,
    kv_len: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    needs_grad: bool = False,
    **asked: bool,
) -> Explanation:
    """Say which kernel `attend` would pick, and why not the others.

    Args:
        spec: The mechanism.
        q_len: Number of queries.
        kv_len: Number of keys.
        dtype: Dtype of the inputs.
        device: Where they are.
        needs_grad: Whether a gradient will be asked for.
        **asked: What else is asked, as in `polyhead.kernels.common.Case`: ``aligned`` (default True),
            ``key_mask``, ``segments``, ``dropout``, ``weights``.

    Returns:
        The explanation; ``str()`` of it is for reading.
    """
    kind = torch.device(device).type
    case = Case(spec=spec, q_len=q_len, kv_len=kv_len, dtype=dtype, device=kind, needs_grad=needs_grad, **asked)
    return select.explain(case)


def _hidden(call: Call) -> Call:
    """Blank masked keys and values, so that nothing of them can reach a row or a gradient."""
    if call.key_mask is None:
        return call
    hidden = ~call.key_mask[:, None, :, None]
    value = None if call.value is None else call.value.masked_fill(hidden, 0.0)
    return dataclasses.replace(call, key=call.key.masked_fill(hidden, 0.0), value=value)


def _rotated(call: Call) -> Call:
    """Rotate queries and keys, where that can be done before the kernel."""
    spec = call.case.spec
    if not isinstance(spec.position, Rotary) or rotates_in_kernel(spec):
        return call
    latent_width = spec.storage.kv_lora_rank if isinstance(spec.storage, Latent) else 0
    query = rotary.rotate(call.query, call.query_positions, spec, start=spec.rotary_offset)
    key = rotary.rotate(call.key, call.key_positions, spec, start=latent_width)
    return dataclasses.replace(call, query=query, key=key)


def _full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Turn autocast off: its dtype has been given to the inputs, and sums are not to be made in it."""
    if not torch.amp.is_autocast_available(device):  # the meta device has none
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
