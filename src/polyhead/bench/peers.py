"""What a case is compared with: each peer one function from the case's tensors to a call, or to why there is none.

What a model makes once for all its layers (masks, cos and sin, a choice of random blocks) is made outside the timing,
to the peer's advantage. The peers that are other people's layers are in `polyhead.bench.layers`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polyhead.bench import decode_peers, layers
from polyhead.bench.contender import Contender, Peer, missing
from polyhead.bench.work import SDPA_MATRICES, Work, lacking
from polyhead.spec import (
    Alibi,
    AllOf,
    AnyOf,
    AttentionSpec,
    Band,
    Causal,
    Differential,
    Full,
    Global,
    Grouped,
    Latent,
    NoPosition,
    Pattern,
    RelativeBias,
    Softmax,
)

FLA_CHUNK = 64
"""Tokens in a chunk of flash-linear-attention's plain code."""


def sdpa(work: Work) -> Contender | str:
    """Run PyTorch's attention over as many heads, two-sided or causal: without a window, bias or second map."""
    spec = work.case.attention
    causal = spec.pattern.is_causal
    query, key, value = _wide(work)
    if query().shape[-1] != value().shape[-1]:  # the widths differ, and PyTorch forms the whole matrix
        needed = SDPA_MATRICES * spec.num_heads * work.case.length**2 * work.dtype.itemsize
        if reason := lacking(needed, "for SDPA with unequal widths"):
            return reason
    same = (
        isinstance(spec.weighting, Softmax)
        and isinstance(spec.position, NoPosition)
        and spec.pattern in (Full(), Causal())
    )

    def forward() -> Tensor:
        return functional.scaled_dot_product_attention(
            query(), key(), value(), is_causal=causal, scale=spec.scale, enable_gqa=spec.group_size > 1
        )

    wrt = [work.tensors["query"], *(work.tensors[name] for name in work.tensors if name != "query")]
    return Contender(work.timed(forward, wrt), same=same)


def sdpa_mask(work: Work) -> Contender | str:
    """Run PyTorch's attention with the bias as a float mask ``[heads, q_len, kv_len]``, made outside the timing."""
    spec, case = work.case.attention, work.case
    needed = SDPA_MATRICES * spec.num_heads * case.q_len * case.length * work.dtype.itemsize
    if reason := lacking(needed, "for a float mask"):
        return reason
    distance = torch.arange(case.length) - torch.arange(case.length - case.q_len, case.length)[:, None]
    if isinstance(spec.position, Alibi):
        slopes = torch.tensor(spec.position.head_slopes(spec.num_heads), dtype=work.dtype)
        mask = -slopes[:, None, None] * distance.abs()
    elif isinstance(spec.position, RelativeBias):
        if case.training:
            return "its mask is made outside the timing, so no gradient would reach the table"
        entries = torch.from_numpy(spec.position.buckets())
        far = spec.position.max_distance
        mask = work.params["bias_table"][entries[distance.clamp(-far, far) + far]].permute(2, 0, 1).contiguous()
    else:
        return f"it adds a bias, and {spec.position!r} is none"
    if spec.pattern == Causal():
        mask.masked_fill_(distance > 0, -torch.inf)
    elif spec.pattern != Full():
        return f"it is written for full and causal attention, not for {spec.pattern!r}"
    query, (key, value) = work.query, (work.tensors["key"], work.tensors["value"])

    def forward() -> Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, mask, scale=spec.scale, enable_gqa=spec.group_size > 1
        )

    return Contender(work.timed(forward, [query, key, value]), same=True)


def window(work: Work) -> Contender | str:
    """Run ours with the window alone, to see what the kept first tokens cost."""
    windows = [part for part in _parts(work.case.attention.pattern) if isinstance(part, Band) and part.left is not None]
    if not windows:
        return f"{work.case.attention.pattern!r} has no window"
    spec = dataclasses.replace(work.case.attention, pattern=windows[0] & Causal())
    return Contender(work.ours(spec), same=False)


