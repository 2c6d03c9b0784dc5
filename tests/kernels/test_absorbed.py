"""MLA in the latent space: the same function as over expanded rows, which are never made, and where that is cheaper."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels import select
from polyhead.kernels.common import Case
from tests.inputs import Inputs, spec
from tests.kernels.watch import NothingAsLargeAs, multiplications
from tests.tolerances import assert_close
from tests.walk import walk

WEIGHTINGS: dict[str, ph.spec.Weighting] = {
    "softmax": ph.Softmax(),
    "scaled": ph.Softmax(scale=-0.7),
    "softcap": ph.Softmax(softcap=1.5),
    "sink": ph.Softmax(sink=True),
    "paper": ph.Differential(),
    "diffllama": ph.Differential(form="diffllama"),
    "clipped": ph.Differential(form="clipped"),
}
POSITIONS: dict[str, ph.spec.Position] = {
    "nowhere": ph.NoPosition(),
    "half": ph.Rotary(theta=50.0),
    "interleaved": ph.Rotary(theta=50.0, pairs="interleaved"),
    "YaRN": ph.Rotary(scaling=ph.YarnScaling(factor=4.0, original_max_seq_len=4)),
    "ALiBi": ph.Alibi(),
    "T5": ph.RelativeBias.t5(num_buckets=8, max_distance=7),
    "clipped": ph.RelativeBias.clipped(max_distance=3),
    "Shaw": ph.RelativeBias.shaw(max_distance=3),
}
PATTERNS = {
    "full": ph.Full(),
    "causal": ph.Causal(),
    "window": ph.SlidingWindow.causal(3),
    "links of each head": ph.RandomLinks(per_query=2, seed=1),
}
by_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
by_position = pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
by_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)

LENGTHS = [(1, 1), (1, 8), (3, 8), (8, 8), (6, 3), (0, 4), (3, 0), (0, 0)]


def masked(inputs: Inputs) -> Inputs:
    """Mask some keys: of the second sequence all."""
    mask = np.random.default_rng(0).random((2, inputs.learned["key"].shape[2])) < 0.7
    mask[1] = False
    return inputs.giving(key_mask=mask)


@walk("begin, position, weighting", [0, 1], POSITIONS, WEIGHTINGS)
def test_absorbing_gives_what_expanding_gives(begin: int, position: Any, weighting: Any) -> None:
    for seed, (q_len, kv_len) in list(enumerate(LENGTHS))[begin::2]:
        whole = spec("mla", position=position, weighting=weighting, pattern=ph.Causal())
        inputs = Inputs.draw(whole, seed, q_len=q_len, kv_len=kv_len)
        for case in (inputs, masked(inputs)):
            expected, expected_weights = case.oracle(return_weights=True)
            output, weights = case.attend(torch.float64, kernel="absorbed", return_weights=True)
            assert_close(output, expected, torch.float64)
            assert_close(weights, expected_weights, torch.float64, what="weights")
            assert_close(case.attend(torch.float64, kernel="absorbed"), expected, torch.float64, what="alone")


@by_pattern
@by_weighting
def test_every_pattern_holds_in_the_latent_space(pattern: Any, weighting: Any) -> None:
    inputs = Inputs.draw(spec("mla", pattern=pattern, weighting=weighting, position=ph.Rotary()), 0, q_len=6, kv_len=6)
    packed = inputs.giving(segments=np.array([[0, 0, 0, 1, 1, 1], [4, 4, 4, 4, 4, 7]]))
    apart = inputs.giving(query_positions=np.array([3, 9, 0, 1, 5, 5]), key_positions=np.array([0, 2, 3, 5, 8, 9]))
    for case in (inputs, masked(inputs), packed, apart):
        assert_close(case.attend(torch.float64, kernel="absorbed"), case.oracle(), torch.float64)


@by_weighting
@pytest.mark.parametrize("position", [POSITIONS["half"], POSITIONS["Shaw"]], ids=["half", "Shaw"])
@pytest.mark.parametrize("q_len", [1, 4])
def test_gradients_are_those_of_expanding(weighting: Any, position: Any, q_len: int) -> None:
    whole = spec("mla", position=position, weighting=weighting, pattern=ph.Causal())
    inputs = masked(Inputs.draw(whole, 1, q_len=q_len, kv_len=5))
    found = {}
    for kernel in ("plain", "absorbed"):
        leaves = inputs.tensors(torch.float64, requires_grad=True)
        inputs.attend(leaves, kernel=kernel).square().sum().backward()
        found[kernel] = {name: leaf.grad for name, leaf in leaves.items()}
    for name, expected in found["plain"].items():
        assert_close(found["absorbed"][name], expected, torch.float64, what=name)


@by_weighting
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_as_near_as_its_rounding_allows(weighting: Any, dtype: torch.dtype) -> None:
    inputs = Inputs.draw(spec("mla", position=ph.Rotary(), weighting=weighting), 2, q_len=3, kv_len=9).rounded(dtype)
    output, weights = inputs.attend(dtype, kernel="absorbed", return_weights=True)
    assert (output.dtype, weights.dtype) == (dtype, torch.float32)
    assert_close(output, inputs.oracle(), dtype)


def test_no_rope_key_is_nothing_to_turn() -> None:
    storage = ph.Latent(num_heads=3, kv_lora_rank=7, qk_nope_head_dim=4, qk_rope_head_dim=0, v_head_dim=5)
    inputs = Inputs.draw(ph.AttentionSpec(storage=storage, pattern=ph.Causal()), 3)
    assert_close(inputs.attend(torch.float64, kernel="absorbed"), inputs.oracle(), torch.float64)


# --- numbers that are none


@by_weighting
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("width", [0, 8], ids=["latent", "RoPE key"])
def test_what_is_not_finite_reaches_the_rows_that_may_see_it_and_no_other(
    weighting: Any, bad: float, width: int
) -> None:
    whole = spec("mla", position=ph.Rotary(), weighting=weighting, pattern=ph.SlidingWindow.causal(3))
    inputs = Inputs.draw(whole, 4, q_len=6, kv_len=9)
    planted = inputs.learned["key"].copy()
    planted[0, 0, 4, width] = bad  # seen by keys' positions 4 to 6, the second to the fourth query
    leaves = inputs.changing(key=planted).tensors(torch.float64, requires_grad=True)
    output = inputs.attend(leaves, kernel="absorbed")
    hit = np.zeros(output.shape, dtype=bool)
    hit[0, :, 1:4] = True
    assert output.isnan().numpy()[hit].all()
    assert_close(output.detach().numpy()[~hit], inputs.oracle()[~hit], torch.float64)
    output[:, :, 4:].sum().backward()
    assert all(leaf.grad[1].isfinite().all() for leaf in leaves.values())
    assert leaves["query"].grad.isfinite().all()


@by_weighting
def test_a_masked_row_that_is_no_number_is_seen_by_nobody(weighting: Any) -> None:
    mask = np.array([[True, False, True, True, True]] * 2)
    inputs = Inputs.draw(spec("mla", position=ph.Rotary(), weighting=weighting), 5).giving(key_mask=mask)
    planted = inputs.learned["key"].copy()
    planted[:, :, 1] = np.nan
    leaves = inputs.changing(key=planted).tensors(torch.float64, requires_grad=True)
    output = inputs.attend(leaves, kernel="absorbed")
    assert_close(output, inputs.oracle(), torch.float64)
    output.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


# --- memory and work


HEADS, RANK, WIDTH, LENGTH = 16, 24, 16, 256
MANY_HEADS = ph.Latent(num_heads=HEADS, kv_lora_rank=RANK, qk_nope_head_dim=WIDTH, qk_rope_head_dim=8, v_head_dim=WIDTH)
EXPANDED = HEADS * LENGTH * WIDTH
"""Elements of the keys, or values, of every head; the stored rows have a tenth of them."""


def many_heads(q_len: int, **choices: Any) -> Inputs:
    whole = ph.AttentionSpec(storage=MANY_HEADS, pattern=ph.Causal(), **choices)
    return Inputs.draw(whole, 6, batch=1, q_len=q_len, kv_len=LENGTH)


@by_weighting
@pytest.mark.parametrize("position", [POSITIONS["half"], POSITIONS["ALiBi"], POSITIONS["Shaw"]], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_never_expands_the_rows(position: Any, weighting: Any, dtype: torch.dtype) -> None:
    inputs = many_heads(1, position=position, weighting=weighting)
    with NothingAsLargeAs(EXPANDED) as watch:
        inputs.attend(dtype)
    assert watch.operations


@pytest.mark.parametrize("kernel", ["dense", "plain"])
def test_the_others_do(kernel: str) -> None:
    inputs = many_heads(1)
    with pytest.raises(AssertionError, match=r"makes a tensor .*16, 256, 16"), NothingAsLargeAs(EXPANDED):
        inputs.attend(torch.float32, kernel=kernel)


@pytest.mark.parametrize(
    ("rank", "weighting", "crosses"),
    [(12, ph.Softmax(), True), (24, ph.Softmax(), True), (64, ph.Softmax(), True), (24, ph.Differential(), True)],
)
def test_auto_takes_what_has_fewer_multiplications(rank: int, weighting: Any, crosses: bool) -> None:
    storage = ph.Latent(num_heads=2, kv_lora_rank=rank, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12)
    whole = ph.AttentionSpec(storage=storage, weighting=weighting, position=ph.Rotary())
    picked = []
    for q_len in [*range(1, 20), 36]:
        inputs = Inputs.draw(whole, 7, batch=1, q_len=q_len, kv_len=30)
        tensors = inputs.tensors(torch.float32)
        absorbing, expanding = (
            multiplications(functools.partial(inputs.attend, tensors, kernel=kernel))
            for kernel in ("absorbed", "plain")
        )
        picked.append(select.choose(Case(spec=whole, q_len=q_len, kv_len=30)).name)
        scores_fit = q_len <= 16 * whole.num_maps + 12  # numbers of an expanded row
        assert (picked[-1] == "absorbed") == (absorbing <= expanding and scores_fit), f"with {q_len} queries"
    assert picked[0] == "absorbed"
    assert (picked[-1] != "absorbed") == crosses


@pytest.mark.parametrize(("kv_len", "last"), [(1, 0), (1024, 146), (4096, 163), (1_000_000, 170)])
def test_where_a_model_of_deepseek_v2_s_size_begins_to_expand(kv_len: int, last: int) -> None:
    """A query more costs (2·512 − 2·128) per stored row and 512·256 besides; a row expanded 512·256, for each head."""
    storage = ph.Latent(num_heads=128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    whole = ph.AttentionSpec(storage=storage, position=ph.Rotary(), pattern=ph.Causal())
    if last:
        assert ph.explain(whole, q_len=last, kv_len=kv_len).kernel == "absorbed"
    assert ph.explain(whole, q_len=last + 1, kv_len=kv_len).kernel != "absorbed"


@pytest.mark.parametrize("rank", [512, 64])
def test_auto_builds_no_score_matrix_for_a_long_text_that_sdpa_takes(rank: int) -> None:
    """Also where the latent is so narrow that absorbing has fewer multiplications."""
    storage = ph.Latent(num_heads=16, kv_lora_rank=rank, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    whole = ph.AttentionSpec(storage=storage, position=ph.Rotary(), pattern=ph.Causal())
    assert ph.explain(whole, q_len=32_768, kv_len=32_768).kernel == "tiled"
