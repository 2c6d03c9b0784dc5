"""`Attention.forward` against its definition: projections, norms, positions, padding, packed sequences, edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import polyhead as ph
from tests.layer.layers import (
    BATCH,
    CONTEXT_TOKENS,
    GIVEN,
    LAYERS,
    TOKENS,
    by_cross,
    by_layer,
    by_self,
    drawn,
    expected,
    inputs,
    layer_spec,
    mask,
    normal,
)
from tests.tolerances import assert_close

# --- the definition


def check_against_definition(spec: ph.LayerSpec, given: dict[str, Tensor]) -> None:
    for dtype in (torch.float64, torch.float32):
        layer, called = drawn(spec, dtype), inputs(spec, dtype)
        output, weights = expected(layer, **called, **given)
        assert_close(layer(**called, **given), output, dtype)
        beside, ours = layer(**called, **given, return_weights=True)
        assert_close(beside, output, dtype, what="output beside weights")
        assert_close(ours, weights, dtype, what="weights")


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@by_self
def test_self_attention_is_projections_around_the_oracle(spec: ph.LayerSpec, given: dict[str, Tensor]) -> None:
    check_against_definition(spec, given)


@pytest.mark.parametrize("given", [{}, {"key_mask": mask(CONTEXT_TOKENS)}], ids=["x-alone", "key-mask"])
@by_cross
def test_cross_attention_is_projections_around_the_oracle(spec: ph.LayerSpec, given: dict[str, Tensor]) -> None:
    check_against_definition(spec, given)


@by_self
def test_positions_count_from_0_where_none_are_given(spec: ph.LayerSpec) -> None:
    layer, called = drawn(spec), inputs(spec)
    for shape in ((TOKENS,), (BATCH, TOKENS)):
        assert_close(layer(**called, positions=torch.arange(TOKENS).expand(shape)), layer(**called), torch.float64)


@pytest.mark.parametrize(("tokens", "context_tokens"), [(3, 5), (5, 3), (4, 4), (1, 4)])
def test_cross_attention_counts_each_sequence_from_0(tokens: int, context_tokens: int) -> None:
    """A causal cross-attention lets token i see the context up to i, however long either is."""
    spec = LAYERS["cross"]
    called = inputs(spec, tokens=tokens, context_tokens=context_tokens)
    _, weights = drawn(spec)(**called, return_weights=True)
    seen = torch.arange(context_tokens) <= torch.arange(tokens)[:, None]
    assert torch.equal(weights > 0, seen.expand_as(weights))


# --- padding


LENGTHS = [TOKENS, 3, 0, 1]
PADDING = torch.arange(TOKENS) >= torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("as_given", [list, tuple, torch.tensor], ids=["list", "tuple", "tensor"])
def test_lengths_come_as_a_list_a_tuple_or_a_tensor(as_given: Callable[[Any], Any]) -> None:
    spec = LAYERS["grouped"]
    layer, called = drawn(spec), inputs(spec, batch=len(LENGTHS))
    assert torch.equal(
        layer(**called, lengths=as_given(LENGTHS)), layer(**called, key_mask=~PADDING) * ~PADDING[..., None]
    )


@by_self
def test_each_sequence_comes_out_as_if_alone_and_padding_as_0(spec: ph.LayerSpec) -> None:
    """Whatever padding holds, NaN included."""
    layer, x = drawn(spec), inputs(spec, batch=len(LENGTHS))["x"]
    for padding in (0.0, 1e6, torch.nan):
        output = layer(x.masked_fill(PADDING[..., None], padding), lengths=LENGTHS)
        for row, length in enumerate(LENGTHS):
            alone = layer(x[row : row + 1, :length])
            assert_close(output[row : row + 1, :length], alone, torch.float64, what=f"sequence {row}")
            assert output[row, length:].eq(0.0).all()


@by_self
def test_padding_gets_no_gradient_and_gives_none(spec: ph.LayerSpec) -> None:
    layer, x = drawn(spec), inputs(spec, batch=len(LENGTHS), requires_grad=True)["x"]
    cotangent = normal(*x.shape, seed=1)
    wrt = [x, *layer.parameters()]
    together = torch.autograd.grad(layer(x, lengths=LENGTHS), wrt, cotangent)
    assert together[0][PADDING].eq(0.0).all()
    alone = (
        (layer(x[row : row + 1, :length]) * cotangent[row : row + 1, :length]).sum()
        for row, length in enumerate(LENGTHS)
    )
    for ours, theirs in zip(together, torch.autograd.grad(sum(alone), wrt), strict=True):
        assert_close(ours, theirs, torch.float64, what="gradient")


@by_self
def test_lengths_and_a_key_mask_both_hold(spec: ph.LayerSpec) -> None:
    layer, called, lengths = drawn(spec), inputs(spec), [TOKENS, 4]
    key_mask = torch.tensor([[True, False, True, True, False, True], [False, True, True, True, True, True]])
    real = torch.arange(TOKENS) < torch.tensor(lengths)[:, None]
    output, _ = expected(layer, **called, key_mask=(key_mask & real).numpy())
    ours = layer(**called, key_mask=key_mask, lengths=lengths)
    assert_close(ours, output * real[..., None].numpy(), torch.float64)


@by_cross
def test_lengths_of_cross_attention_are_those_of_x(spec: ph.LayerSpec) -> None:
    layer, called = drawn(spec), inputs(spec, batch=len(LENGTHS))
    padded = {**called, "x": called["x"].masked_fill(PADDING[..., None], torch.nan)}
    whole = layer(**called).masked_fill(PADDING[..., None], 0.0)
    assert_close(layer(**padded, lengths=LENGTHS), whole, torch.float64)


def test_a_pattern_that_counts_from_the_end_is_refused_padding() -> None:
    spec = layer_spec({"pattern": ph.Global(first=0, last=1) | ph.SlidingWindow.causal(2)})
    layer, x = drawn(spec), inputs(spec)["x"]
    with pytest.raises(ph.UnsupportedError, match=r"lengths: pattern=Global\(first=0, last=1\).* counts the padding"):
        layer(x, lengths=[TOKENS, 3])
    assert_close(layer(x, lengths=[TOKENS, TOKENS]), layer(x), torch.float64)


# --- packed sequences


@by_self
def test_packed_sequences_come_out_as_if_alone(spec: ph.LayerSpec) -> None:
    layer, x = drawn(spec), inputs(spec, batch=1, tokens=7)["x"]
    segments, positions = torch.tensor([[5, 5, 5, 2, 2, 2, 2]]), torch.tensor([0, 1, 2, 0, 1, 2, 3])
    packed = layer(x, segments=segments, positions=positions)
    assert_close(packed, torch.cat([layer(x[:, :3]), layer(x[:, 3:])], dim=1), torch.float64)


# --- kernels and weights


@pytest.mark.parametrize(
    ("kernel", "name"), [("dense", "grouped"), ("plain", "grouped"), ("linear", "linear"), ("absorbed", "latent")]
)
def test_a_kernel_can_be_asked_for(kernel: str, name: str) -> None:
    layer, called = drawn(LAYERS[name]), inputs(LAYERS[name])
    assert_close(layer(**called, kernel=kernel), expected(layer, **called)[0], torch.float64)


def test_a_kernel_that_does_not_take_the_layer_is_refused() -> None:
    layer, called = drawn(LAYERS["grouped"]), inputs(LAYERS["grouped"])
    with pytest.raises(ph.UnsupportedError, match=r"kernel='absorbed' does not run this: there is no latent"):
        layer(**called, kernel="absorbed")
    with pytest.raises(ph.UnknownNameError, match=r"no kernel is called 'plane'; did you mean plain"):
        layer(**called, kernel="plane")


# --- layouts and edges

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "width outermost": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "tokens outermost": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every second": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "cut from a longer one": lambda x: torch.cat([x, x.new_full(x.shape, torch.nan)], dim=1)[:, : x.shape[1]],
}


@by_layer
def test_the_layout_in_memory_makes_no_difference(spec: ph.LayerSpec) -> None:
    layer, called = drawn(spec), inputs(spec)
    output, _ = expected(layer, **called)
    for name, layout in LAYOUTS.items():
        laid = {which: layout(x) for which, x in called.items()}
        assert not laid["x"].is_contiguous()
        assert_close(layer(**laid), output, torch.float64, what=name)


@by_layer
def test_what_is_given_is_not_changed(spec: ph.LayerSpec) -> None:
    layer, called = drawn(spec), inputs(spec)
    before = {name: x.clone() for name, x in called.items()}
    key_mask = mask(CONTEXT_TOKENS if spec.source == "cross" else TOKENS)
    mask_before = key_mask.clone()
    layer(**called, key_mask=key_mask, lengths=[4, 2])
    assert torch.equal(key_mask, mask_before)
    assert all(torch.equal(called[name], before[name]) for name in called)


FEW: dict[str, dict[str, int]] = {
    "no sequence": {"batch": 0},
    "no token": {"tokens": 0},
    "one token": {"tokens": 1},
    "no context": {"context_tokens": 0},
    "nothing": {"batch": 0, "tokens": 0, "context_tokens": 0},
}


@by_layer
def test_few_and_no_tokens_are_ordinary(spec: ph.LayerSpec) -> None:
    for name, sizes in FEW.items():
        layer, called = drawn(spec), inputs(spec, **sizes, requires_grad=True)
        output, weights = layer(**called, return_weights=True)
        for ours, theirs in zip((output, weights), expected(layer, **called), strict=True):
            assert_close(ours, theirs, torch.float64, what=name)
        output.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in layer.parameters()), name
