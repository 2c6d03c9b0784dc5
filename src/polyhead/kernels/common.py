"""What every kernel is asked, and the few things that several of them do."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyhead.position import rotary
from polyhead.spec import AttentionSpec, Differential, Latent, Linear, Rotary
from polyhead.spec.position import ShawBias
from polyhead.storage import grouped, latent

EVERY = slice(None)


class Case(NamedTuple):
    """What is asked, as far as it is known before any tensor's values: all that choosing a kernel may look at.

    Attributes:
        spec: The mechanism.
        q_len: Number of queries.
        kv_len: Number of keys.
        dtype: Dtype of query, key and value.
        device: Device type, such as ``"cpu"``.
        needs_grad: Whether a gradient will be asked for.
        aligned: Whether positions are implied: keys from 0, the last query at the last key.
        ragged: Whether that holds of each sequence's own keys, see `Call.kv_lengths`; it is not aligned then.
        key_mask: Whether some keys may be masked.
        segments: Whether sequences are packed.
        dropout: Whether weights are dropped at random.
        weights: Whether the weights are to be returned.
        state: Whether the past is there as sums alone, of a cache for linear weighting.
        compiled: Whether ``torch.compile`` or ``torch.export`` is tracing the call.
    """

    spec: AttentionSpec
    q_len: int
    kv_len: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    needs_grad: bool = False
    aligned: bool = True
    ragged: bool = False
    key_mask: bool = False
    segments: bool = False
    dropout: bool = False
    weights: bool = False
    state: bool = False
    compiled: bool = False


class Call(NamedTuple):
    """A case with its tensors.

    Attributes:
        case: The case.
        query: ``[batch, num_heads · maps, q_len, width]``; `prepared`: rotated unless ``rotates_in_kernel``.
        key: ``[batch, num_kv_heads · maps, kv_len, width]``, likewise; with `Latent` the stored rows.
        value: ``[batch, num_kv_heads, kv_len, v_head_dim]``; None with `Latent`.
        params: The learned tensors, in the compute dtype.
        query_positions: ``[batch or 1, q_len]``.
        key_positions: ``[batch or 1, kv_len]``.
        counted_from: Where new tokens begin, if queries and keys both count on from there in every sequence. None:
            the positions alone tell.
        key_mask: ``[batch, kv_len]``, True may be attended, or None. Masked keys and values are already zero.
        segments: ``[batch, len]`` or None.
        dropout_p: Probability of dropping a weight.
        lengths: How many of the new tokens each sequence has, which a cache reads. None: all.
        kv_lengths: How many of the keys each sequence has, from position 0 on, where that differs. None: all.
        state: Sums over keys that came before, ``Σ φ(k) vᵀ`` (its keys rotated) and ``Σ φ(k)``:
            ``[batch, num_kv_heads, width, v_head_dim]`` and ``[batch, num_kv_heads, width]``. None: there are none.
    """

    case: Case
    query: Tensor
    key: Tensor
    value: Tensor | None
    params: Mapping[str, Tensor]
    query_positions: Tensor
    key_positions: Tensor
    counted_from: int | None = None
    key_mask: Tensor | None = None
    segments: Tensor | None = None
    dropout_p: float = 0.0
    lengths: tuple[int, ...] | None = None
    kv_lengths: tuple[int, ...] | None = None
    state: tuple[Tensor, Tensor] | None = None


class Kernel(NamedTuple):
    """A way to compute.

    Attributes:
        name: What to type to ask for it.
        summary: How it computes, in a few words.
        refuse: Returns why a case is not this kernel's, or None.
        run: Computes output ``[batch, num_heads, q_len, v_head_dim]`` in the query's dtype, and the weights
            ``[batch, num_heads, q_len, kv_len]`` in the compute dtype or None.
        pass_over: Returns why ``auto`` leaves a case that this kernel could run to a later one, or None.
    """

    name: str
    summary: str
    refuse: Callable[[Case], str | None]
    run: Callable[[Call], tuple[Tensor, Tensor | None]]
    pass_over: Callable[[Case], str | None] = lambda case: None


def rotates_in_kernel(spec: AttentionSpec) -> bool:
    """Whether RoPE cannot be applied before the kernel: linear's features come first, or each query turns all keys."""
    return isinstance(spec.position, Rotary) and (isinstance(spec.weighting, Linear) or spec.position.per_query)


