"""What tensors must be to fit a spec and each other: every refusal that a call of `attend` can meet."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyhead.errors import ShapeError, UnsupportedError
from polyhead.kernels.common import Call, Case, compute_dtype
from polyhead.position.counted import counted
from polyhead.spec import AttentionSpec


def checked_call(
    inputs: Mapping[str, Tensor | None],
    spec: AttentionSpec,
    *,
    params: Mapping[str, Tensor],
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    key_mask: Tensor | None = None,
    segments: Tensor | None = None,
    lengths: Sequence[int] | Tensor | None = None,
    dropout_p: float = 0.0,
    return_weights: bool = False,
) -> Call:
    """Check what `polyhead.attend` was given and return it as a call, positions filled in and autocast applied.

    Args:
        inputs: ``query``, ``key`` and ``value``.
        spec: The mechanism.
        params: The learned tensors.
        query_positions: As in `polyhead.attend`.
        key_positions: As in `polyhead.attend`.
        key_mask: As in `polyhead.attend`.
        segments: As in `polyhead.attend`.
        lengths: As in `polyhead.attend`.
        dropout_p: Probability of dropping a weight.
        return_weights: Whether the weights are asked for.

    Returns:
        The call, not rotated yet.

    Raises:
        ShapeError: If something does not fit; the message says what, and what would.
    """
    _check_inputs(inputs, spec)
    tensors = _as_autocast({name: x for name, x in inputs.items() if x is not None})
    _check_together(tensors)
    query, key = tensors["query"], tensors["key"]
    learned = _learned(spec, params, query)
    q_len, kv_len = query.shape[2], key.shape[2]
    case = Case(
        spec=spec,
        q_len=q_len,
        kv_len=kv_len,
        dtype=query.dtype,
        device=query.device.type,
        needs_grad=torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors.values(), *learned.values())),
        aligned=query_positions is None and key_positions is None,
        key_mask=key_mask is not None,
        segments=segments is not None,
        dropout=check_dropout(dropout_p) > 0.0,
        weights=return_weights,
        compiled=torch.compiler.is_compiling(),
    )
    places = _positions("key_positions", key_positions, 0, key)
    same = q_len == kv_len and query_positions is key_positions  # as in self-attention; then they are rotated alike
    return Call(
        case=case,
        query=query,
        key=key,
        value=tensors.get("value"),
        params=learned,
        query_positions=places if same else _positions("query_positions", query_positions, kv_len - q_len, query),
        key_positions=places,
        counted_from=0 if same and key_positions is None else None,
        key_mask=None if key_mask is None else check_mask(key_mask, key.shape[0], key.shape[2]).to(key.device),
        segments=_check_segments(segments, case, query),
        dropout_p=dropout_p,
        lengths=None if lengths is None else check_lengths(lengths, query.shape[0], q_len),
    )


def check_lengths(lengths: Sequence[int] | Tensor, batch: int, tokens: int) -> tuple[int, ...]:
    """Check how many of a call's tokens each sequence has.

    Args:
        lengths: One whole number for each sequence.
        batch: Number of sequences.
        tokens: Number of tokens, padding included.

    Returns:
        The numbers.

    Raises:
        ShapeError: If they are not one for each sequence, from 0 to ``tokens``.
    """
    given = lengths.tolist() if hasattr(lengths, "tolist") else lengths
    if not isinstance(given, Sequence) or len(given) != batch:
        raise ShapeError(f"lengths={given} is not one number for each of {batch} sequences")
    for length in given:
        if isinstance(length, bool) or not hasattr(length, "__index__") or not 0 <= length <= tokens:
            raise ShapeError(f"lengths={given}: {length!r} is not a whole number from 0 to {tokens}, the tokens given")
    return tuple(map(operator.index, given))


def check_tokens(name: str, x: Tensor, width: int, like: Tensor) -> None:
    """Raise ShapeError unless ``x`` is ``[batch, tokens, width]``, of a parameter's dtype and where that is."""
    if not isinstance(x, Tensor):
        raise ShapeError(f"{name} is a {type(x).__name__}; give a torch.Tensor")
    if x.dim() != 3 or x.shape[-1] != width:
        raise ShapeError(f"{name} has shape {list(x.shape)}; give [batch, tokens, {width}]")
    if not x.is_floating_point():
        raise ShapeError(f"{name} has dtype {x.dtype}; give {like.dtype}, the layer's")
    if x.device != like.device:
        raise ShapeError(f"{name} is on {x.device} and the layer on {like.device}; move one")
    if x.dtype != like.dtype and autocast_dtype(x.device.type, x.dtype) != autocast_dtype(x.device.type, like.dtype):
        raise ShapeError(f"{name} has dtype {x.dtype}; give {like.dtype}, the layer's")


