"""MLA absorbed equals MLA expanded: a whole layer, before and after a cache, and its gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from tests import reference
from tests.inputs import spec
from tests.tolerances import assert_close

BATCH, LENGTH = 2, 12
PIECES = [slice(0, 5), slice(5, 6), slice(6, 7), slice(7, 10), slice(10, 11), slice(11, 12)]
"""A prompt, and then tokens and a chunk."""

ROPE = ph.Rotary(theta=50.0)
WINDOW = ph.SlidingWindow.causal(3)
SINKS = (WINDOW | ph.Global(first=1)) & ph.Causal()


def latent(position: Any = ROPE, pattern: Any = ph.Causal(), weighting: Any = ph.Softmax(), **fields: Any) -> Any:  # noqa: B008
    storage = dataclasses.replace(spec("mla").storage, q_lora_rank=fields.pop("q_lora_rank", None))
    whole = ph.AttentionSpec(storage=storage, position=position, pattern=pattern, weighting=weighting)
    return ph.LayerSpec(attention=whole, embed_dim=6, **fields)


SDPA = {
    "plain": latent(),
    "biases": latent(qkv_bias=True, out_bias=True, q_lora_rank=7, norm_eps=0.1),
    "without norms": latent(latent_norm=False, q_lora_rank=7),
    "a window": latent(pattern=WINDOW),
    "a window and kept first tokens": latent(pattern=SINKS),
    "interleaved": latent(ph.Rotary(theta=50.0, pairs="interleaved")),
    "BigBird": latent(pattern=ph.BigBird() & ph.Causal()),
}
"""Layers that the dense kernel takes as well."""

LAYERS = {
    **SDPA,
    "paper": latent(weighting=ph.Differential()),
    "DiffLlama": latent(weighting=ph.Differential(form="diffllama"), pattern=WINDOW),
    "clipped": latent(weighting=ph.Differential(form="clipped")),
    "sinks": latent(weighting=ph.Softmax(sink=True)),
    "softcap": latent(weighting=ph.Softmax(softcap=1.5)),
    "Shaw": latent(ph.RelativeBias.shaw(max_distance=3)),
    "Shaw and differential": latent(ph.RelativeBias.shaw(max_distance=3), weighting=ph.Differential()),
    "T5 and sinks": latent(ph.RelativeBias.t5(num_buckets=8, max_distance=6), weighting=ph.Softmax(sink=True)),
    "ALiBi": latent(ph.Alibi(), pattern=WINDOW),
}
EXPANDED = [("plain", name) for name in LAYERS] + [("dense", name) for name in SDPA]
by_expanding = pytest.mark.parametrize(("kernel", "name"), EXPANDED)
by_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def made(name: str, dtype: torch.dtype) -> tuple[ph.Attention, torch.Tensor]:
    layer = LAYERS[name]
    x = np.random.default_rng(0).standard_normal((BATCH, LENGTH, layer.embed_dim))
    return reference.layer_of(layer, reference.drawn_numbers(layer, 1), dtype), torch.tensor(x, dtype=dtype)


@by_expanding
@by_dtype
def test_decoding_absorbed_equals_decoding_expanded(kernel: str, name: str, dtype: torch.dtype) -> None:
    layer, x = made(name, dtype)
    absorbed, expanded = (layer.new_cache(BATCH) for _ in range(2))
    for piece in PIECES:
        ours = layer(x[:, piece], cache=absorbed, kernel="absorbed")
        assert_close(ours, layer(x[:, piece], cache=expanded, kernel=kernel), dtype)


@by_dtype
@pytest.mark.parametrize("name", LAYERS)
def test_a_cache_can_be_read_by_both_in_turn(name: str, dtype: torch.dtype) -> None:
    layer, x = made(name, dtype)
    cache = layer.new_cache(BATCH)
    kernels = ["plain", "absorbed"] * 3
    pieces = [layer(x[:, piece], cache=cache, kernel=kernel) for piece, kernel in zip(PIECES, kernels, strict=True)]
    assert_close(torch.cat(pieces, dim=1), layer(x, kernel="plain"), dtype)


@by_expanding
@by_dtype
def test_a_whole_sequence_absorbed_equals_it_expanded(kernel: str, name: str, dtype: torch.dtype) -> None:
    layer, x = made(name, dtype)
    lengths = [LENGTH, 7]
    ours, theirs = (layer(x, lengths=lengths, kernel=each) for each in ("absorbed", kernel))
    assert_close(ours, theirs, dtype)


@by_expanding
@by_dtype
def test_gradients_absorbed_are_gradients_expanded(kernel: str, name: str, dtype: torch.dtype) -> None:
    found = {}
    for each in ("absorbed", kernel):
        layer, x = made(name, dtype)
        x.requires_grad_()
        layer(x, kernel=each).square().sum().backward()
        found[each] = {"x": x.grad, **{n: parameter.grad for n, parameter in layer.named_parameters()}}
    # float32 errs by a part of the terms that are summed, and the largest gradient says how large those are
    size = max(1.0, *(gradient.abs().max().item() for gradient in found[kernel].values()))
    for n, theirs in found[kernel].items():
        assert_close(found["absorbed"][n] / size, theirs / size, dtype, what=f"gradient of {n}")
