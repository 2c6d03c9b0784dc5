"""`Attention` as a module: what it is made from, its state dict, how it is moved and kept, how its numbers begin."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

import polyhead as ph
from tests.inputs import spec as four_choices
from tests.layer.layers import BATCH, EMBED_DIM, LAYERS, ROPE, TOKENS, by_layer, drawn, expected, inputs, layer_spec
from tests.strategies import layers
from tests.tolerances import assert_close


@pytest.fixture(autouse=True)
def every_new_layer_is_the_same() -> None:
    torch.manual_seed(0)


# --- what it is made from


def test_a_layer_spec_is_taken_as_it_is() -> None:
    spec = LAYERS["cross"]
    assert ph.Attention(spec).spec is spec


def test_four_choices_and_a_width_make_the_plain_layer() -> None:
    choices = four_choices("gqa", **ROPE)
    layer = ph.Attention(choices, embed_dim=EMBED_DIM)
    assert layer.spec == ph.LayerSpec(attention=choices, embed_dim=EMBED_DIM)
    assert layer(torch.ones(1, 3, EMBED_DIM)).shape == (1, 3, EMBED_DIM)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no width": (lambda: ph.Attention(four_choices("gqa")), ph.SpecError, r"give embed_dim=, or a LayerSpec"),
    "two widths": (
        lambda: ph.Attention(LAYERS["mha"], embed_dim=8),
        ph.SpecError,
        r"embed_dim=8 is given beside a LayerSpec, which has 12; leave it out",
    ),
    "a name": (lambda: ph.Attention("gqa", embed_dim=8), ph.SpecError, r"attention='gqa' is not an AttentionSpec"),
    "always dropping": (lambda: ph.Attention(LAYERS["mha"], dropout_p=1.0), ph.ShapeError, r"dropout_p=1.0 is not a"),
    "a negative chance": (lambda: ph.Attention(LAYERS["mha"], dropout_p=-0.1), ph.ShapeError, r"dropout_p=-0.1 is no"),
    "no chance": (lambda: ph.Attention(LAYERS["mha"], dropout_p=math.nan), ph.ShapeError, r"give 0 ≤ dropout_p < 1"),
}


@pytest.mark.parametrize(("build", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_layer_is_refused(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


# --- its state dict


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@by_layer
def test_the_state_dict_is_the_specs_table_and_nothing_else(spec: ph.LayerSpec) -> None:
    layer = ph.Attention(spec)
    assert shapes(layer.state_dict()) == spec.parameter_shapes()
    assert not list(layer.buffers())
    assert all(parameter.requires_grad for parameter in layer.parameters())


@given(layers())
def test_any_legal_layer_has_the_specs_table(spec: ph.LayerSpec) -> None:
    assert shapes(ph.Attention(spec).state_dict()) == spec.parameter_shapes()


def test_qkv_bias_of_a_latent_layer_is_on_the_projections_into_a_latent_alone() -> None:
    """As in DeepSeek, whose ``q_proj`` has no bias whatever ``attention_bias`` says."""
    layer = ph.Attention(layer_spec(ROPE, "mla", qkv_bias=True))
    assert [name for name in layer.state_dict() if name.endswith(".bias")] == ["kv_a_proj.bias"]


def test_a_printed_layer_shows_its_spec_and_its_parts() -> None:
    for spec in LAYERS.values():
        text = repr(ph.Attention(spec))
        assert repr(spec) in text
        assert "(o_proj): Linear(" in text


# --- device and dtype


@by_layer
def test_on_the_meta_device_there_are_no_numbers_and_the_shapes_come_out(spec: ph.LayerSpec) -> None:
    layer = ph.Attention(spec, device="meta")
    assert all(parameter.is_meta for parameter in layer.parameters())
    given = {name: x.to("meta") for name, x in inputs(spec, torch.float32).items()}
    output, weights = layer(**given, return_weights=True)
    assert output.is_meta
    assert output.shape == layer(**given).shape == (BATCH, TOKENS, EMBED_DIM)
    assert weights.shape == (BATCH, 4, TOKENS, given.get("context", given["x"]).shape[1])


@by_layer
def test_a_layer_from_the_meta_device_is_filled_by_reset_parameters(spec: ph.LayerSpec) -> None:
    layer = ph.Attention(spec, device="meta").to_empty(device="cpu")
    assert not any(parameter.isfinite().any() for parameter in layer.parameters()), "new memory is NaN under test"
    other = ph.Attention(spec)
    for one in (layer, other):
        torch.manual_seed(0)
        one.reset_parameters()
    assert_equal_numbers(layer, other)


@by_layer
def test_a_layer_is_made_in_the_dtype_asked_for(spec: ph.LayerSpec) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        layer = ph.Attention(spec, dtype=dtype)
        assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
        assert layer(**inputs(spec, dtype)).dtype == dtype


@by_layer
def test_a_layer_moved_to_a_dtype_computes_in_it(spec: ph.LayerSpec) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        layer, given = drawn(spec, torch.float32).to(dtype), inputs(spec, dtype)
        output = layer(**given)
        assert output.dtype == dtype
        assert_close(output, expected(layer, **given, dtype=dtype)[0], dtype)


# --- copies and files


def assert_equal_numbers(ours: ph.Attention, theirs: ph.Attention) -> None:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


KEPT: dict[str, Callable[[ph.Attention], ph.Attention]] = {
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
@by_layer
def test_a_copy_is_the_same_layer_and_its_own(spec: ph.LayerSpec, keep: Callable[[Any], Any]) -> None:
    layer, given = drawn(spec, dropout_p=0.5), inputs(spec)
    twin = keep(layer)
    assert (twin.spec, twin.dropout_p, twin.training) == (spec, 0.5, False)
    assert_equal_numbers(twin, layer)
    output = layer(**given)
    assert torch.equal(twin(**given), output)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(layer(**given), output)
    assert not torch.equal(twin(**given), output)


@by_layer
def test_a_saved_state_dict_makes_another_layer_the_same(spec: ph.LayerSpec, tmp_path: Path) -> None:
    layer, other = drawn(spec), ph.Attention(spec, dtype=torch.float64)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    loaded = other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True), strict=True)
    assert not loaded.missing_keys
    assert not loaded.unexpected_keys
    assert torch.equal(other(**inputs(spec)), layer(**inputs(spec)))


# --- how its numbers begin


@by_layer
def test_norms_begin_at_one_and_biases_and_sinks_at_zero(spec: ph.LayerSpec) -> None:
    for name, parameter in ph.Attention(spec).named_parameters():
        if name.endswith("_norm.weight") or name == "sub_norm":
            assert parameter.eq(1.0).all(), name
        elif name.endswith(".bias") or name == "sinks":
            assert parameter.eq(0.0).all(), name
        else:
            assert parameter.abs().min() > 0.0, f"{name} is drawn"


MANY = ph.Grouped(num_heads=64, num_kv_heads=1, head_dim=2)
NORMAL = {
    "T5": (MANY, {"position": ph.RelativeBias.t5(num_buckets=128, max_distance=999)}, "bias_table", 16**-0.5),
    "clipped": (MANY, {"position": ph.RelativeBias.clipped(max_distance=64)}, "bias_table", 16**-0.5),
    **{
        name: (ph.Grouped(num_heads=1, head_dim=4096), {"weighting": ph.Differential()}, name, 0.1)
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
    },
}


@pytest.mark.parametrize(("storage", "choices", "name", "deviation"), NORMAL.values(), ids=NORMAL)
def test_tables_and_lambda_vectors_begin_normal(
    storage: ph.Grouped, choices: dict[str, Any], name: str, deviation: float
) -> None:
    layer = ph.Attention(ph.AttentionSpec(storage=storage, **choices), embed_dim=16)
    numbers = getattr(layer, name).double() / deviation
    assert_moments(numbers, moments=[0.0, 1.0, 0.0, 3.0], variances=[1.0, 2.0, 15.0, 96.0])


SHAW = ph.RelativeBias.shaw(max_distance=50)
DRAWN_UNIFORM = {
    "grouped": (
        ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=32, v_head_dim=20),
        SHAW,
        {
            "q_proj.weight": (48, 128),
            "k_proj.weight": (48, 64),
            "v_proj.weight": (48, 40),
            "o_proj.weight": (80, 48),
            "relative_keys": (32, 101),
            "relative_values": (20, 101),
        },
    ),
    "latent": (
        ph.Latent(
            num_heads=4, kv_lora_rank=24, q_lora_rank=40, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=20
        ),
        ph.Rotary(),
        {
            "q_a_proj.weight": (48, 40),
            "q_b_proj.weight": (40, 4 * 48),
            "kv_a_proj.weight": (48, 40),
            "o_proj.weight": (80, 48),
            "w_uk": (24, 4 * 32),  # of all heads together, as the one projection that DeepSeek has
            "w_uv": (24, 4 * 20),
        },
    ),
}


@pytest.mark.parametrize(("storage", "position", "fans"), DRAWN_UNIFORM.values(), ids=DRAWN_UNIFORM)
def test_projections_begin_xavier_uniform(storage: Any, position: Any, fans: dict[str, tuple[int, int]]) -> None:
    layer = ph.Attention(ph.AttentionSpec(storage=storage, position=position), embed_dim=48)
    drawn = {name: parameter for name, parameter in layer.named_parameters() if not name.endswith("_norm.weight")}
    assert drawn.keys() == fans.keys()
    for name, parameter in drawn.items():
        numbers = parameter.double() / math.sqrt(6.0 / sum(fans[name]))
        assert numbers.abs().max() <= 1.0 + torch.finfo(torch.float32).eps, name
        assert_moments(numbers, moments=[0.0, 1 / 3, 0.0, 1 / 5], variances=[1 / 3, 4 / 45, 1 / 7, 16 / 225])


def assert_moments(numbers: Tensor, *, moments: list[float], variances: list[float]) -> None:
    """Assert that the mean of each power lies within five standard errors of its moment."""
    for power, (moment, variance) in enumerate(zip(moments, variances, strict=True), start=1):
        error = (numbers**power).mean() - moment
        assert error.abs() < 5 * math.sqrt(variance / numbers.numel()), f"power {power}"


def test_parameters_of_one_shape_begin_differently() -> None:
    layer = ph.Attention(LAYERS["paper"])
    for one, other in [("k_proj.weight", "v_proj.weight"), ("lambda_q1", "lambda_k1"), ("lambda_q1", "lambda_q2")]:
        assert not torch.equal(layer.get_parameter(one), layer.get_parameter(other))


@by_layer
def test_a_seed_makes_the_same_layer_again(spec: ph.LayerSpec) -> None:
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(ph.Attention(spec))
    assert_equal_numbers(made[0], made[1])
    assert not torch.equal(made[0].o_proj.weight, made[2].o_proj.weight)


@by_layer
def test_reset_parameters_draws_every_number_anew(spec: ph.LayerSpec) -> None:
    layer = drawn(spec, torch.float32)
    before = copy.deepcopy(layer)
    layer.reset_parameters()
    for name, parameter in layer.named_parameters():
        assert parameter.requires_grad
        assert not (parameter == before.get_parameter(name)).any(), name


def test_reset_parameters_reaches_tensors_that_are_not_contiguous() -> None:
    """As W_UK and W_UV are that were cut out of DeepSeek's one projection and assigned."""
    layer = ph.Attention(LAYERS["latent"])
    w_uk, w_uv = torch.full((4, 4 + 5, 6), 7.0).split([4, 5], dim=1)
    layer.load_state_dict({**layer.state_dict(), "w_uk": w_uk, "w_uv": w_uv}, assign=True)
    assert not layer.w_uk.is_contiguous()
    layer.reset_parameters()
    assert not (layer.w_uk == 7.0).any()
    assert not (layer.w_uv == 7.0).any()
