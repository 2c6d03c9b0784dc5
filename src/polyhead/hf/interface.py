"""The attention function that ``attn_implementation="polyhead"`` names: what a module asks, as one call of `attend`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polyhead.attention import attend
from polyhead.errors import UnsupportedError, require_extra
from polyhead.hf.masks import Allowed, Mask
from polyhead.spec import AttentionSpec, Band, Causal, Full, Grouped, Softmax

_OTHERS = "use attn_implementation='eager' or 'sdpa'"


def attention_function(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    output_attentions: bool | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as a module of transformers asks; what transformers calls as its attention function.

    Args:
        module: The attention module.
        query: ``[batch, num_heads, q_len, head_dim]``, rotated.
        key: ``[batch, num_kv_heads, kv_len, head_dim]``, rotated.
        value: ``[batch, num_kv_heads, kv_len, v_head_dim]``.
        attention_mask: What `polyhead.hf.masks.lazy_mask` made. None: no mask but the one that causality asks for.
        dropout: Probability of dropping a weight, if the module is training.
        scaling: Factor on q·k. None: ``1/√head_dim``.
        is_causal: Without a mask, whether a query sees no later key. None: as the module says, and True if it does
            not say.
        sliding_window: The window that the module has by its config; the mask has it already.
        softcap: Bound on the scores.
        s_aux: Logits of the sinks, ``[num_heads]``.
        output_attentions: Whether to return the weights. They are returned too where transformers collects them
            without telling the module.
        **others: What a model passes to all functions alike.

    Returns:
        ``[batch, q_len, num_heads, v_head_dim]``, and the weights ``[batch, num_heads, q_len, kv_len]`` or None.

    Raises:
        UnsupportedError: If the mask has elements, if it contradicts the module's window, or if something is asked that
            no spec says, such as a bias for each pair.
    """
    _refuse_unread(module, others)
    allowed = _allowed(module, query, key, attention_mask, is_causal)
    _check_window(module, allowed, sliding_window)
    spec = AttentionSpec(
        storage=Grouped(
            num_heads=query.shape[1], num_kv_heads=key.shape[1], head_dim=query.shape[3], v_head_dim=value.shape[3]
        ),
        pattern=allowed.binding,
        weighting=Softmax(scale=scaling, softcap=softcap, sink=s_aux is not None),
    )
    seen, implied = allowed.seen, allowed.aligned or spec.pattern == Full()
    wants_weights = bool(output_attentions) or _weights_are_collected()
    result = attend(
        query,
        key[:, :, :seen],
        value[:, :, :seen],
        spec,
        params={} if s_aux is None else {"sinks": s_aux},
        query_positions=None if implied else allowed.query_positions,
        key_positions=None if implied else allowed.key_positions[..., :seen],
        key_mask=_for_batch(allowed.key_mask, query, seen),
        segments=_for_batch(allowed.segments, query, seen),
        dropout_p=dropout if module.training else 0.0,
        return_weights=wants_weights,
    )
    output, weights = result if wants_weights else (result, None)
    if weights is not None:
        weights = functional.pad(weights, (0, key.shape[2] - seen)).to(query.dtype)
    return output.transpose(1, 2).contiguous(), weights


_SAY_NOTHING = frozenset(
    {
        *("position_ids", "cache_position", "position_embeddings"),  # queries and keys are rotated already
        *("token_type_ids", "mm_token_type_ids"),  # what they say of the mask, the mask says
        *("use_cache", "past_key_values", "layer_idx", "deterministic"),
        *("output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep", "num_items_in_batch"),
    }
)
"""What models hand on to all their functions alike, and what changes nothing in attention."""

_PACKED = "sequences packed beside the mask; leave it out, and give position_ids without an attention_mask"
_SELECTED = "keys that scores have picked, which no pattern says"
_WHY_NOT = {
    "position_bias": "a bias for each pair, which no spec says",
    **dict.fromkeys(("indices", "block_indices"), _SELECTED),
    **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"), _PACKED),
}
"""Why some arguments are not read."""


def _refuse_unread(module: Any, others: dict[str, Any]) -> None:
    for name, value in others.items():
        if value is None or name in _SAY_NOTHING:
            continue
        why = _WHY_NOT.get(name, "which is not read")
        raise UnsupportedError(f"{type(module).__name__} passes {name} to its attention function: {why}; {_OTHERS}")


def _allowed(module: Any, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool | None) -> Allowed:
    """Return which pairs may meet, from the mask or without one."""
    q_len, kv_len = query.shape[2], key.shape[2]
    if mask is None:
        return _unmasked(module, q_len, kv_len, query.device, is_causal)
    if not isinstance(mask, Mask):
        raise UnsupportedError(
            f"{type(module).__name__} passes an attention_mask {list(mask.shape)} of {mask.dtype}, and no pattern can "
            f"be read off its elements; give the model a mask [batch, tokens] of padding alone, or {_OTHERS}"
        )
    if mask.shape[2:] != (q_len, kv_len) or mask.shape[0] not in (1, query.shape[0]):
        raise UnsupportedError(
            f"{type(module).__name__} passes a mask {list(mask.shape)} with {query.shape[0]} sequences of {q_len} "
            f"queries and {kv_len} keys; {_OTHERS}"
        )
    return mask.allowed


def _unmasked(module: Any, q_len: int, kv_len: int, device: torch.device, is_causal: bool | None) -> Allowed:
    """Return what no mask means, as transformers' SDPA takes it: full, or causal where the module is."""
    causal = q_len > 1 and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if causal and q_len != kv_len:
        raise UnsupportedError(
            f"{type(module).__name__} is causal and passes no mask with {q_len} queries and {kv_len} keys, so their "
            f"positions are not known; {_OTHERS}"
        )
    return Allowed(
        pattern=Causal() if causal else Full(),
        query_positions=torch.arange(q_len, device=device),
        key_positions=torch.arange(kv_len, device=device),
        spans=((0, q_len), (0, kv_len)),
    )


def _check_window(module: Any, allowed: Allowed, window: int | None) -> None:
    """Raise if a module has a window, and the mask lets a query see past it.

    Models count a window of both directions with or without its last token, so one more is no contradiction there.
    """
    if not window:  # Qwen2-MoE says 0 where there is none
        return
    pattern = allowed.pattern
    if pattern.is_causal:
        band, farthest = Band(left=window - 1), pattern.reach.left
        kept = farthest is not None and farthest < window
    else:
        band = Band.symmetric(window)
        kept = pattern & band == pattern
    if not kept and allowed.bound(band) != Full():
        raise UnsupportedError(
            f"{type(module).__name__} has sliding_window={window}, and its mask says {pattern!r}; {_OTHERS}"
        )


def _weights_are_collected() -> bool:
    """Whether a model is called with ``output_attentions=True``, which some layers do not hand on to their modules."""
    capturing = require_extra("transformers.utils.output_capturing", "hf", "returning weights")
    collected = capturing._active_collector.get() or {}
    return any(name.endswith("attentions") for name in collected)


def _for_batch(tensor: Tensor | None, query: Tensor, keys: int) -> Tensor | None:
    return None if tensor is None else tensor[:, :keys].expand(query.shape[0], -1)
