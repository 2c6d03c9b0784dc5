"""What `Attention.forward` refuses, by its own checks and by its annotations, which admit what is right."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import polyhead as ph
from tests.layer.layers import (
    BATCH,
    CONTEXT_DIM,
    CONTEXT_TOKENS,
    EMBED_DIM,
    GIVEN,
    LAYERS,
    ROPE,
    SELF,
    TOKENS,
    drawn,
    inputs,
    layer_spec,
    mask,
)

# --- what is refused

LAYER, CROSS_LAYER = drawn(LAYERS["grouped"], torch.float32), drawn(LAYERS["cross"], torch.float32)
X, OTHER = torch.zeros(BATCH, TOKENS, EMBED_DIM), torch.zeros(BATCH, CONTEXT_TOKENS, CONTEXT_DIM)
SOME = torch.ones(BATCH, 3, dtype=torch.bool)

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a list": ({"x": [[[1.0] * EMBED_DIM]]}, r"x is a list; give a torch.Tensor"),
    "one sequence": ({"x": X[0]}, r"x has shape \[6, 12\]; give \[batch, tokens, 12\]"),
    "heads": ({"x": X[None]}, r"x has shape \[1, 2, 6, 12\]; give \[batch, tokens, 12\]"),
    "another width": ({"x": X[..., 1:]}, r"x has shape \[2, 6, 11\]; give \[batch, tokens, 12\]"),
    "whole numbers": ({"x": X.long()}, r"x has dtype torch.int64"),
    "another dtype": ({"x": X.double()}, r"x has dtype torch.float64"),
    "a context": ({"context": OTHER}, r"context is given, and this layer attends to x alone; make it with source='cr"),
    "positions between": ({"positions": torch.arange(6) / 2}, r"positions has dtype torch.float32; positions are who"),
    "few positions": ({"positions": torch.arange(5)}, r"positions has shape \[5\]; give \[6\] or \[2, 6\]"),
    "a mask of numbers": ({"key_mask": torch.ones(BATCH, TOKENS)}, r"key_mask has dtype torch.float32; give booleans"),
    "a short mask": ({"key_mask": SOME}, r"key_mask has shape \[2, 3\]; give \[2, 6\]"),
    "a short mask and lengths": ({"key_mask": SOME, "lengths": [6, 2]}, r"key_mask has shape \[2, 3\]; give \[2, 6\]"),
    "one mask for all and lengths": (
        {"key_mask": torch.ones(1, TOKENS, dtype=torch.bool), "lengths": [6, 2]},
        r"key_mask has shape \[1, 6\]; give \[2, 6\]",
    ),
    "few segments": (
        {"segments": torch.zeros(BATCH, 3, dtype=torch.int64)},
        r"segments are torch.int64 \[2, 3\]; give",
    ),
    "few lengths": ({"lengths": [6]}, r"lengths=\[6\] is not one number for each of 2 sequences"),
    "too long": ({"lengths": [6, 7]}, r"lengths=\[6, 7\]: 7 is not a whole number from 0 to 6, the tokens given"),
    "less than none": ({"lengths": torch.tensor([6, -1])}, r"lengths=\[6, -1\]: -1 is not a whole number from 0 to 6"),
    "half a token": ({"lengths": torch.tensor([0.5, 6])}, r"0.5 is not a whole number from 0 to 6"),
}

REFUSED_CROSS: dict[str, tuple[dict[str, Any], str]] = {
    "no context": ({"context": None}, r"a layer with source='cross' needs context=, \[batch, tokens, context_dim\]"),
    "an array": ({"context": np.zeros(OTHER.shape)}, r"context is a ndarray; give a torch.Tensor"),
    "another width": ({"context": X}, r"context has shape \[2, 6, 12\]; give \[batch, tokens, 7\]"),
    "one context": ({"context": OTHER[0]}, r"context has shape \[4, 7\]; give \[batch, tokens, 7\]"),
    "few contexts": ({"context": OTHER[:1]}, r"batch 1 and .* 2; make them equal"),
    "another dtype": ({"context": OTHER.double()}, r"context has dtype torch.float64"),
    "positions": ({"positions": torch.arange(TOKENS)}, r"with source='cross' each sequence counts from 0; leave them"),
    "a mask over x": ({"key_mask": mask(TOKENS)}, r"key_mask has shape \[2, 6\]; give \[2, 4\]"),
    "segments": ({"segments": torch.zeros(BATCH, TOKENS, dtype=torch.int64)}, r"segments need as many queries as keys"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ph.ShapeError, match=message):
        LAYER(**{"x": X, **given})


@pytest.mark.parametrize(("given", "message"), REFUSED_CROSS.values(), ids=REFUSED_CROSS)
def test_what_does_not_fit_cross_attention_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ph.ShapeError, match=message):
        CROSS_LAYER(**{"x": X, "context": OTHER, **given})


@pytest.mark.parametrize("name", ["positions", "segments"])
def test_positions_and_segments_are_refused_beside_a_cache(name: str) -> None:
    given = {name: torch.zeros(BATCH, TOKENS, dtype=torch.int64)}
    with pytest.raises(ph.UnsupportedError, match=rf"{name} are given, and a cache counts on from its last token"):
        LAYER(X, **given, cache=LAYER.new_cache(BATCH))


def test_cross_attention_refuses_the_cache_of_self_attention() -> None:
    """It would append the context again with every call."""
    own = ph.Attention(layer_spec(ROPE))
    cross = ph.Attention(layer_spec(ROPE, source="cross"))
    with pytest.raises((ph.ShapeError, ph.SpecError), match="cache"):
        cross(X, context=X, cache=own.new_cache(BATCH))
    with pytest.raises((ph.ShapeError, ph.SpecError), match="cache"):
        own(X, cache=cross.new_cache(BATCH))


# --- the annotations


@pytest.fixture(scope="module")
def annotated() -> Callable[[ph.Attention], ph.Attention]:
    """Make a layer anew with its jaxtyping annotations checked at run time, from a second copy of its module."""
    name = "polyhead.attention"
    original = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyhead.attention", original)  # restored at the end, on the package and among modules
        patch.delitem(sys.modules, name)
        with jaxtyping.install_import_hook(name, "beartype.beartype"):
            checked = importlib.import_module(name)

    def remade(layer: ph.Attention) -> Any:
        twin = checked.Attention(layer.spec, dtype=layer.o_proj.weight.dtype)
        twin.load_state_dict(layer.state_dict())
        return twin.eval()

    return remade


ADMITTED: dict[str, dict[str, Any]] = {
    **GIVEN,
    "lengths": {"lengths": [5, 2]},
    "tensor-of-lengths": {"lengths": torch.tensor([5, 2])},
    "weights": {"return_weights": True, "kernel": "plain"},
}


@pytest.mark.parametrize("given", ADMITTED.values(), ids=ADMITTED)
@pytest.mark.parametrize("name", ["grouped", "latent-queries", "linear"])
def test_the_annotations_admit_every_call_that_is_right(
    annotated: Callable[[ph.Attention], Any], name: str, given: dict[str, Any]
) -> None:
    layer, called = drawn(SELF[name]), inputs(SELF[name])
    outputs = (one(**called, **given) for one in (annotated(layer), layer))
    ours, plain = (output[0] if given.get("return_weights") else output for output in outputs)
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", ["grouped", "cross"])
def test_the_annotations_admit_decoding(annotated: Callable[[ph.Attention], Any], name: str) -> None:
    layer, called = drawn(LAYERS[name]), inputs(LAYERS[name])
    checked = annotated(layer)
    cache = checked.new_cache(BATCH, 8)
    first = checked(called.pop("x")[:, :4], **called, cache=cache, lengths=[4, 3])
    assert first.shape == (BATCH, 4, EMBED_DIM)
    assert checked(inputs(LAYERS[name])["x"][:, 4:5], cache=cache).shape == (BATCH, 1, EMBED_DIM)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", X[0]),
        ("x", X.long()),
        ("key_mask", torch.ones(BATCH, TOKENS)),
        ("key_mask", torch.ones(1, TOKENS, dtype=torch.bool)),
        ("positions", torch.arange(TOKENS + 1)),
        ("segments", torch.zeros(TOKENS, dtype=torch.int64)),
        ("lengths", torch.ones(BATCH, 1, dtype=torch.int64)),
        ("context", OTHER[:1]),
        ("cache", "growing"),
    ],
)
def test_the_annotations_refuse_a_call_that_is_wrong(
    annotated: Callable[[ph.Attention], Any], name: str, wrong: Any
) -> None:
    layer = annotated(CROSS_LAYER if name == "context" else LAYER)
    with pytest.raises(jaxtyping.TypeCheckError, match=name):
        layer(**{"x": X, name: wrong})
