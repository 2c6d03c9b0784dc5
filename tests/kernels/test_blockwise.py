"""Blocks of queries: the plain kernel's function, at the memory of one block, over the keys that the block can see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels import blockwise
from tests.compositions.choices import PATTERNS, Sizes
from tests.inputs import VARIED, Inputs, spec
from tests.kernels.watch import NothingAsLargeAs, multiplications
from tests.tolerances import assert_close
from tests.walk import walk

DYNAMIC = ph.Rotary(theta=50.0, scaling=ph.DynamicNTKScaling(factor=3.0, original_max_seq_len=4))
CHOICES = {
    **{name: choices for name, choices in VARIED.items() if name != "linear"},
    "diffllama": {"weighting": ph.Differential(form="diffllama")},
    "dynamic NTK": {"position": DYNAMIC},
}
CAPPED = {"weighting": ph.Softmax(softcap=5.0)}
SIZES = Sizes(num_heads=4, width=8, v_width=None, seed=3)
by_choices = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
HEADS = {"heads together": 10**6, "head by head": 0}


@pytest.fixture(params=HEADS.values(), ids=HEADS)
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", 200)
    monkeypatch.setattr(blockwise, "BLOCK_COST", request.param)


def check(inputs: Inputs) -> None:
    """Output against the oracle, gradients against the plain kernel's."""
    assert_close(inputs.attend(torch.float64, kernel="blockwise"), inputs.oracle(), torch.float64)
    found = {}
    for kernel in ("plain", "blockwise"):
        leaves = inputs.tensors(torch.float64, requires_grad=True)
        output = inputs.attend(leaves, kernel=kernel)
        cotangent = torch.sin(torch.arange(output.numel(), dtype=output.dtype)).view_as(output)
        grads = torch.autograd.grad(output, list(leaves.values()), cotangent, materialize_grads=True, allow_unused=True)
        found[kernel] = dict(zip(leaves, grads, strict=True))
    for name, expected in found["plain"].items():
        assert_close(found["blockwise"][name], expected, torch.float64, what=name)


@walk("small_blocks, choices, pattern", HEADS, CHOICES, PATTERNS, one_in=8, indirect=["small_blocks"])
def test_blocks_give_what_the_score_matrix_gives(small_blocks: None, choices: dict[str, Any], pattern: Any) -> None:
    for storage, q_len, kv_len in [("gqa", 9, 9), ("mla", 4, 10)]:
        whole = spec(storage, **{**choices, "pattern": pattern(SIZES)})
        inputs = Inputs.draw(whole, q_len, q_len=q_len, kv_len=kv_len)
        check(inputs.giving(key_mask=np.random.default_rng(1).random((2, kv_len)) < 0.7))


@pytest.mark.usefixtures("small_blocks")
@by_choices
@pytest.mark.parametrize(
    "given",
    [
        {"query_positions": np.array([5, 0, 9, 9, 2, 1, 3, 8, 7]), "key_positions": np.arange(9)[::-1].copy()},
        {"segments": np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2], [4, 4, 4, 4, 4, 4, 4, 4, 9]])},
    ],
    ids=["positions", "segments"],
)
def test_positions_and_segments_may_be_given(choices: dict[str, Any], given: dict[str, Any]) -> None:
    check(
        Inputs.draw(spec("gqa", **{**choices, "pattern": ph.SlidingWindow.causal(4)}), 2, q_len=9, kv_len=9).giving(
            **given
        )
    )


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("q_len", "kv_len"), [(10, 4), (0, 4), (3, 0), (0, 0), (1, 1)])
def test_odd_lengths(q_len: int, kv_len: int) -> None:
    check(Inputs.draw(spec("gqa", pattern=ph.BigBird(), **CAPPED), 3, q_len=q_len, kv_len=kv_len))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "linear", [{"query_positions": np.arange(9)}, {"segments": np.zeros((2, 9), dtype=int)}], ids=str
)
def test_linear_weighting_that_running_sums_refuse(linear: dict[str, Any]) -> None:
    choices = {"weighting": ph.Linear(feature_map="softplus"), "position": ph.Rotary(), "pattern": ph.Causal()}
    check(Inputs.draw(spec("gqa", **choices), 4, q_len=9, kv_len=9).giving(**linear))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["key", "value"])
