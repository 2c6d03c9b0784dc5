"""One's own arrays: what is taken, what is refused, and how each mechanism gets its shapes from them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import polyhead as ph
from polyhead.compare.inputs import (
    Cross,
    Fitted,
    Inputs,
    array_inputs,
    check_size,
    example_inputs,
    fit,
    fit_mechanism,
)
from polyhead.errors import ShapeError, SpecError, UnsupportedError
from polyhead.oracle import attend
from tests.compare.arrays import Array, draw, grouped, heads, inputs, latent

ONE = draw((5, 4), (5, 4), (5, 4))
MANY = heads()
DEFAULTS = ph.Settings()


def fitted(name: str, given: Inputs, **settings: Any) -> Fitted:
    return fit_mechanism(ph.mechanism(name), given, dataclasses.replace(DEFAULTS, **settings))


def run(f: Fitted, **positions: Any) -> tuple[Array, Array]:
    value = None if f.value is None else f.value[None]
    output, weights = attend(
        f.query[None], f.key[None], value, f.spec, params=f.params, return_weights=True, **positions
    )
    return output[0], weights[0]


def softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


# --- what is taken --------------------------------------------------------------------------------


def test_matrices_are_one_head() -> None:
    given = array_inputs(*ONE)
    assert given.base == grouped()
    assert given.tokens == ("0", "1", "2", "3", "4")
    assert (given.query.shape, given.cross, given.own) == ((1, 5, 4), None, None)


def test_stacks_of_matrices_are_heads_that_may_share_keys_and_values() -> None:
    given = array_inputs(*MANY)
    assert given.base == grouped(4, 8, num_kv_heads=2)
    np.testing.assert_array_equal(given.key, MANY[1])


def test_values_may_have_a_width_of_their_own() -> None:
    assert array_inputs(ONE[0], ONE[1], draw((5, 6))[0]).base == grouped(v_head_dim=6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint64, bool])
def test_any_real_numbers_are_taken_exactly(dtype: type) -> None:
    query, key, value = ((10 * np.abs(array)).astype(dtype) for array in ONE)
    given = array_inputs(query, key, value)
    for array, wanted in zip((given.query, given.key, given.value), (query, key, value), strict=True):
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array[0], wanted.astype(np.float64))


def test_lists_and_tensors_are_arrays_too() -> None:
    torch = pytest.importorskip("torch")
    ours = array_inputs(*(torch.tensor(array) for array in ONE))
    theirs = array_inputs(*(array.tolist() for array in ONE))
    np.testing.assert_array_equal(ours.query, theirs.query)


# --- what is refused ------------------------------------------------------------------------------


def with_item(array: Array, item: float) -> Array:
    changed = array.copy()
    changed[2, 1] = item
    return changed


REFUSED = {
    "a vector": (lambda q, k, v: (q[0], k, v), r"query has shape \[4\]; give \[len, width\] or \[heads, len, width\]"),
    "a batch": (lambda q, k, v: (q, k[None, None], v), r"key has shape \[1, 1, 5, 4\]; give \[len, width\]"),
    "no token": (lambda q, k, v: (q[:0], k[:0], v[:0]), r"query has shape \[0, 4\] and so is empty; give at least one"),
    "no width": (lambda q, k, v: (q, k, v[:, :0]), r"value has shape \[5, 0\] and so is empty"),
    "NaN": (lambda q, k, v: (q, with_item(k, np.nan), v), r"key is not finite at \[2, 1\]; a comparison needs numbers"),
    "inf": (lambda q, k, v: (q, k, with_item(v, -np.inf)), r"value is not finite at \[2, 1\]"),
    "huge": (lambda q, k, v: (q, with_item(k, -1e101), v), r"key holds 1e\+101, and products of numbers above 1e\+100"),
    "complex": (lambda q, k, v: (q * 1j, k, v), "query is not an array of real numbers: it is complex"),
    "words": (lambda q, k, v: (q, [["a"]], v), "key is not an array of real numbers: could not convert"),
    "ragged": (lambda q, k, v: ([[1.0], [1.0, 2.0]], k, v), "query is not an array of real numbers: setting an array"),
    "lengths": (lambda q, k, v: (q, k[:4], v), "query, key and value have 5, 4 and 5 tokens; make them equal"),
    "widths": (lambda q, k, v: (q, k[:, :3], v), "query has width 4 and key 3; make them equal"),
    "uneven heads": (
        lambda q, k, v: (np.stack([q] * 3), np.stack([k] * 2), np.stack([v] * 2)),
        "3 query, 2 key and 2 v",
    ),
    "key heads": (lambda q, k, v: (np.stack([q] * 2), k, np.stack([v] * 2)), "2 query, 1 key and 2 value heads do not"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_are_no_input(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ShapeError, match=message):
        array_inputs(*make(*ONE))


def test_a_tensor_with_a_gradient_says_how_to_detach_it() -> None:
    torch = pytest.importorskip("torch")
    query = torch.tensor(ONE[0], requires_grad=True)
    with pytest.raises(ShapeError, match=r"query is not an array of real numbers: .*detach\(\)"):
        array_inputs(query, ONE[1], ONE[2])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("abc", "there are 3 tokens for 5 positions; give one each"),
        (["a"] * 6, "there are 6 tokens for 5 positions"),
        (3, "tokens=3 is no list of names; give one for each position"),
        (np.array("abc"), "tokens=array.* is no list of names"),
    ],
)
def test_tokens_that_do_not_name_the_positions(tokens: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        array_inputs(*ONE, tokens=tokens)


def test_cross_queries_have_the_queries_shape() -> None:
    with pytest.raises(ShapeError, match=r"cross_query has shape \[1, 3, 4\] and query \[1, 5, 4\]; make them equal"):
        array_inputs(*ONE, cross_query=ONE[0][:3])
    with pytest.raises(ShapeError, match="cross_query is not finite"):
        array_inputs(*ONE, cross_query=with_item(ONE[0], np.nan))


def test_what_would_fill_the_memory_is_refused_before_it_is_computed() -> None:
    long = np.zeros((10_000, 1))
    with pytest.raises(ShapeError, match=r"10000 tokens and 1 heads make 100,000,000 weights.*at most 8192 tokens"):
        check_size(array_inputs(long, long, long))
    check_size(array_inputs(*(np.zeros((8192, 1)) for _ in range(3))))


# --- heads ----------------------------------------------------------------------------------------


def test_one_head_is_split_side_by_side() -> None:
    f = fit(grouped(2, 2), array_inputs(*ONE), DEFAULTS)
    for array, whole in zip((f.query, f.key, f.value), ONE, strict=True):
        np.testing.assert_array_equal(np.concatenate(list(array), axis=-1), whole)
    assert f.note == "width split into 2 heads"


def test_repeated_heads_change_nothing() -> None:
    given = inputs()
    f = fitted("mha", given)
    assert f.key.shape[0] == 4
    np.testing.assert_array_equal(f.key, given.key[[0, 0, 1, 1]])
    for ours, theirs in zip(run(f), run(fitted("scaled-dot-product", given)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)
    assert f.note == "2 key/value heads repeated to 4, which changes nothing"


@pytest.mark.parametrize(("groups", "members"), [(1, [[0, 1, 2, 3]]), (2, [[0, 1], [2, 3]])])
def test_pooled_heads_are_the_mean_or_the_first_of_their_group(groups: int, members: list[list[int]]) -> None:
    given = inputs(num_kv_heads=4)
    spec = grouped(4, 8, num_kv_heads=groups)
    mean = fit(spec, given, DEFAULTS)
    first = fit(spec, given, dataclasses.replace(DEFAULTS, shared_head="first"))
    for group, heads_of_it in enumerate(members):
        np.testing.assert_allclose(mean.value[group], given.value[heads_of_it].mean(axis=0), atol=1e-15)
        np.testing.assert_array_equal(first.key[group], given.key[heads_of_it[0]])
    assert mean.note == f"4 key/value heads averaged to {groups}"
    assert first.note == f"the first of every {4 // groups} key/value heads shared"


def test_heads_that_no_number_of_groups_gives() -> None:
    with pytest.raises(ShapeError, match="4 key/value heads cannot be pooled to 3; give a divisor of 4"):
        fit(grouped(6, 8, num_kv_heads=3), inputs(num_heads=12, num_kv_heads=4), DEFAULTS)
    with pytest.raises(ShapeError, match="width 4 does not split into 3 heads"):
        fit(grouped(3, 2), array_inputs(*ONE), DEFAULTS)


def test_widths_that_are_not_the_inputs() -> None:
    with pytest.raises(
        ShapeError, match=r"these inputs give query 1 heads of width 4, and .* needs 1 of width 8; change"
    ):
        fit(grouped(1, 8), array_inputs(*ONE), DEFAULTS)
    with pytest.raises(ShapeError, match=r"give value 1 heads of width 4, and .* needs 1 of width 3"):
        fit(grouped(v_head_dim=3), array_inputs(*ONE), DEFAULTS)


# --- two maps -------------------------------------------------------------------------------------

PARTIAL = ph.Rotary(rotary_dim=4)
ROTARIES = {
    "half": ph.Rotary(),
    "interleaved": ph.Rotary(pairs="interleaved"),
    "reversed": ph.Rotary(direction="reversed"),
    "partial": PARTIAL,
    "partial interleaved": ph.Rotary(rotary_dim=4, pairs="interleaved"),
    "yarn": ph.Rotary(scaling=ph.YarnScaling(factor=4.0, original_max_seq_len=64)),
    "dynamic": ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=64)),
}
WIDTHS = {
    "halves": (None, [0, 1, 2, 3], [4, 5, 6, 7]),
    "half": (ph.Rotary(), [0, 2, 4, 6], [1, 3, 5, 7]),  # planes 0-4, 1-5, 2-6, 3-7
    "interleaved": (ph.Rotary(pairs="interleaved"), [0, 1, 4, 5], [2, 3, 6, 7]),
    "partial": (PARTIAL, [0, 2, 4, 5], [1, 3, 6, 7]),  # planes 0-2, 1-3; of the rest, halves
}


@pytest.mark.parametrize("name", WIDTHS)
def test_which_widths_make_a_map(name: str) -> None:
    """Keys that hold the number of their width, at position 0, where nothing turns."""
    position, first, second = WIDTHS[name]
    given = inputs(position, length=1)
    given = dataclasses.replace(given, key=np.arange(8.0) + np.array([10.0, 20.0])[:, None, None])
    f = fitted("differential", given)
    rows = [[10 + i for i in first], [10 + i for i in second], [20 + i for i in first], [20 + i for i in second]]
    np.testing.assert_allclose(f.key[:, 0], rows)
    assert f.note == ("maps are the halves" if position is None else "maps are the even and odd planes of RoPE")


@pytest.mark.parametrize("name", ROTARIES)
def test_scores_of_the_two_maps_add_up_to_the_models_own(name: str) -> None:
    given = inputs(ROTARIES[name])
    f = fitted("differential", given)
    assert f.spec.position == ph.NoPosition()
    scores = np.einsum("hqd,hkd->hqk", f.query, np.concatenate([f.key[:2], f.key[:2], f.key[2:], f.key[2:]]))
    whole = softmax((scores[0::2] + scores[1::2]) * given.base.scale)
    _, weights = run(fitted("scaled-dot-product", given))
    np.testing.assert_allclose(whole, weights, rtol=0, atol=1e-12)


def test_diffllama_pairs_the_same_maps_in_its_own_order() -> None:
    given, zeros = inputs(num_kv_heads=4), np.zeros(4)
    params = dict.fromkeys(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"), zeros)
    paper, diffllama = (
        grouped(4, 4, v_head_dim=8, weighting=ph.Differential(form=form, lambda_init=0.5))
        for form in ("paper", "diffllama")
    )
    ours = run(fit(diffllama, given, DEFAULTS, dict(params)))[1]
    theirs = run(fit(paper, given, DEFAULTS, params | {"sub_norm": np.ones(8)}))[1]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-15)


@pytest.mark.parametrize("form", ["paper", "diffllama"])
def test_a_form_that_learns_stands_as_before_training(form: str) -> None:
    spec = grouped(1, 2, v_head_dim=4, weighting=ph.Differential(form=form, lambda_init=0.5))
    f = fit(spec, example_inputs(), DEFAULTS)
    assert set(f.params) == set(spec.parameter_shapes())
    assert f.note == "maps are the halves; λ is λ_init and the norm's weight 1, as before any training"
    zeros = {name: np.zeros(shape) for name, shape in spec.parameter_shapes().items()}
    given = fit(spec, example_inputs(), DEFAULTS, zeros | ({"sub_norm": np.ones(4)} if form == "paper" else {}))
    assert given.note == "maps are the halves"
    for ours, theirs in zip(run(f), run(given), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_head_that_does_not_halve() -> None:
    with pytest.raises(
        ShapeError, match=r"a head of width 6 does not halve evenly into two maps: .* RoPE planes, are odd"
    ):
        fitted("differential", inputs(ph.Rotary(), width=6))
    with pytest.raises(SpecError, match="a head of width 3 cannot be halved into two maps; it must be even"):
        fitted("differential", inputs(width=3))


def test_a_rank_that_would_fill_the_memory() -> None:
    with pytest.raises(ShapeError, match=r"kv_lora_rank=9999999 makes .* have at most rank 6, give that or less"):
        fit(latent(4, 9_999_999, 8, 8), inputs(), DEFAULTS)


# --- a latent -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["half", "interleaved", "partial", "yarn"])
@pytest.mark.parametrize("rank", [6, 9])
def test_a_latent_of_full_rank_loses_nothing(name: str, rank: int) -> None:
    """Six tokens have rank 6; a wider latent holds zeros."""
    given = inputs(ROTARIES[name], ph.Causal())
    f = fitted("mla", given, latent_rank=rank)
    assert (f.key.shape, f.value) == ((1, 6, rank), None)
    for ours, theirs in zip(run(f), run(fitted("scaled-dot-product", given)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_a_latent_by_itself_is_of_half_the_rank_and_says_what_it_keeps() -> None:
    given = inputs()
    f = fitted("mla", given)
    joint = np.concatenate([*given.key, *given.value], axis=-1)
    sizes = np.linalg.svd(joint, compute_uv=False)
    kept = (sizes[:3] ** 2).sum() / (sizes**2).sum()
    assert f.note == (
        f"joint SVD of keys and values at rank 3 of 6 keeps {kept:.1%} of their energy, 3 numbers per token for 32"
    )
    unfolded = np.concatenate(
        [*(f.key[0] @ f.params["w_uk"][[0, 2]].mT), *(f.key[0] @ f.params["w_uv"][[0, 2]].mT)], axis=-1
    )
    error = np.linalg.norm(joint - unfolded) ** 2
    assert error == pytest.approx((sizes[3:] ** 2).sum())  # the least that any rank 3 leaves, by Eckart and Young


def test_a_latent_and_two_maps_together() -> None:
    given = inputs(num_kv_heads=4)
    weighting = ph.Differential(form="clipped", lambda_init=0.5)
    whole = fit(grouped(4, 4, v_head_dim=8, weighting=weighting), given, DEFAULTS)
    compressed = fit(latent(4, 6, 4, 8, weighting=weighting), given, DEFAULTS)
    for ours, theirs in zip(run(compressed), run(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    assert compressed.note.endswith("; maps are the halves")


def test_zeros_have_a_latent_too() -> None:
    f = fitted("mla", array_inputs(*(np.zeros((3, 4)) for _ in range(3))))
    assert not run(f)[0].any()


def test_a_latent_with_a_rope_key_is_not_made_from_whole_keys() -> None:
    storage = ph.Latent(num_heads=1, kv_lora_rank=2, qk_nope_head_dim=2, qk_rope_head_dim=2, v_head_dim=4)
    spec = ph.AttentionSpec(storage=storage, position=ph.Rotary())
    with pytest.raises(
        ShapeError, match="a latent with a RoPE key cannot be made from whole keys; give qk_rope_head_dim=0"
    ):
        fit(spec, array_inputs(*ONE), DEFAULTS)


# --- another sequence, and a bias -----------------------------------------------------------------


def test_cross_attention_without_a_second_sequence_says_what_to_give() -> None:
    with pytest.raises(UnsupportedError, match="needs a second sequence: give cross_query, or a second text"):
        fitted("cross", array_inputs(*ONE))


@pytest.mark.parametrize("position", [ph.NoPosition(), ph.Rotary(), ph.Alibi()])
def test_a_second_sequence_of_another_length_is_seen_whole_and_counted_from_0(position: Any) -> None:
    """As if the queries stood at the beginning of the second sequence."""
    short, long = inputs(position, ph.Causal(), length=4), inputs(position, length=7)
    cross = Cross(short.query, long.key, long.value, long.tokens)
    f = fitted("cross", dataclasses.replace(short, cross=cross))
    assert (f.key_tokens, f.is_cross) == (long.tokens, True)
    ours = run(f, query_positions=np.arange(4), key_positions=np.arange(7))
    query = np.concatenate([short.query, long.query[:, 4:]], axis=1)
    theirs = run(fitted("scaled-dot-product", dataclasses.replace(long, query=query)))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other[:, :4], rtol=0, atol=1e-14)


def test_relative_bias_falls_by_half_a_unit_per_token() -> None:
    f = fitted("relative-bias", array_inputs(*ONE))
    bias = -0.5 * np.abs(np.arange(5)[:, None] - np.arange(5))
    np.testing.assert_allclose(run(f)[1][0], softmax(ONE[0] @ ONE[1].T / 2 + bias), atol=1e-14)
    assert f.note == "bias −0.5·|i − j|"