def check_padding(spec: AttentionSpec, real: Tensor) -> None:
    """Raise UnsupportedError if a pattern would count padding, ``real [batch, tokens]`` being what is none."""
    if spec.pattern.depends_on_kv_len and not real.all():
        raise UnsupportedError(
            f"lengths: pattern={spec.pattern!r} depends on how long a sequence is, and counts the padding of a batch; "
            "call it for sequences of one length at a time"
        )


def real_tokens(x: Tensor, lengths: Sequence[int] | Tensor) -> Tensor:
    """Return which tokens of ``x [batch, tokens, ...]`` are no padding at the right, ``[batch, tokens]``."""
    given = torch.tensor(check_lengths(lengths, x.shape[0], x.shape[1]), device=x.device)
    return torch.arange(x.shape[1], device=x.device) < given[:, None]


def _check_inputs(inputs: Mapping[str, Any], spec: AttentionSpec) -> None:
    for name, expected in spec.input_shapes().items():
        tensor = inputs[name]
        if expected is None:
            if tensor is not None:
                raise ShapeError(f"{name} must be None with Latent storage: values come from the latent in key")
            continue
        if not isinstance(tensor, Tensor):
            raise ShapeError(f"{name} is a {type(tensor).__name__}; give a torch.Tensor")
        if tensor.dim() != 4:
            raise ShapeError(f"{name} has shape {list(tensor.shape)}; give [batch, heads, len, width]")
        if (tensor.shape[1], tensor.shape[3]) != expected:
            found = f"{tensor.shape[1]} heads of width {tensor.shape[3]}"
            raise ShapeError(f"{name} has {found}; the spec needs {expected[0]} of width {expected[1]}")
        if not tensor.is_floating_point():
            raise ShapeError(f"{name} has dtype {tensor.dtype}; give a floating dtype")


def autocast_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """Return what autocast makes of a dtype: its own if it is on, but for float64, which it leaves alone."""
    if not _has_autocast(device):
        return dtype
    return dtype if dtype == torch.float64 else torch.get_autocast_dtype(device)


def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # meta has none


def _as_autocast(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not _has_autocast(tensors["query"].device.type):  # all are on one device, which is checked next
        return tensors
    return {name: x.to(autocast_dtype(x.device.type, x.dtype)) for name, x in tensors.items()}


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


def check_dropout(dropout_p: float) -> float:
    """Return a probability below 1, or raise ShapeError."""
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
        return counted(first, length, tokens.device)
    if given.is_floating_point() or given.dtype == torch.bool:
        raise ShapeError(f"{name} has dtype {given.dtype}; positions are whole numbers")
    if tuple(given.shape) not in {(length,), (batch, length)}:
        raise ShapeError(f"{name} has shape {list(given.shape)}; give [{length}] or [{batch}, {length}]")
    given = given.to(tokens.device, torch.int64)
    return given if given.dim() == 2 else given[None]


def check_mask(key_mask: Tensor, batch: int, tokens: int) -> Tensor:
    """Return a mask that is booleans ``[batch, tokens]``, or raise ShapeError."""
    if key_mask.dtype != torch.bool:
        raise ShapeError(f"key_mask has dtype {key_mask.dtype}; give booleans, True where a key may be attended")
    if tuple(key_mask.shape) != (batch, tokens):
        raise ShapeError(f"key_mask has shape {list(key_mask.shape)}; give [{batch}, {tokens}]")
    return key_mask


def _check_segments(segments: Tensor | None, case: Case, query: Tensor) -> Tensor | None:
    if segments is None:
        return None
    if case.q_len != case.kv_len:
        raise ShapeError(f"segments need as many queries as keys, got {case.q_len} and {case.kv_len}")
    if segments.is_floating_point() or tuple(segments.shape) != (query.shape[0], case.q_len):
        wanted = f"whole numbers [{query.shape[0]}, {case.q_len}]"
        raise ShapeError(f"segments are {segments.dtype} {list(segments.shape)}; give {wanted}")
    return segments.to(query.device)