def flex(work: Work) -> Contender | str:
    """Run FlexAttention, compiled outside the timing, with the pattern as its block mask and ALiBi as its score."""
    spec, case = work.case.attention, work.case
    if case.training:
        return "FlexAttention has no backward pass on the CPU"
    score = _score_mod(spec)
    if isinstance(score, str):
        return score
    if not isinstance(spec.storage, Grouped) or not isinstance(spec.weighting, Softmax):
        return f"it is written here for grouped heads and softmax, not for {spec!r}"
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    seen = _mask_mod(spec.pattern, case.length - case.q_len)
    query, key, value = work.query, work.tensors["key"], work.tensors["value"]
    torch.compiler.reset()  # what another case compiled would count against the number of recompilations
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script_method` is deprecated", DeprecationWarning)
        mask = create_block_mask(seen, None, None, case.q_len, case.length, device="cpu")
        compiled = torch.compile(flex_attention, dynamic=False)

        def forward() -> Tensor:
            output: Tensor = compiled(query, key, value, score, mask, scale=spec.scale, enable_gqa=spec.group_size > 1)
            return output

        run = work.timed(forward, [])
        try:
            run()
        except (RuntimeError, NotImplementedError) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            return f"it does not compile here: {reason}"
    return Contender(run, same=True)


def fla_naive(work: Work) -> Contender | str:
    """Run flash-linear-attention's chunk-wise code in plain PyTorch, the one that it has for the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        try:
            from fla.ops.linear_attn.naive import naive_chunk_linear_attn
        except ImportError as error:
            return missing("fla", "fla-core[cpu]", error)
    if work.case.length % FLA_CHUNK:
        return f"it takes multiples of {FLA_CHUNK} tokens, not {work.case.length}"
    query, key, value = (work.tensors[name] for name in ("query", "key", "value"))
    spec = work.case.attention

    def forward() -> Tensor:
        features = [(functional.elu(x) + 1).transpose(1, 2) for x in (query, key)]
        output: Tensor = naive_chunk_linear_attn(*features, value.transpose(1, 2), scale=1.0, normalize=True)
        return output.transpose(1, 2)

    same = getattr(spec.weighting, "feature_map", None) == "elu+1" and spec.pattern == Causal()
    return Contender(work.timed(forward, [query, key, value]), same=same)


PEERS: Mapping[str, Peer] = {
    "sdpa": Peer("PyTorch's SDPA", sdpa),
    "sdpa-mask": Peer("PyTorch's SDPA with a float mask", sdpa_mask),
    "flex": Peer("compiled FlexAttention", flex),
    "window": Peer("ours, the window alone", window),
    "fla-naive": Peer("flash-linear-attention in plain PyTorch", fla_naive),
    **layers.PEERS,
    **decode_peers.PEERS,
}
"""Every peer, by the name that a case has for it."""


def _wide(work: Work) -> tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[], Tensor]]:
    """Return calls for queries, keys and values as SDPA takes them: a latent expanded, two maps side by side."""
    spec, tensors = work.case.attention, work.tensors
    if isinstance(spec.storage, Latent):
        rank = spec.storage.kv_lora_rank
        latent, rope = tensors["key"].split([rank, spec.storage.qk_rope_head_dim], dim=-1)

        def expanded() -> Tensor:
            nope = latent @ work.params["w_uk"].mT
            return torch.cat([nope, rope.expand(-1, spec.num_heads, -1, -1)], dim=-1)

        return lambda: tensors["query"], expanded, lambda: latent @ work.params["w_uv"].mT
    if isinstance(spec.weighting, Differential):
        joined = [
            tensors[name].unflatten(1, (-1, 2)).transpose(2, 3).flatten(3).contiguous() for name in ("query", "key")
        ]
        return lambda: joined[0], lambda: joined[1], lambda: tensors["value"]
    return lambda: tensors["query"], lambda: tensors["key"], lambda: tensors["value"]


def _parts(pattern: Pattern) -> list[Pattern]:
    if isinstance(pattern, AllOf | AnyOf):
        return [inner for part in pattern.parts for inner in _parts(part)]
    return [pattern]


def _mask_mod(pattern: Pattern, offset: int) -> Callable[[Any, Any, Any, Any], Any]:
    """Write a pattern as FlexAttention's ``mask_mod``, whose queries count from 0."""

    def seen(pattern: Pattern, query: Any, key: Any) -> Any:
        if isinstance(pattern, AllOf | AnyOf):
            first, *rest = (seen(part, query, key) for part in pattern.parts)
            for other in rest:
                first = first & other if isinstance(pattern, AllOf) else first | other
            return first
        if isinstance(pattern, Band):
            allowed = key == key  # all True, as a tensor
            allowed = allowed if pattern.left is None else allowed & (query - key <= pattern.left)
            return allowed if pattern.right is None else allowed & (key - query <= pattern.right)
        assert isinstance(pattern, Global)
        assert not pattern.last
        return (query < pattern.first) | (key < pattern.first)

    return lambda batch, head, query, key: seen(pattern, query + offset, key)


def _score_mod(spec: AttentionSpec) -> Callable[..., Any] | str | None:
    """Write ALiBi as FlexAttention's ``score_mod``; None where there is no bias, a reason where it is another."""
    if isinstance(spec.position, NoPosition):
        return None
    if not isinstance(spec.position, Alibi):
        return f"it is written here without a bias and for ALiBi, not for {spec.position!r}"
    slopes = torch.tensor(spec.position.head_slopes(spec.num_heads))
    return lambda score, batch, head, query, key: score - slopes[head] * (query - key).abs()
