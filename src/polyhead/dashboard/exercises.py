"""The numbers behind the five exercises: what the page checks an answer against, computed by the library."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from polyhead.catalog import EXAMPLE, TEXTBOOK, Device, Model, device, model
from polyhead.compare import AttentionComparison
from polyhead.compare.table import Row
from polyhead.cost import decode_work, memory as model_memory, seconds
from polyhead.cost.tables import Shape, memory
from polyhead.errors import SpecError
from polyhead.spec import (
    Alibi,
    AttentionSpec,
    Causal,
    Differential,
    Full,
    Grouped,
    Latent,
    Linear,
    NoPosition,
    Rotary,
    SlidingWindow,
    Softmax,
)
from polyhead.spec.composed import parts_of

MODEL, DEVICE, CONTEXT = "llama-3-8b", "a100-80", 262_144
"""What exercise 3 is about: a model whose attention is chosen anew, a single GPU of 80 GB, and 256K tokens."""

PRECISION = "bf16"

DIGITS = 9
"""Digits after the point of the example's numbers: more than are read, and fewer than a page need hold."""

ALONE = ("causal", "rope", "differential")
"""The three that exercise 5 combines."""

_STORAGES = {
    "MHA": Grouped(num_heads=32, head_dim=128),
    "GQA-8": Grouped(num_heads=32, num_kv_heads=8, head_dim=128),
    "MQA": Grouped(num_heads=32, num_kv_heads=1, head_dim=128),
    "MLA 512 + 64": Latent(num_heads=32, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
}
_POSITIONS = {"RoPE": Rotary(theta=500_000.0), "ALiBi": Alibi(), "none": NoPosition()}
_PATTERNS = {"full": Full(), "causal": Causal(), "causal, a window of 4,096": SlidingWindow.causal(4096)}
_WEIGHTINGS = {"softmax": Softmax(), "linear": Linear(), "differential": Differential()}

_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "storage": _STORAGES,
    "position": _POSITIONS,
    "pattern": _PATTERNS,
    "weighting": _WEIGHTINGS,
}


def exercises() -> dict[str, Any]:
    """Return what each exercise's answers are checked against.

    Returns:
        JSON-ready data: ``mat`` and ``sharpest`` (the shared example's rows for a token), ``cache`` (bytes of what is
        kept), ``stack`` (what a model takes with each stack), ``combination`` (its row, and the distances from each of
        its parts alone).
    """
    return {
        "mat": _mat(),
        "cache": _cache(),
        "stack": _stack(),
        "sharpest": _sharpest(),
        "combination": _combination(),
    }


def _mat() -> dict[str, Any]:
    """Return the last token's row with and without the causal mask, and how many keys that hides from each token."""
    comparison, count = AttentionComparison(), len(EXAMPLE.tokens)
    positions = np.arange(count)
    seen = Causal().allowed(positions, positions, kv_len=count)
    rows = {name: _numbers(comparison.run(name, count - 1)) for name in ("scaled-dot-product", "causal")}
    return {"token": count - 1, "rows": rows, "hidden": (count - seen.sum(axis=-1)).tolist()}


def _cache() -> dict[str, Any]:
    """Return the textbook's table of memory, at its sizes."""
    shape = Shape()
    return {"shape": dataclasses.asdict(shape), "rows": memory(shape)}


def _stack() -> dict[str, Any]:
    """Return what the model takes with every stack of the options, or why a stack cannot be.

    ``stacks`` are in the order of the options' product: bytes of weights, of the cache and of all, and a token's least
    seconds; or the index of one of ``problems``.
    """
    base, target = model(MODEL), device(DEVICE)
    stacks: list[list[float] | int] = []
    problems: list[str] = []
    for chosen in itertools.product(*(options.values() for options in _OPTIONS.values())):
        parts = dict(zip(_OPTIONS, chosen, strict=True))
        if isinstance(parts["weighting"], Differential) and isinstance(parts["storage"], Grouped):
            parts["storage"] = dataclasses.replace(parts["storage"], head_dim=64)  # two maps in a head's width
        try:
            stacks.append(_taken(base.with_attention(AttentionSpec(**parts)), target))
        except SpecError as error:
            reason = str(error).split("; ")[0]
            problems += [] if reason in problems else [reason]
            stacks.append(problems.index(reason))
    return {
        "model": base.title,
        "trained_on": base.max_seq_len,
        "weights": model_memory(base, 1, precision=PRECISION).weights,
        "device": target.title,
        "memory": target.memory,
        "context": CONTEXT,
        "precision": PRECISION,
        "options": {place: list(options) for place, options in _OPTIONS.items()},
        "problems": problems,
        "stacks": stacks,
    }


def _taken(stack: Model, target: Device) -> list[float]:
    kept = model_memory(stack, CONTEXT, precision=PRECISION)
    token = seconds(decode_work(stack, CONTEXT, precision=PRECISION), target, precision=PRECISION).total
    return [kept.weights, kept.cache.ideal, kept.total, float(f"{token:.4g}")]


def _sharpest() -> dict[str, Any]:
    """Return the example's row with and without differential attention, and what that subtracts before it rescales."""
    comparison = AttentionComparison()
    entry = comparison.result("differential").fitted.spec
    storage = dataclasses.replace(entry.storage, v_head_dim=entry.v_head_dim)
    weighting = Differential(form="paper", lambda_init=TEXTBOOK.lambda_init)
    zeros = np.zeros(entry.qk_head_dim)
    params = dict.fromkeys(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"), zeros)
    spec = AttentionSpec(storage=storage, weighting=weighting)
    comparison.add("difference", spec, params | {"sub_norm": np.ones(entry.v_head_dim)})
    names = ("scaled-dot-product", "differential", "difference")
    rows = {name: _numbers(comparison.run(name, EXAMPLE.token)) for name in names}
    return {"token": EXAMPLE.tokens.index(EXAMPLE.token), "lambda": TEXTBOOK.lambda_init, "rows": rows}


def _combination() -> dict[str, Any]:
    """Return the combination's row, how far each of its parts alone is from it, and its weights without each part."""
    comparison = AttentionComparison()
    parts = comparison.result("differential").fitted.spec
    spec = dataclasses.replace(
        parts,
        storage=dataclasses.replace(parts.storage, v_head_dim=parts.v_head_dim),
        position=TEXTBOOK.rotary,
        pattern=Causal(),
    )
    whole = Grouped(num_heads=1, head_dim=len(EXAMPLE.query[0]))
    specs = {
        "all three": spec,
        "causal": dataclasses.replace(spec, pattern=Full()),
        "rope": dataclasses.replace(spec, position=NoPosition()),
        "differential": dataclasses.replace(spec, storage=whole, weighting=Softmax()),
    }
    for name, one in specs.items():
        comparison.add(f"without {name}", one)
    rows = {name: comparison.run(f"without {name}", EXAMPLE.token) for name in specs}
    alone = {name: comparison.run(name, EXAMPLE.token) for name in ALONE}
    found = rows.pop("all three")
    return {
        "token": EXAMPLE.tokens.index(EXAMPLE.token),
        "spec": parts_of(spec),
        "row": _numbers(found),
        "alone": {name: _numbers(row) for name, row in alone.items()},
        "distances": {name: _distance(row, found) for name, row in alone.items()},
        "without": {name: _numbers(row) for name, row in rows.items()},
    }


def _distance(row: Row, other: Row) -> float:
    return round(float(np.linalg.norm(row.output - other.output)), DIGITS)


def _numbers(row: Row) -> dict[str, list[float]]:
    return {"weights": row.weights.round(DIGITS).tolist(), "output": row.output.round(DIGITS).tolist()}