def beyond_flash(spec: AttentionSpec) -> str | None:
    """Return why attention that forgets each score as it goes does not compute a spec, or None."""
    if isinstance(spec.weighting, Differential) and spec.weighting.form == "clipped":
        return "clipping needs the weights of both maps at once"
    if isinstance(spec.position, ShawBias):
        return "Shaw's bias goes by the query, not by the distance alone"
    if rotates_in_kernel(spec):
        return "each query meets keys rotated by frequencies of its own"
    return None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are made in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Turn autocast off where it is on: its dtype has been given to the inputs, and sums are not to be made in it."""
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):  # meta has none
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def prepared(call: Call) -> Call:
    """Blank masked keys and values, and rotate queries and keys where that can be done before the kernel.

    Nothing of a masked token can reach a row or a gradient then. A cache holds keys and values in this form.
    """
    spec, key, value = call.case.spec, call.key, call.value
    if call.key_mask is not None:
        masked = ~call.key_mask[:, None, :, None]
        key = key.masked_fill(masked, 0.0)
        value = None if value is None else value.masked_fill(masked, 0.0)
    query = call.query
    if isinstance(spec.position, Rotary) and not rotates_in_kernel(spec):
        latent_width = spec.storage.kv_lora_rank if isinstance(spec.storage, Latent) else 0
        if call.counted_from is None:
            waves = rotary.waves(call.query_positions, spec, query.dtype)
        else:
            waves = rotary.counted_waves(call.counted_from, call.case.q_len, spec, query.dtype, query.device)
        query = rotary.turn(query, waves, spec, start=spec.rotary_offset)
        if call.key_positions is not call.query_positions:
            waves = rotary.waves(call.key_positions, spec, key.dtype)
        key = rotary.turn(key, waves, spec, start=latent_width)
    return call._replace(query=query, key=key, value=value)


def keys_and_values(call: Call) -> tuple[Tensor, Tensor]:
    """Return the keys and values of every key/value head, expanded if a latent is stored."""
    if not isinstance(call.case.spec.storage, Latent):
        assert call.value is not None
        return call.key, call.value
    params = {name: call.params[name].to(call.key.dtype) for name in ("w_uk", "w_uv")}
    if not (call.case.needs_grad and _is_spoiled(call.key)):
        return latent.expand(call.key, params, call.case.spec)
    bad = ~torch.isfinite(call.key).all(dim=-1, keepdim=True)  # the gradient of W_UK sums over all rows: 0·NaN is NaN
    key, value = latent.expand(call.key.masked_fill(bad, 0.0), params, call.case.spec)
    return key.masked_fill(bad, torch.nan), value.masked_fill(bad, torch.nan)


def allowed_pairs(call: Call, rows: slice = EVERY, keys: slice | Tensor = EVERY, head: int | None = None) -> Tensor:
    """Return which pairs may meet.

    Args:
        call: What is asked.
        rows: Which of the queries.
        keys: Which of the keys.
        head: Which head. None: all.

    Returns:
        ``[batch or 1, num_heads or 1, rows, keys]``, True may attend.
    """
    spec, kv_len = call.case.spec, call.case.kv_len
    heads = range(spec.num_heads if spec.pattern.per_head else 1) if head is None else [head]
    positions = (call.query_positions[:, rows], call.key_positions[:, keys])
    per_head = [spec.pattern.allowed(*positions, kv_len=kv_len, head=head) for head in heads]
    allowed = torch.stack(per_head, dim=1)
    if call.key_mask is not None:
        allowed = allowed & call.key_mask[:, None, None, keys]
    if call.segments is not None:
        allowed = allowed & (call.segments[:, None, rows, None] == call.segments[:, None, None, keys])
    return allowed


def confined(
    run: Callable[..., Tensor],
    tensors: tuple[Tensor, ...],
    bad: Callable[[], Tensor],
    allowed: Callable[[], Tensor],
) -> Tensor:
    """Run attention, and keep what is not finite from rows that may not see it.

    A pair that may not meet has weight 0, but 0·NaN is NaN, so a matrix product spreads one bad value over every
    row. An output that is finite needs nothing more; the rare other one is computed again from finite
    stand-ins, and gets NaN where something not finite may be seen.

    Args:
        run: Computes the output ``[batch, num_heads, q_len, v_head_dim]`` from the tensors.
        tensors: Keys and values, or the rows that both come from.
        bad: Returns where a value, or the key that brings it, is not finite:
            ``[batch, num_heads or 1, kv_len, v_head_dim or 1]``; called only where it is needed.
        allowed: Returns ``[batch or 1, num_heads or 1, q_len, kv_len]``; likewise.

    Returns:
        The output, clean where it must be.
    """
    return kept_apart(run, tensors, lambda: allowed().to(tensors[0].dtype) @ bad().to(tensors[0].dtype) > 0)


def kept_apart(run: Callable[..., Tensor], tensors: tuple[Tensor, ...], spoiled: Callable[[], Tensor]) -> Tensor:
    """Do as `confined`, for a kernel that knows by itself what of the output sees something that is not finite.

    Args:
        run: Computes the output from the tensors.
        tensors: Keys and values, or the rows that both come from.
        spoiled: Returns where the output becomes NaN, broadcastable to it; called only where it is needed.

    Returns:
        The output, clean where it must be.
    """
    output = run(*tensors)
    if not _is_spoiled(output):
        return output
    output = run(*(x.masked_fill(~torch.isfinite(x), 0.0) for x in tensors))
    return output.masked_fill(spoiled(), torch.nan)


def _is_spoiled(x: Tensor) -> bool:
    """Whether something in a tensor is not finite, as far as its numbers are known by now."""
    if x.is_meta or torch.compiler.is_compiling():
        return False
    # in float16 a sum of many finite numbers would be infinite
    return not math.isfinite(x.detach().sum(dtype=compute_dtype(x.dtype)).item())


def not_finite(key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
    """Return where a value, or its key, is not finite: ``[batch, num_heads, kv_len, v_head_dim]``."""
    bad = ~torch.isfinite(value)
    if isinstance(spec.weighting, Differential) and spec.weighting.form != "clipped":
        bad = bad.any(dim=-1, keepdim=True).expand_as(bad)  # rows are normed, which mixes their numbers
    bad_key = ~torch.isfinite(key).all(dim=-1, keepdim=True)
    return (bad | grouped.keys_by_map(bad_key, spec).any(dim=1)).repeat_interleave(spec.group_size, dim=1)
