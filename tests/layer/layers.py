"""What the tests of the layer share: a layer of each kind, what it is called with, and its definition in NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import polyhead as ph
from tests.inputs import Array, spec
from tests.tolerances import as_array

EMBED_DIM, CONTEXT_DIM = 12, 7
BATCH, TOKENS, CONTEXT_TOKENS = 2, 6, 4

ROPE = {"position": ph.Rotary(), "pattern": ph.Causal()}
T5 = {"position": ph.RelativeBias.t5(num_buckets=8, max_distance=6), "weighting": ph.Softmax(scale=1.0)}
LOW_RANK_QUERIES = dataclasses.replace(spec("mla").storage, q_lora_rank=7)
WIDE_VALUES = ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8, v_head_dim=11)


def layer_spec(choices: dict[str, Any], storage: Any = "gqa", **fields: Any) -> ph.LayerSpec:
    """Return a small layer from its choices, a storage or its name, and the fields of `LayerSpec`."""
    attention = spec(storage, **choices) if isinstance(storage, str) else ph.AttentionSpec(storage=storage, **choices)
    return ph.LayerSpec(attention=attention, embed_dim=EMBED_DIM, **fields)


LAYERS = {
    "mha": layer_spec({}, "mha"),
    "grouped": layer_spec(ROPE),
    "one-kv-head": layer_spec({"position": ph.Alibi(), "pattern": ph.SlidingWindow.causal(3)}, "mqa"),
    "wide-values": layer_spec(ROPE, WIDE_VALUES),
    "qk-norm": layer_spec(ROPE, qk_norm=True, norm_eps=0.1),
    "biases": layer_spec(ROPE, qkv_bias=True, out_bias=True),
    "sinks": layer_spec({"weighting": ph.Softmax(sink=True, softcap=3.0)}),
    "t5": layer_spec(T5, "mha"),
    "clipped-bias": layer_spec({"position": ph.RelativeBias.clipped(max_distance=2), "pattern": ph.Causal()}),
    "shaw": layer_spec({"position": ph.RelativeBias.shaw(max_distance=2)}),
    "linear": layer_spec({**ROPE, "weighting": ph.Linear()}),
    "linear-full": layer_spec({"weighting": ph.Linear()}),
    "paper": layer_spec({**ROPE, "weighting": ph.Differential(layer=2)}, qk_norm=True),
    "diffllama": layer_spec({**ROPE, "weighting": ph.Differential(form="diffllama")}),
    "clipped": layer_spec({**ROPE, "weighting": ph.Differential(form="clipped")}),
    "latent": layer_spec(ROPE, "mla", out_bias=True),
    "latent-queries": layer_spec(ROPE, LOW_RANK_QUERIES, qkv_bias=True, norm_eps=0.1),
    "latent-without-norms": layer_spec(ROPE, LOW_RANK_QUERIES, latent_norm=False),
    "latent-paper": layer_spec({**ROPE, "weighting": ph.Differential()}, "mla"),
    "latent-linear": layer_spec({**ROPE, "weighting": ph.Linear()}, "mla"),
    "cross": layer_spec(ROPE, source="cross", context_dim=CONTEXT_DIM, qkv_bias=True),
    "cross-t5": layer_spec(T5, source="cross", qk_norm=True),
    "cross-latent": layer_spec({"position": ph.Rotary()}, LOW_RANK_QUERIES, source="cross", context_dim=CONTEXT_DIM),
}

SELF = {name: layer for name, layer in LAYERS.items() if layer.source == "self"}
CROSS = {name: layer for name, layer in LAYERS.items() if layer.source == "cross"}

by_layer = pytest.mark.parametrize("spec", LAYERS.values(), ids=LAYERS)
by_self = pytest.mark.parametrize("spec", SELF.values(), ids=SELF)
by_cross = pytest.mark.parametrize("spec", CROSS.values(), ids=CROSS)


def drawn(spec: ph.LayerSpec, dtype: torch.dtype = torch.float64, **options: Any) -> ph.Attention:
    """Return a layer whose numbers are no special case: norms that are not 1, biases and sinks that are not 0."""
    layer = ph.Attention(spec, dtype=torch.float64, **options).eval()
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(layer.named_parameters()):
            numbers = normal(*parameter.shape, seed=seed)
            centre = 1.0 if name.endswith("norm.weight") or name == "sub_norm" else 0.0
            parameter.copy_(centre + numbers * (0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5))
    return layer.to(dtype)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the same normal numbers at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(
    spec: ph.LayerSpec,
    dtype: torch.dtype = torch.float64,
    *,
    batch: int = BATCH,
    tokens: int = TOKENS,
    context_tokens: int = CONTEXT_TOKENS,
    requires_grad: bool = False,
) -> dict[str, Tensor]:
    """Return what a layer is called with: ``x`` and, for cross-attention, ``context``."""
    given = {"x": normal(batch, tokens, spec.embed_dim, seed=100, dtype=dtype)}
    if spec.context_dim is not None:
        given["context"] = normal(batch, context_tokens, spec.context_dim, seed=101, dtype=dtype)
    if dtype.itemsize == 2:  # outputs past 1 leave half precision's roundings, which add up, close to the tolerance
        given = {name: x / 2 for name, x in given.items()}
    return {name: x.requires_grad_(requires_grad) for name, x in given.items()}


def mask(tokens: int) -> Tensor:
    """Return a key mask with a gap in one sequence, and nothing to see at all in the other."""
    real = torch.ones(BATCH, tokens, dtype=torch.bool)
    real[0, 1] = False
    real[1] = False
    return real


GIVEN: dict[str, dict[str, Tensor]] = {
    "x-alone": {},
    "key-mask": {"key_mask": mask(TOKENS)},
    "positions": {"positions": torch.tensor([3, 1, 1, 7, 9, 30])},
    "positions-of-each": {"positions": torch.tensor([[0, 1, 2, 3, 4, 5], [9, 3, 11, 12, 14, 10]])},
    "segments": {"segments": torch.tensor([[0, 0, 0, 1, 1, 2], [4, 4, 4, 4, 4, 4]])},
    "all": {
        "key_mask": mask(TOKENS),
        "positions": torch.tensor([5, 6, 7, 8, 9, 10]),
        "segments": torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]]),
    },
}
"""What may stand beside x in self-attention."""


def expected(
    layer: ph.Attention,
    x: Tensor,
    context: Tensor | None = None,
    *,
    positions: Any = None,
    dtype: torch.dtype = torch.float64,
    **given: Any,
) -> tuple[Array, Array]:
    """Return output and weights as they are defined: the layer's projections and norms in NumPy around the oracle.

    In half precision each stage begins with what the one before left after rounding to ``dtype``.
    """
    numbers = {name: as_array(parameter) for name, parameter in layer.named_parameters()}
    attention, storage = layer.spec.attention, layer.spec.attention.storage

    def rounded(values: Any) -> Array:
        return as_array(torch.as_tensor(values).to(dtype))

    def project(name: str, rows: Array) -> Array:
        return rounded(rows @ rounded(numbers[f"{name}.weight"]).T + rounded(numbers.get(f"{name}.bias", 0.0)))

    def norm(name: str, rows: Array) -> Array:
        if f"{name}.weight" not in numbers:
            return rows
        mean_square = (rows**2).mean(axis=-1, keepdims=True)
        return rounded(rows / np.sqrt(mean_square + layer.spec.norm_eps) * numbers[f"{name}.weight"])

    def heads(rows: Array, width: int) -> Array:
        return rows.reshape(*rows.shape[:2], rows.shape[2] // width, width).transpose(0, 2, 1, 3)

    tokens, source = rounded(x.detach()), rounded((x if context is None else context).detach())
    if "q_a_proj.weight" in numbers:
        query = project("q_b_proj", norm("q_a_norm", project("q_a_proj", tokens)))
    else:
        query = project("q_proj", tokens)
    if isinstance(storage, ph.Latent):
        row = project("kv_a_proj", source)
        latent, rope = np.split(row, [storage.kv_lora_rank], axis=-1)
        key, value = np.concatenate([norm("kv_a_norm", latent), rope], axis=-1)[:, None], None
    else:
        key = norm("k_norm", heads(project("k_proj", source), attention.qk_head_dim))
        value = heads(project("v_proj", source), attention.v_head_dim)
    if context is not None:  # each sequence counts its own tokens
        given.update(query_positions=np.arange(tokens.shape[1]), key_positions=np.arange(source.shape[1]))
    elif positions is not None:
        given.update(query_positions=positions, key_positions=positions)
    output, weights = ph.oracle.attend(
        norm("q_norm", heads(query, attention.qk_head_dim)),
        key,
        value,
        attention,
        params={name: numbers[name] for name in attention.parameter_shapes()},
        return_weights=True,
        **given,
    )
    joined = (
        rounded(output).transpose(0, 2, 1, 3).reshape(*tokens.shape[:2], attention.num_heads * attention.v_head_dim)
    )
    return project("o_proj", joined), weights
