"""Answers about four choices: whether they are defined together, which kernel runs them and why, and what they cost."""

from __future__ import annotations

from typing import Any

from polyhead.cost import attended, cache_bytes
from polyhead.dashboard.bounds import check_part, computed, spec_of
from polyhead.dashboard.requests import ComposeRequest, ExplainRequest, Parts
from polyhead.errors import MissingExtraError, SpecError, UnsupportedError, require_extra
from polyhead.page import SCHEMA
from polyhead.spec import (
    AttentionSpec,
    Band,
    Chunked,
    Grouped,
    LayerSpec,
    Linear,
    NoPosition,
    Pattern,
    Position,
    Softmax,
    Storage,
    Weighting,
)
from polyhead.spec.attention import part_from_data
from polyhead.spec.composed import composed, parts_of
from polyhead.spec.rules import Choices, refusal

FORMATS = {"float64": "float32", "float32": "float32", "bfloat16": "bf16", "float16": "fp16"}
"""The format in which a cache is counted; float64 takes twice that."""

MAX_ROWS = 2**18
"""Queries, of all heads that differ, whose keys are listed at most to count pairs that follow no formula."""

MAX_LISTED = 2**26
"""Keys that these have at most."""

UNKNOWN_DEGREE = 128
"""Keys for each query that are reckoned with where a pattern does not say how many there are."""


def compose(request: ComposeRequest) -> dict[str, Any]:
    """Answer what four choices are.

    Args:
        request: The choices, and the sizes at which they would run.

    Returns:
        What `polyhead.spec.composed.composed` says of the spec, its ``kernel`` and its ``cost``. Of choices that are
        not defined together the ``reason`` and the ``nearest`` that are, and nothing else.

    Raises:
        SpecError: If one of the four is none by itself.
    """
    choices = _choices(request.spec)
    refused = refusal(choices)
    if refused is not None:
        nearest = AttentionSpec(**{name: getattr(refused.nearest, name) for name in _PLACES})
        return {**_NOTHING, "reason": refused.reason, "nearest": parts_of(nearest), "nearest_repr": repr(nearest)}
    spec = AttentionSpec(**{name: getattr(choices, name) for name in _PLACES})
    kernel = _kernel(spec, request)
    cost = computed(lambda: _costs(spec, request))
    return {**composed(spec), "kernel": kernel, "cost": cost}


def explain(request: ExplainRequest) -> dict[str, Any]:
    """Answer which kernel runs a spec, and why not the others.

    Args:
        request: The spec, and what is asked of it.

    Returns:
        The kernel's name, how it computes, and for each other one why it was not picked.

    Raises:
        SpecError: If the four choices are not defined together.
        MissingExtraError: If torch is not installed.
    """
    asked = {name: getattr(request, name) for name in ("weights", "key_mask", "segments", "dropout")}
    spec = spec_of({name: getattr(request.spec, name) for name in _PLACES})
    return {"schema": SCHEMA, **_explained(spec, request, **asked)}


_PLACES: dict[str, Any] = {"storage": Storage, "position": Position, "pattern": Pattern, "weighting": Weighting}
"""What may stand in each of the four places."""

_NOTHING = {
    "schema": SCHEMA,
    "legal": False,
    "spec": None,
    "spec_repr": None,
    "code": None,
    "picture": None,
    "kernel": None,
    "cost": None,
    "learns": None,
}


def _choices(parts: Parts) -> Choices:
    """Return four choices, each checked by itself and not yet against the others."""
    found: dict[str, Any] = {}
    for name, kind in _PLACES.items():
        data = getattr(parts, name)
        check_part(data)
        found[name] = part_from_data(data)
        if not isinstance(found[name], kind):
            raise SpecError(f"{name}={found[name]!r} is not a {name}; openapi.json has examples")
    return Choices(**found)


# --- which kernel ---------------------------------------------------------------------------------


def _kernel(spec: AttentionSpec, request: ComposeRequest) -> dict[str, Any]:
    """Return what runs a spec; where that cannot be known, why."""
    try:
        found = _explained(spec, request)
    except (MissingExtraError, UnsupportedError) as error:
        return {"missing": str(error)}
    return {"name": found["kernel"], "summary": found["summary"], "others": found["others"]}


def _explained(spec: AttentionSpec, request: ComposeRequest, **asked: bool) -> dict[str, Any]:
    for module in ("torch", "jaxtyping"):
        require_extra(module, "torch", "which kernel runs a spec")
    import torch

    from polyhead.kernels.select import explain as explain_kernel

    found = explain_kernel(
        spec,
        q_len=request.q_len,
        kv_len=request.kv_len,
        dtype=getattr(torch, request.dtype),
        device=request.device,
        needs_grad=request.needs_grad,
        **asked,
    )
    return {"kernel": found.kernel, "summary": found.summary, "others": found.others}


# --- what it costs --------------------------------------------------------------------------------


def _costs(spec: AttentionSpec, request: ComposeRequest) -> dict[str, Any]:
    """Return what a layer's attention costs, and beside it what multi-head attention over the same pairs would."""
    mha = AttentionSpec(
        storage=Grouped(num_heads=spec.num_heads, head_dim=spec.v_head_dim),
        position=NoPosition(),
        pattern=spec.pattern,
        weighting=Softmax(),
    )
    return {"own": _cost(spec, request), "mha": _cost(mha, request)}


def _cost(spec: AttentionSpec, request: ComposeRequest) -> dict[str, Any]:
    """Return bytes that are kept, and operations of attention alone.

    ``token_bytes`` are what one more token adds, ``bytes`` what is kept of ``kv_len`` tokens, ``no_cache`` why nothing
    is; ``prompt`` and ``step`` are operations of as many tokens at once and of one token more, ``uncounted`` why these
    are not told.
    """
    kv_len = request.kv_len
    found: dict[str, Any] = dict.fromkeys(("token_bytes", "bytes", "no_cache", "prompt", "step", "uncounted"))
    try:
        found["bytes"] = _kept(spec, request, kv_len)
        found["token_bytes"] = _kept(spec, request, kv_len + 1) - found["bytes"]
    except SpecError as error:
        found["no_cache"] = str(error)
    found["uncounted"] = _uncounted(spec, kv_len)
    if found["uncounted"] is None:
        found["prompt"] = attended(spec, kv_len, kv_len)
        if found["no_cache"] is None:
            found["step"] = attended(spec, 1, 1 if isinstance(spec.weighting, Linear) else kv_len + 1)
    return found


def _kept(spec: AttentionSpec, request: ComposeRequest, tokens: int) -> int:
    layer = LayerSpec(attention=spec, embed_dim=spec.num_heads * spec.v_head_dim)
    times = 2 if request.dtype == "float64" else 1
    return times * cache_bytes([layer], tokens, precision=FORMATS[request.dtype]).ideal


def _uncounted(spec: AttentionSpec, tokens: int) -> str | None:
    """Return why a pattern's pairs are not counted at a length: those that follow no formula are listed one by one."""
    pattern = spec.pattern
    repeats = pattern.repeat is not None and pattern.is_causal and pattern.reach.left is not None
    rows = tokens * (spec.num_heads if pattern.per_head else 1)
    is_short = rows <= MAX_ROWS and rows * (pattern.degree or UNKNOWN_DEGREE) <= MAX_LISTED
    if isinstance(pattern, Band | Chunked) or repeats or is_short:
        return None
    return f"the pairs of this pattern follow no formula, and listing those of {tokens:,} tokens takes too long here"
