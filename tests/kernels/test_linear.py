"""Running sums: the same function as the score matrix's, at a memory and work that grow with the length alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels import checks, linear
from polyhead.kernels.common import Call, prepared
from polyhead.position import rotary
from tests.inputs import INPUTS, Inputs, spec
from tests.kernels.watch import NothingAsLargeAs, multiplications
from tests.tolerances import assert_close
from tests.walk import walk

MAPS = ("elu+1", "relu", "softplus")
PATTERNS = {"full": ph.Full(), "causal": ph.Causal()}
POSITIONS = {
    "nowhere": ph.NoPosition(),
    "half": ph.Rotary(theta=50.0),
    "interleaved": ph.Rotary(theta=50.0, pairs="interleaved"),
}
by_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
by_position = pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
by_map = pytest.mark.parametrize("feature_map", MAPS)
STORAGES = ("mha", "gqa", "mla")
by_storage = pytest.mark.parametrize("storage", STORAGES)


def draw(seed: int, storage: str = "gqa", feature_map: str = "elu+1", **more: Any) -> Inputs:
    """Draw inputs; what is no length is a choice."""
    lengths = {name: more.pop(name) for name in ("batch", "q_len", "kv_len") if name in more}
    return Inputs.draw(spec(storage, weighting=ph.Linear(feature_map=feature_map), **more), seed, **lengths)


def masked(inputs: Inputs) -> Inputs:
    """Mask some keys: of the first sequence the first one among them, of the second all."""
    mask = np.random.default_rng(0).random((2, inputs.learned["key"].shape[2])) < 0.7
    mask[0, 0], mask[1] = False, False
    return inputs.giving(key_mask=mask)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CHUNK", 4)


@pytest.mark.usefixtures("small_chunks")
@walk("storage, feature_map, position, pattern", STORAGES, MAPS, POSITIONS, PATTERNS)
def test_sums_give_what_the_score_matrix_gives(storage: str, feature_map: str, position: Any, pattern: Any) -> None:
    for q_len, kv_len in [(1, 1), (4, 4), (9, 9), (1, 9), (3, 12), (8, 9)]:
        inputs = draw(q_len, storage, feature_map, position=position, pattern=pattern, q_len=q_len, kv_len=kv_len)
        for case in (inputs, masked(inputs)):
            output = case.attend(torch.float64, kernel="linear")
            assert_close(output, case.oracle(), torch.float64)
            assert_close(output, case.attend(torch.float64, kernel="plain"), torch.float64, what="beside plain")


@by_pattern
def test_more_queries_than_keys_and_positions_of_their_own_are_nothing_to_a_full_sum(pattern: Any) -> None:
    inputs = draw(0, position=POSITIONS["half"], pattern=pattern, q_len=7, kv_len=3)
    for case in (inputs, inputs.giving(query_positions=np.array([5, 0, 9, 9, 2, 1, 30]))):
        if pattern == ph.Full():
            assert_close(case.attend(torch.float64, kernel="linear"), case.oracle(), torch.float64)
        else:
            with pytest.raises(ph.UnsupportedError, match="these positions need not"):
                case.attend(torch.float64, kernel="linear")


@pytest.mark.parametrize("before", [0, 66])
@pytest.mark.parametrize("q_len", [1, 63, 64, 65, 150])
@by_position
def test_nothing_is_lost_or_seen_twice_where_chunks_meet(position: Any, q_len: int, before: int) -> None:
    assert linear.CHUNK == 64
    inputs = draw(1, position=position, pattern=ph.Causal(), batch=1, q_len=q_len, kv_len=before + q_len)
    tensors = inputs.tensors(torch.float64)
    assert_close(inputs.attend(tensors, kernel="linear"), inputs.attend(tensors, kernel="plain"), torch.float64)


@by_pattern
@by_position
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_as_near_as_its_rounding_allows(dtype: torch.dtype, position: Any, pattern: Any) -> None:
    inputs = draw(2, position=position, pattern=pattern, q_len=40, kv_len=50).rounded(dtype)
    output = inputs.attend(dtype, kernel="linear")
    assert output.dtype == dtype
    assert_close(output, inputs.oracle(), dtype)


@pytest.mark.parametrize("feature_map", ["elu+1", "softplus"])
@pytest.mark.parametrize("kernel", ["linear", "plain"])
def test_small_features_weigh_as_exactly_as_large_ones(kernel: str, feature_map: str) -> None:
    """A query whose numbers all lie far below zero has features of one millionth, and they still have proportions."""
    inputs = draw(2, feature_map=feature_map)
    inputs = inputs.changing(query=inputs.learned["query"] - 15.0)
    assert_close(inputs.attend(torch.float32, kernel=kernel), inputs.oracle(), torch.float32)


@pytest.mark.usefixtures("small_chunks")
@by_pattern
@by_position
@by_map
@pytest.mark.parametrize("storage", ["gqa", "mla"])
def test_gradients_are_the_score_matrix_s(storage: str, feature_map: str, position: Any, pattern: Any) -> None:
    inputs = masked(draw(3, storage, feature_map, position=position, pattern=pattern, q_len=6, kv_len=9))
    cotangent = torch.randn(2, 4, 6, inputs.spec.v_head_dim, dtype=torch.float64)
    found = {}
    for kernel in ("plain", "linear"):
        leaves = inputs.tensors(torch.float64, requires_grad=True)
        grads = torch.autograd.grad(inputs.attend(leaves, kernel=kernel), list(leaves.values()), cotangent)
        found[kernel] = dict(zip(leaves, grads, strict=True))
    for name, expected in found["plain"].items():
        assert_close(found["linear"][name], expected, torch.float64, what=name)


# --- nothing to divide by


@pytest.mark.usefixtures("small_chunks")
@by_pattern
@by_position
def test_a_denominator_of_zero_gives_zeros_and_harms_no_gradient(position: Any, pattern: Any) -> None:
    """With relu the features of query and keys may have no width in common, though RoPE would turn them together."""
    inputs = draw(4, feature_map="relu", position=position, pattern=pattern, q_len=9, kv_len=9)
    query, key = (np.abs(inputs.learned[name]) for name in ("query", "key"))
    query[..., :4] *= -1
    key[..., 4:] *= -1
    key[:, :, 6] = 1.0  # the one key that a query meets
    inputs = inputs.changing(query=query, key=key)
    leaves = inputs.tensors(torch.float64, requires_grad=True)
    output = inputs.attend(leaves, kernel="linear")
    assert_close(output, inputs.oracle(), torch.float64)
    assert [bool(row.any()) for row in output.movedim(2, 0)] == [pattern == ph.Full() or row >= 6 for row in range(9)]
    output.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


@by_pattern
def test_a_row_without_a_key_is_zeros_with_zero_gradients(pattern: Any) -> None:
    inputs = masked(draw(5, pattern=pattern, q_len=5, kv_len=5))
    leaves = inputs.tensors(torch.float64, requires_grad=True)
    output = inputs.attend(leaves, kernel="linear")
    assert (output[1] == 0).all()
    assert (output[0, :, 0] == 0).all() == (pattern == ph.Causal())
    output.sum().backward()
    for name in INPUTS:
        assert (leaves[name].grad[1] == 0).all(), name
        assert leaves[name].grad[0].isfinite().all(), name


@by_pattern
@by_position
@pytest.mark.parametrize(("batch", "q_len", "kv_len"), [(0, 3, 4), (2, 0, 4), (2, 0, 0), (0, 0, 0), (2, 3, 0)])
@pytest.mark.parametrize("storage", ["gqa", "mla"])
def test_empty_sequences(storage: str, batch: int, q_len: int, kv_len: int, position: Any, pattern: Any) -> None:
    inputs = draw(6, storage, position=position, pattern=pattern, batch=batch, q_len=q_len, kv_len=kv_len)
    leaves = inputs.tensors(torch.float64, requires_grad=True)
    output = inputs.attend(leaves, kernel="linear" if pattern == ph.Full() or q_len <= kv_len else "auto")
    assert output.shape == (batch, 4, q_len, inputs.spec.v_head_dim)
    assert (output == 0).all()
    output.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


# --- numbers that are none


@pytest.mark.usefixtures("small_chunks")
@by_pattern
@by_position
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["key", "value"])
def test_what_is_not_finite_reaches_the_rows_that_may_see_it_and_no_other(
    name: str, bad: float, position: Any, pattern: Any
) -> None:
    inputs = draw(7, position=position, pattern=pattern, q_len=6, kv_len=9)
    planted = inputs.learned[name].copy()
    planted[0, 1, 5, 2] = bad  # the third query sees it first; heads 2 and 3 read these keys
    output = inputs.changing(**{name: planted}).attend(torch.float64, kernel="linear")
    hit = np.zeros(output.shape, dtype=bool)
    widths = slice(None) if name == "key" else 2
    hit[0, 2:, (2 if pattern == ph.Causal() else 0) :, widths] = True
    assert (~output.isfinite().numpy() == hit).all()
    assert_close(output.numpy()[~hit], inputs.oracle()[~hit], torch.float64)


@by_pattern
def test_what_is_not_finite_in_a_latent_spoils_the_rows_that_see_it(pattern: Any) -> None:
    inputs = draw(8, "mla", pattern=pattern, q_len=4, kv_len=4)
    planted = inputs.learned["key"].copy()
    planted[1, 0, 2, 0] = np.nan
    output = inputs.changing(key=planted).attend(torch.float64, kernel="linear")
    first = 2 if pattern == ph.Causal() else 0
    assert output[1, :, first:].isnan().all()
    assert_close(output[0], inputs.oracle()[0], torch.float64)
    assert_close(output[1, :, :first], inputs.oracle()[1, :, :first], torch.float64)


@by_pattern
@pytest.mark.parametrize("name", ["key", "value"])
def test_a_masked_key_that_is_no_number_is_seen_by_nobody(name: str, pattern: Any) -> None:
    mask = np.array([[True, False, True, True, True]] * 2)
    inputs = draw(9, pattern=pattern, position=ph.Rotary()).giving(key_mask=mask)
    planted = inputs.learned[name].copy()
    planted[:, :, 1] = np.nan
    leaves = inputs.changing(**{name: planted}).tensors(torch.float64, requires_grad=True)
    output = inputs.attend(leaves, kernel="linear")
    assert_close(output, inputs.oracle(), torch.float64)
    output.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


def test_a_gradient_beside_a_nan_that_no_row_may_see_is_finite() -> None:
    inputs = draw(10, pattern=ph.Causal(), q_len=5, kv_len=5)
    planted = {name: inputs.learned[name].copy() for name in ("key", "value")}
    for array in planted.values():
        array[:, :, 4] = np.nan
    found = []
    for case in (inputs, inputs.changing(**planted)):
        leaves = case.tensors(torch.float64, requires_grad=True)
        case.attend(leaves, kernel="linear")[:, :, :4].sum().backward()
        found.append({name: leaf.grad for name, leaf in leaves.items()})
    for name, expected in found[0].items():
        assert_close(found[1][name], expected, torch.float64, what=name)


# --- positions, and sums from before


def call(inputs: Inputs, first: int = 0, tokens: slice = slice(None)) -> Call:
    """Return a prepared call of some of the tokens, standing from a position on."""
    tensors = inputs.tensors(torch.float64)
    given = {name: tensors[name][:, :, tokens] if name in tensors else None for name in INPUTS}
    params = {name: tensor for name, tensor in tensors.items() if name not in INPUTS}
    mask = inputs.given.get("key_mask")
    mask = None if mask is None else torch.tensor(mask)[:, tokens]
    asked = checks.checked_call(given, inputs.spec, params=params, key_mask=mask)
    places = {name: getattr(asked, name) + first for name in ("query_positions", "key_positions")}
    return prepared(asked._replace(**places))


@by_pattern
@by_position
def test_positions_far_from_zero_change_nothing(position: Any, pattern: Any) -> None:
    inputs = draw(11, position=position, pattern=pattern, q_len=9, kv_len=9)
    output, _ = linear.run(call(inputs, first=1_000_000))
    assert_close(output, inputs.oracle(), torch.float64)


@pytest.mark.usefixtures("small_chunks")
@by_position
@pytest.mark.parametrize("split", [0, 1, 5, 9, 10])
@pytest.mark.parametrize("storage", ["gqa", "mla"])
@pytest.mark.parametrize("mask", [False, True])
def test_what_came_before_may_come_as_sums(storage: str, split: int, position: Any, mask: bool) -> None:
    inputs = draw(12, storage, position=position, pattern=ph.Causal(), q_len=10, kv_len=10)
    inputs = masked(inputs) if mask else inputs
    later = call(inputs, first=split, tokens=slice(split, None))
    case = later.case._replace(aligned=False, state=True)
    state = linear.sums(call(inputs, tokens=slice(split)))
    output, weights = linear.run(later._replace(case=case, state=state))
    assert weights is None
    assert_close(output, inputs.oracle()[:, :, split:], torch.float64)


@by_position
def test_of_the_two_sums_the_one_with_values_is_over_turned_features(position: Any) -> None:
    inputs = masked(draw(13, position=position, pattern=ph.Causal()))
    tensors = inputs.tensors(torch.float64)
    seen = torch.tensor(inputs.given["key_mask"])[:, None, :, None]
    features = (torch.nn.functional.elu(tensors["key"]) + 1) * seen
    turned = features
    if position != ph.NoPosition():
        turned = rotary.rotate(features, torch.arange(5)[None], inputs.spec, start=0)
    with_values, alone = linear.sums(call(inputs))
    assert_close(with_values, turned.mT @ tensors["value"], torch.float64)
    assert_close(alone, features.sum(dim=2), torch.float64)


# --- memory and work


LENGTH = 4096


@by_pattern
@by_position
def test_no_tensor_has_an_element_for_each_pair(position: Any, pattern: Any) -> None:
    inputs = draw(14, position=position, pattern=pattern, batch=1, q_len=LENGTH, kv_len=LENGTH)
    leaves = inputs.tensors(torch.float32, requires_grad=True)
    with NothingAsLargeAs(LENGTH * LENGTH // 4) as watch:
        inputs.attend(leaves).square().sum().backward()
    assert watch.operations
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


def test_the_plain_kernel_has_one() -> None:
    inputs = draw(14, pattern=ph.Causal(), batch=1, q_len=LENGTH, kv_len=LENGTH)
    with pytest.raises(AssertionError, match=r"makes a tensor .*4096, 4096"), NothingAsLargeAs(LENGTH * LENGTH // 4):
        inputs.attend(torch.float32, kernel="plain")


@by_pattern
@pytest.mark.parametrize(("kernel", "grows"), [("linear", False), ("plain", True)])
def test_a_token_costs_the_same_however_many_came_before_it(pattern: Any, kernel: str, grows: bool) -> None:
    def work(tokens: int) -> int:
        inputs = draw(15, position=ph.Rotary(), pattern=pattern, batch=1, q_len=tokens, kv_len=tokens)
        leaves = inputs.tensors(torch.float32, requires_grad=True)
        return multiplications(lambda: inputs.attend(leaves, kernel=kernel).sum().backward())

    few, more, many = (work(chunks * linear.CHUNK) for chunks in (2, 3, 4))
    assert (many - more > more - few) == grows
    assert (many - more == more - few) != grows
