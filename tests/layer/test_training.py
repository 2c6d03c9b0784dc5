"""`Attention` in training: dropout, gradients, and autocast, also where it decodes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import polyhead as ph
from tests.layer.layers import BATCH, CROSS, EMBED_DIM, LAYERS, by_layer, drawn, expected, inputs, normal
from tests.tolerances import TOLERANCE, assert_close

# --- dropout


@by_layer
def test_weights_are_dropped_while_training_alone(spec: ph.LayerSpec) -> None:
    layer, called = drawn(spec, dropout_p=0.5), inputs(spec)
    whole = drawn(spec)(**called)
    assert torch.equal(layer(**called), whole)
    layer.train()
    torch.manual_seed(0)
    first, second = layer(**called), layer(**called)
    assert not torch.equal(first, whole)
    assert not torch.equal(first, second)
    layer.eval()
    assert torch.equal(layer(**called), whole)


def test_without_dropout_training_computes_what_evaluation_does() -> None:
    spec = LAYERS["grouped"]
    assert torch.equal(drawn(spec).train()(**inputs(spec)), drawn(spec)(**inputs(spec)))


DRAWS = 2000


@pytest.mark.parametrize("name", ["grouped", "shaw", "sinks", "t5", "linear", "clipped", "latent", "cross"])
def test_dropout_leaves_the_mean(name: str) -> None:
    spec = LAYERS[name]
    layer, called = drawn(spec, dropout_p=0.3), inputs(spec, batch=1, tokens=3)
    whole = layer(**called)
    torch.manual_seed(0)
    draws = layer.train()(**{name: x.expand(DRAWS, -1, -1) for name, x in called.items()})
    standard_error = draws.std(dim=0) / DRAWS**0.5
    assert standard_error.min() > 0
    assert ((draws.mean(dim=0) - whole[0]).abs() < 5 * standard_error).all()


def test_the_share_asked_for_is_dropped() -> None:
    """One token sees itself through one head, so what is dropped leaves nothing."""
    choices = ph.AttentionSpec(storage=ph.Grouped(num_heads=1, head_dim=4))
    layer = drawn(ph.LayerSpec(attention=choices, embed_dim=EMBED_DIM), dropout_p=0.2).train()
    torch.manual_seed(0)
    output = layer(normal(1, 1, EMBED_DIM, seed=0).expand(DRAWS, -1, -1))
    dropped = output.eq(0.0).all(dim=-1).double().mean()
    assert (dropped - 0.2).abs() < 5 * (0.2 * 0.8 / DRAWS) ** 0.5


# --- gradients


@by_layer
def test_a_gradient_reaches_every_parameter_of_a_new_layer(spec: ph.LayerSpec) -> None:
    torch.manual_seed(0)
    layer, called = ph.Attention(spec, dtype=torch.float64), inputs(spec, requires_grad=True)
    output = layer(**called)
    output.backward(normal(*output.shape, seed=1))
    for name, tensor in {**dict(layer.named_parameters()), **called}.items():
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > TOLERANCE["float64"], name


@by_layer
def test_gradients_are_the_slopes(spec: ph.LayerSpec) -> None:
    layer, called = drawn(spec), inputs(spec, batch=1, tokens=3, context_tokens=2, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(*tensors: Tensor) -> Tensor:
        given = dict(zip([*names, *called], tensors, strict=True))
        return functional_call(layer, {name: given.pop(name) for name in names}, kwargs=given, strict=True)

    assert torch.autograd.gradcheck(run, (*layer.parameters(), *called.values()), fast_mode=True)


def test_with_a_cache_nothing_is_recorded_for_a_backward_pass() -> None:
    layer, called = drawn(LAYERS["grouped"]), inputs(LAYERS["grouped"], requires_grad=True)
    assert not layer(**called, cache=layer.new_cache(BATCH)).requires_grad


# --- autocast


def quiet(spec: ph.LayerSpec) -> dict[str, Tensor]:
    """Return inputs as small as half precision's, in float32."""
    return {name: x.float() for name, x in inputs(spec, torch.bfloat16).items()}


DECODED = {name: spec for name, spec in LAYERS.items() if name in CROSS or spec.attention.pattern.is_causal}


@by_layer
def test_autocast_computes_in_its_dtype_and_stays_near(spec: ph.LayerSpec) -> None:
    layer, called = drawn(spec, torch.float32), quiet(spec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, weights = layer(**called, return_weights=True)
    assert output.dtype == torch.bfloat16
    assert weights.dtype == torch.float32
    assert_close(output, expected(layer, **called, dtype=torch.bfloat16)[0], torch.bfloat16)


@by_layer
def test_gradients_under_autocast_come_in_the_dtype_of_their_parameter(spec: ph.LayerSpec) -> None:
    layer, called = drawn(spec, torch.float32), inputs(spec, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(**called)
    output.float().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("spec", DECODED.values(), ids=DECODED)
def test_a_cache_made_under_autocast_keeps_its_dtype(spec: ph.LayerSpec) -> None:
    layer, called = drawn(spec, torch.float32), quiet(spec)
    x, context = called["x"], {name: rows for name, rows in called.items() if name == "context"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = layer.new_cache(BATCH)
        pieces = [layer(x[:, :4], **context, cache=cache), *(layer(x[:, i : i + 1], cache=cache) for i in (4, 5))]
    assert cache.dtype == torch.bfloat16
    assert_close(torch.cat(pieces, dim=1), expected(layer, **called, dtype=torch.bfloat16)[0], torch.bfloat16)


def test_autocast_leaves_float64_alone() -> None:
    layer, called = drawn(LAYERS["qk-norm"]), inputs(LAYERS["qk-norm"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = layer.new_cache(BATCH)
        output = layer(**called, cache=cache)
    assert cache.dtype == output.dtype == torch.float64
    assert_close(output, expected(layer, **called)[0], torch.float64)