def test_what_is_not_finite_reaches_the_rows_that_may_see_it_and_no_other(name: str) -> None:
    inputs = Inputs.draw(spec("gqa", pattern=ph.SlidingWindow.causal(2), **CAPPED), 5, q_len=9, kv_len=9)
    planted = inputs.learned[name].copy()
    planted[0, 1, 5, 2] = np.nan  # heads 2 and 3 read these keys, and queries 5 and 6 see this one
    output = inputs.changing(**{name: planted}).attend(torch.float64, kernel="blockwise").numpy()
    hit = np.zeros(output.shape, dtype=bool)
    hit[0, 2:, 5:7, slice(None) if name == "key" else 2] = True
    assert (np.isnan(output) == hit).all()
    assert_close(output[~hit], inputs.oracle()[~hit], torch.float64)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_as_near_as_its_rounding_allows(dtype: torch.dtype) -> None:
    inputs = Inputs.draw(spec("gqa", pattern=ph.Causal(), **CAPPED), 6, q_len=30, kv_len=40).rounded(dtype)
    output = inputs.attend(dtype, kernel="blockwise")
    assert output.dtype == dtype
    assert_close(output, inputs.oracle(), dtype)


@pytest.mark.parametrize("kernel", ["blockwise", "linear"])
def test_a_gradient_is_the_same_at_each_run_and_under_autocast(kernel: str) -> None:
    weighting = ph.Linear() if kernel == "linear" else ph.Softmax(softcap=5.0)
    inputs = Inputs.draw(spec("gqa", pattern=ph.Causal(), weighting=weighting), 7, q_len=40, kv_len=50)
    found = []
    for autocast in (False, False, True):
        leaves = inputs.tensors(torch.float32, requires_grad=True)
        output = inputs.attend(leaves, kernel=kernel)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output.backward(torch.ones_like(output))
        found.append([leaf.grad for leaf in leaves.values()])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.usefixtures("small_blocks")
def test_second_derivatives_exist() -> None:
    inputs = Inputs.draw(spec("gqa", pattern=ph.Causal(), **CAPPED), 8, batch=1, q_len=3, kv_len=4)
    leaves = inputs.tensors(torch.float64, requires_grad=True)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return inputs.attend(dict(zip(leaves, tensors, strict=True)), kernel="blockwise")

    assert torch.autograd.gradgradcheck(run, tuple(leaves.values()), fast_mode=True)


LENGTH = 2048


@pytest.mark.parametrize(
    "choices",
    [CAPPED, {"position": ph.RelativeBias.shaw(max_distance=4)}, {"weighting": ph.Differential(form="clipped")}],
)
def test_no_tensor_has_an_element_for_each_pair(choices: dict[str, Any]) -> None:
    inputs = Inputs.draw(spec("gqa", pattern=ph.Causal(), **choices), 9, batch=1, q_len=LENGTH, kv_len=LENGTH)
    leaves = inputs.tensors(torch.float32, requires_grad=True)
    with NothingAsLargeAs(LENGTH * LENGTH) as watch:
        inputs.attend(leaves, kernel="blockwise").square().sum().backward()
    assert watch.operations


def test_a_block_has_no_more_scores_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a few queries see all keys and the others next to none."""
    monkeypatch.setattr(blockwise, "BLOCK_ELEMENTS", 2000)
    inputs = Inputs.draw(spec("gqa", pattern=ph.Global(first=20), **CAPPED), 12, batch=1, q_len=200, kv_len=200)
    with NothingAsLargeAs(1 + 4 * 200 * 8) as watch:  # the largest are the queries, and not 4 · 20 · 200 scores
        inputs.attend(torch.float32, kernel="blockwise")
    assert watch.operations


def test_heads_that_see_different_keys_go_one_by_one_where_that_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    links = ph.RandomLinks(per_query=2, seed=0, block=64)
    inputs = Inputs.draw(spec("gqa", pattern=links, **CAPPED), 13, batch=1, q_len=LENGTH, kv_len=LENGTH)
    tensors = inputs.tensors(torch.float32)
    found = []
    for cost in (0, 2**40):
        monkeypatch.setattr(blockwise, "BLOCK_COST", cost)
        monkeypatch.setattr(blockwise, "_rows", lambda call: 64)
        found.append(multiplications(lambda: inputs.attend(tensors, kernel="blockwise")))
    assert found[0] < 0.5 * found[1]


def test_work_goes_by_the_pairs_that_the_pattern_allows() -> None:
    def work(pattern: Any) -> int:
        inputs = Inputs.draw(spec("gqa", pattern=pattern, **CAPPED), 10, batch=1, q_len=LENGTH, kv_len=LENGTH)
        tensors = inputs.tensors(torch.float32)
        return multiplications(lambda: inputs.attend(tensors, kernel="blockwise"))

    full, causal, window = (work(pattern) for pattern in (ph.Full(), ph.Causal(), ph.SlidingWindow.causal(64)))
    assert causal < 0.6 * full
    assert window < 0.15 * full


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"dropout_p": 0.5}, "dropout is in the plain kernel alone"),
        ({"return_weights": True}, "the weights of all queries are the matrix that blocks avoid"),
    ],
)
def test_what_blocks_do_not_do_is_refused(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(ph.UnsupportedError, match=f"kernel='blockwise' does not run this: {reason}"):
        Inputs.draw(spec("gqa", **CAPPED), 11).attend(torch.float32, kernel="blockwise", **asked)
