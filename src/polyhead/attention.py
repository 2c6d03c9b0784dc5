"""Attention on tensors: the whole flow, from a spec and queries, keys and values to the output."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyhead.errors import ShapeError
from polyhead.kernels import select
from polyhead.kernels.common import Call, Case, compute_dtype, rotates_in_kernel
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
    tensors = {"query": query, "key": key} | ({} if value is None else {"value": value})
    _check_tensors(tensors, spec, value is None)
    device_type = query.device.type
    has_autocast = torch.amp.is_autocast_available(device_type)  # the meta device has none
    if has_autocast and torch.is_autocast_enabled(device_type):
        to = torch.get_autocast_dtype(device_type)
        tensors = {name: x if x.dtype == torch.float64 else x.to(to) for name, x in tensors.items()}
    _check_together(tensors)
    learned = _learned(spec, params or {}, tensors["query"])
    case = Case(
        spec=spec,
        q_len=query.shape[2],
        kv_len=key.shape[2],
        dtype=tensors["query"].dtype,
        device=device_type,
        needs_grad=torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors.values(), *learned.values())),
        aligned=query_positions is None and key_positions is None,
        key_mask=key_mask is not None,
        segments=segments is not None,
        dropout=_check_dropout(dropout_p) > 0.0,
        weights=return_weights,
    )
    chosen = select.choose(case, kernel)
    with torch.autocast(device_type, enabled=False) if has_autocast else contextlib.nullcontext():
        call = _prepared(
            Call(
                case=case,
                query=tensors["query"],
                key=tensors["key"],
                value=tensors.get("value"),
                params=learned,
                query_positions=_positions("query_positions", query_positions, case.kv_len - case.q_len, query),
                key_positions=_positions("key_positions", key_positions, 0, key),
                key_mask=_check_mask(key_mask, key),
                segments=_check_segments(segments, case, query),
                dropout_p=dropout_p,
            )
        )
        output, weights = chosen.run(call)
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


def _prepared(call: Call) -> Call:
    """Blank masked keys, so that nothing of them can reach a row, and rotate what can be rotated before the kernel."""
    spec, query, key, value = call.case.spec, call.query, call.key, call.value
    if call.key_mask is not None:
        hidden = ~call.key_mask[:, None, :, None]
        key = key.masked_fill(hidden, 0.0)
        value = None if value is None else value.masked_fill(hidden, 0.0)
    if isinstance(spec.position, Rotary) and not rotates_in_kernel(spec):
        query = rotary.rotate(query, call.query_positions, spec, start=spec.rotary_offset)
        latent_start = spec.storage.kv_lora_rank if isinstance(spec.storage, Latent) else 0
        key = rotary.rotate(key, call.key_positions, spec, start=latent_start)
    return dataclasses.replace(call, query=query, key=key, value=value)


def _check_tensors(tensors: Mapping[str, Tensor], spec: AttentionSpec, no_value: bool) -> None:
    for name, expected in spec.input_shapes().items():
        if expected is None:
            if not no_value:
                raise ShapeError("value must be None with Latent storage: values come from the latent in key")
            continue
        tensor = tensors.get(name)
        if tensor is None:
            raise ShapeError(f"{name} is None; {type(spec.storage).__name__} storage needs one")
        if not isinstance(tensor, Tensor):
            raise ShapeError(f"{name} is a {type(tensor).__name__}; give a torch.Tensor")
        if tensor.dim() != 4:
            raise ShapeError(f"{name} has shape {list(tensor.shape)}; give [batch, heads, len, width]")
        heads, width = expected
        if (tensor.shape[1], tensor.shape[3]) != expected:
            raise ShapeError(
                f"{name} has {tensor.shape[1]} heads of width {tensor.shape[3]}; give {heads} of width {width}"
            )
        if not tensor.is_floating_point():
            raise ShapeError(f"{name} has dtype {tensor.dtype}; give a floating dtype")


def _check_together(tensors: Mapping[str, Tensor]) -> None:
    query = tensors["query"]
    for name, tensor in tensors.items():
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ShapeError(
                f"{name} is {tensor.dtype} on {tensor.device} and query {query.dtype} on {query.device}; make alike"
            )
        if tensor.shape[0] != query.shape[0]:
            raise ShapeError(f"{name} has batch {tensor.shape[0]} and query {query.shape[0]}; make them equal")
    if "value" in tensors and tensors["value"].shape[2] != tensors["key"].shape[2]:
        raise ShapeError(
            f"value has {tensors['value'].shape[2]} tokens and key {tensors['key'].shape[2]}; make them equal"
        )


def _check_dropout(dropout_p: float) -> float:
    if not 0.0 <= dropout_p < 1.0:
        raise ShapeError(f"dropout_p={dropout_p} is not a probability below 1; give 0 ≤ dropout_p < 1")
    return dropout_p


def _learned(spec: AttentionSpec, params: Mapping[str, Tensor], query: Tensor) -> dict[str, Tensor]:
    shapes = spec.parameter_shapes()
    if unknown := sorted(set(params) - set(shapes)):
        raise ShapeError(f"params has {unknown[0]!r}, which this spec does not learn; it learns {list(shapes)}")
    for name, shape in shapes.items():
        if name not in params:
            raise ShapeError(f"params lacks {name!r} of shape {list(shape)}, which this spec learns")
        if not isinstance(params[name], Tensor):
            raise ShapeError(f"params[{name!r}] is a {type(params[name]).__name__}; give a torch.Tensor")
        if tuple(params[name].shape) != shape:
            raise ShapeError(f"params[{name!r}] has shape {list(params[name].shape)}; the spec needs {list(shape)}")
        if params[name].device != query.device:
            raise ShapeError(f"params[{name!r}] is on {params[name].device} and query on {query.device}; move one")
    return {name: params[name].to(compute_dtype(query.dtype)) for name in shapes}


def _positions(name: str, given: Tensor | None, first: int, tokens: Tensor) -> Tensor:
    """Return positions as ``[batch or 1, len]``; without any, consecutive numbers from ``first``."""
    batch, length = tokens.shape[0], tokens.shape[2]
    if given is None:
        return torch.arange(first, first + length, device=tokens.device)[None]
    if given.is_floating_point() or given.dtype == torch.bool:
        raise ShapeError(f"{name} has dtype {given.dtype}; positions are whole numbers")
    if tuple(given.shape) not in {(length,), (batch, length)}:
        raise ShapeError(f"{name} has shape {list(given.shape)}; give [{length}] or [{batch}, {length}]")
    given = given.to(tokens.device, torch.int64)
    return given if given.dim() == 2 else given[None]


def _check_mask(key_mask: Tensor | None, key: Tensor) -> Tensor | None:
    if key_mask is None:
        return None
    if key_mask.dtype != torch.bool:
        raise ShapeError(f"key_mask has dtype {key_mask.dtype}; give booleans, True where a key may be attended")
    if tuple(key_mask.shape) != (key.shape[0], key.shape[2]):
        raise ShapeError(f"key_mask has shape {list(key_mask.shape)}; give [{key.shape[0]}, {key.shape[2]}]")
    return key_mask.to(key.device)


def _check_segments(segments: Tensor | None, case: Case, query: Tensor) -> Tensor | None:
    if segments is None:
        return None
    if case.q_len != case.kv_len:
        raise ShapeError(f"segments need as many queries as keys, got {case.q_len} and {case.kv_len}")
    if segments.is_floating_point() or tuple(segments.shape) != (query.shape[0], case.q_len):
        wanted = f"whole numbers [{query.shape[0]}, {case.q_len}]"
        raise ShapeError(f"segments are {segments.dtype} {list(segments.shape)}; give {wanted}")
    return segments.to(query.device)
