"""Tiles: every pattern, bias and weighting they take gives what the whole matrix gives, forward and backward."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels import flash, formed, table_gradient, tiled, tiles
from polyhead.kernels.common import Case
from tests.inputs import Inputs
from tests.kernels.watch import NothingAsLargeAs
from tests.tolerances import assert_close
from tests.walk import walk

pytestmark = pytest.mark.skipif(flash.missing() is not None, reason="PyTorch's operator is another one")

WINDOW = ph.SlidingWindow.causal(50)
PATTERNS = {
    "full": ph.Full(),
    "causal": ph.Causal(),
    "window": WINDOW,
    "two-sided window": ph.SlidingWindow.symmetric(40),
    "future window": ph.SlidingWindow(left=3, right=7),
    "causal chunks": ph.Chunked(size=64) & ph.Causal(),
    "chunks": ph.Chunked(size=32, left=1, right=1),
    "long chunks": ph.Chunked(size=200),
    "first tokens kept": ph.Causal() & (WINDOW | ph.Global(first=4)),
    "both ends global": ph.SlidingWindow.symmetric(20) | ph.Global(first=3, last=2),
    "part of the first tokens": (ph.Global(first=8) & ph.SlidingWindow(left=100, right=3))
    | ph.SlidingWindow.causal(20),
    "BigBird": ph.BigBird(radius=1, num_global=2, num_random=3, block=32, span="all"),
    "causal BigBird": ph.BigBird(radius=1, num_global=2, num_random=3, block=32) & ph.Causal(),
    "some links of the first tokens": ph.Global(first=64) & ph.RandomLinks(per_query=3, seed=0, block=32, span="all"),
    "both ends and links": ph.Global(first=32, last=32) | ph.RandomLinks(per_query=1, seed=0, block=32, span="all"),
    "BigBird by token": ph.BigBird(radius=5, num_global=2, num_random=3),
    "links": ph.Links(table=(tuple((i, i // 2) for i in range(150)),) * 4),
}
POSITIONS = {
    "no position": ph.NoPosition(),
    "rotary": ph.Rotary(),
    "alibi": ph.Alibi(),
    "t5": ph.RelativeBias.t5(),
    "one-sided t5": ph.RelativeBias.t5(bidirectional=False),
    "clipped": ph.RelativeBias.clipped(max_distance=5),
    "one entry": ph.RelativeBias.clipped(max_distance=0),
}
GROUPED = ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8)
WIDER = ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8, v_head_dim=12)
LATENT = ph.Latent(num_heads=4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
STACKS = {
    "softmax": (GROUPED, ph.Softmax()),
    "sinks": (GROUPED, ph.Softmax(sink=True)),
    "wider values": (WIDER, ph.Softmax()),
    "differential": (GROUPED, ph.Differential(form="paper")),
    "diffllama": (WIDER, ph.Differential(form="diffllama")),
    "latent": (LATENT, ph.Softmax()),
}


def of(pattern: ph.Pattern, position: Any = None, stack: str = "softmax") -> ph.AttentionSpec:
    storage, weighting = STACKS[stack]
    position = position or ph.NoPosition()
    return ph.AttentionSpec(storage=storage, position=position, pattern=pattern, weighting=weighting)


def results(inputs: Inputs, kernel: str, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Return the output and the gradient of every tensor."""
    leaves = {name: torch.tensor(x, dtype=dtype, requires_grad=True) for name, x in inputs.learned.items()}
    tensors = [leaves.get(name) for name in ("query", "key", "value")]
    params = {name: x for name, x in leaves.items() if name not in ("query", "key", "value")}
    given = {name: torch.from_numpy(x) for name, x in inputs.given.items()}
    output = ph.attend(*tensors, inputs.spec, params=params, kernel=kernel, **given)
    weights = torch.linspace(-1.0, 1.0, output.numel(), dtype=dtype).view(output.shape)
    grads = torch.autograd.grad(output, list(leaves.values()), weights, allow_unused=True)
    return {"output": output.detach()} | {n: g for n, g in zip(leaves, grads, strict=True) if g is not None}


def check(inputs: Inputs, dtype: torch.dtype = torch.float64) -> None:
    ours, theirs = results(inputs, "tiled", dtype), results(inputs, "plain")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert_close(ours[name], tensor, dtype, what=name)


@pytest.mark.parametrize("lengths", [(150, 150), (160, 160), (40, 151), (40, 30)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_gives_what_the_whole_matrix_gives(pattern: str, lengths: tuple[int, int]) -> None:
    spec = of(PATTERNS[pattern], ph.Rotary())
    check(Inputs.draw(spec, 0, q_len=lengths[0], kv_len=lengths[1]))


@walk(
    "position, pattern, lengths",
    list(POSITIONS),
    ["full", "causal", "window", "two-sided window", "future window"],
    [(300, 300), (40, 301), (40, 30)],
)
def test_every_bias_on_a_band(position: str, pattern: str, lengths: tuple[int, int]) -> None:
    spec = of(PATTERNS[pattern], POSITIONS[position], "sinks")
    check(Inputs.draw(spec, 1, q_len=lengths[0], kv_len=lengths[1]))


@walk(
    "copied, pattern, lengths, stack",
    {"head by head": 2**12, "heads together": 2**24},
    ["full", "causal", "first tokens kept", "BigBird"],
    [(70, 90), (300, 300)],
    list(STACKS),
)
def test_every_stack(
    copied: int, pattern: str, lengths: tuple[int, int], stack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "COPIED_BYTES", copied)
    monkeypatch.setattr(formed, "NUMBERED_KEYS", copied)
    monkeypatch.setattr(tiles, "WIDE_ROWS", 64)
    position = ph.Alibi() if lengths[0] == 70 else None
    check(Inputs.draw(of(PATTERNS[pattern], position, stack), 2, q_len=lengths[0], kv_len=lengths[1]))


@pytest.mark.parametrize("pattern", ["full", "window", "first tokens kept", "BigBird", "causal BigBird"])
@pytest.mark.parametrize("position", ["no position", "alibi"])
@pytest.mark.parametrize("what", ["key_mask", "segments"])
def test_padding_and_packed_sequences(what: str, position: str, pattern: str) -> None:
    inputs = Inputs.draw(of(PATTERNS[pattern], POSITIONS[position]), 3, q_len=150, kv_len=150)
    mask = np.ones((2, 150), dtype=bool)
    mask[0, :60] = False  # some rows see nothing
    mask[1, ::3] = False
    given = {"key_mask": mask, "segments": np.arange(300).reshape(2, 150) // 70}
    check(inputs.giving(**{what: given[what]}))


@pytest.mark.parametrize("position", ["no position", "rotary", "alibi"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_positions_may_be_given(pattern: str, position: str) -> None:
    rng = np.random.default_rng(4)
    places = {
        name: rng.permuted(np.tile(np.arange(150), (2, 1)), axis=1) for name in ("query_positions", "key_positions")
    }
    check(Inputs.draw(of(PATTERNS[pattern], POSITIONS[position]), 3, q_len=150, kv_len=150).giving(**places))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pattern", ["causal", "first tokens kept", "BigBird"])
def test_half_precision_and_float32(pattern: str, dtype: torch.dtype) -> None:
    inputs = Inputs.draw(of(PATTERNS[pattern], ph.Alibi()), 4, q_len=150, kv_len=150).rounded(dtype)
    with torch.no_grad():
        tensors = [torch.tensor(inputs.learned[name], dtype=dtype) for name in ("query", "key", "value")]
        output = ph.attend(*tensors, inputs.spec, kernel="tiled")
    assert output.dtype == dtype
    assert_close(output, results(inputs, "plain")["output"], dtype)


@pytest.mark.parametrize("pattern", ["window", "first tokens kept", "BigBird"])
def test_a_nan_reaches_the_rows_that_may_see_it_and_no_other(pattern: str) -> None:
    inputs = Inputs.draw(of(PATTERNS[pattern]), 5, q_len=150, kv_len=150)
    tensors = [torch.tensor(inputs.learned[name]) for name in ("query", "key", "value")]
    tensors[2][0, 1, 100] = torch.nan
    ours, theirs = (ph.attend(*tensors, inputs.spec, kernel=kernel) for kernel in ("tiled", "plain"))
    assert theirs.isnan().any()
    assert torch.equal(ours.isnan(), theirs.isnan())


def test_large_scores_and_rows_that_do_not_lie_together() -> None:
    inputs = Inputs.draw(of(WINDOW, ph.Alibi()), 6, q_len=150, kv_len=150)
    query, key, value = (torch.tensor(inputs.learned[name]) for name in ("query", "key", "value"))
    query = query * 1e4
    strided = [x.mT.contiguous().mT for x in (query, key, value)]
    assert strided[0].stride(-1) != 1
    ours, theirs = (ph.attend(*strided, inputs.spec, kernel=kernel) for kernel in ("tiled", "plain"))
    assert ours.isfinite().all()
    assert_close(ours, theirs, torch.float64)


@pytest.mark.parametrize(
    ("pattern", "position", "stack"),
    [
        (ph.Causal(), ph.Alibi(), "softmax"),
        (ph.Full(), ph.RelativeBias.t5(), "softmax"),
        (WINDOW, ph.NoPosition(), "sinks"),
        (PATTERNS["first tokens kept"], ph.Alibi(), "softmax"),
        (PATTERNS["BigBird"], ph.NoPosition(), "softmax"),
        (ph.Causal(), ph.NoPosition(), "diffllama"),
        (ph.Causal(), ph.Rotary(), "latent"),
    ],
    ids=str,
)
def test_nothing_as_large_as_a_head_s_pairs_is_made(
    pattern: ph.Pattern, position: Any, stack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 1024
    for module, name, value in (
        (formed, "MASK_ELEMENTS", 2**18),
        (formed, "MOST_ROWS", 128),
        (tiles, "WIDE_ROWS", 128),
        (tiled, "COPIED_BYTES", 2**18),
        (table_gradient, "MOST_ELEMENTS", 2**18),
    ):
        monkeypatch.setattr(module, name, value)
    inputs = Inputs.draw(of(pattern, position, stack), 7, batch=1, q_len=length, kv_len=length)
    with NothingAsLargeAs(length * length):
        results(inputs, "tiled", torch.float32)


def test_two_runs_are_equal_bit_for_bit() -> None:
    inputs = Inputs.draw(of(PATTERNS["BigBird"], ph.NoPosition()), 8, q_len=300, kv_len=300)
    first, second = (results(inputs, "tiled", torch.float32) for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_masks_of_tiles_that_look_alike_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    form = formed._mask
    monkeypatch.setattr(formed, "_mask", lambda *args, **kwargs: made.append(0) or form(*args, **kwargs))
    inputs = Inputs.draw(of(PATTERNS["first tokens kept"]), 9, batch=1, q_len=2048, kv_len=2048)
    with torch.no_grad():
        ph.attend(*(torch.tensor(inputs.learned[name]) for name in ("query", "key", "value")), inputs.spec)
    assert len(made) <= 4


CASE = Case(spec=of(WINDOW), q_len=1000, kv_len=1000)


def with_spec(**changes: Any) -> Case:
    return CASE._replace(spec=dataclasses.replace(CASE.spec, **changes))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (CASE._replace(device="cuda"), "is the CPU's, not cuda's"),
        (with_spec(pattern=ph.Causal(), weighting=ph.Linear()), "a tile's weights are a softmax"),
        (with_spec(weighting=ph.Softmax(softcap=5.0)), "has no softcap"),
        (with_spec(weighting=ph.Differential(form="clipped")), "needs the weights of both maps"),
        (with_spec(position=ph.RelativeBias.shaw(max_distance=3)), "goes by the query"),
        (with_spec(position=ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=8))), "of its own"),
        (CASE._replace(dropout=True), "dropout is in the plain kernel alone"),
        (CASE._replace(weights=True), "weights are not kept"),
        (CASE._replace(q_len=0), "there is no query or no key"),
        (
            with_spec(position=ph.RelativeBias.t5(), pattern=PATTERNS["first tokens kept"])._replace(needs_grad=True),
            "along the diagonals of a band",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_tiles_refuse(case: Case, reason: str) -> None:
    assert tiled.refuse(CASE) is None
    assert reason in (tiled.refuse(case) or "")


def test_without_the_operator_there_are_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_FORWARD", "_no_such_operator")
    assert "has no operator _no_such_operator" in (tiled.refuse(CASE) or "")
    monkeypatch.setattr(flash, "_FORWARD", "_scaled_dot_product_flash_attention")
    monkeypatch.setattr(flash, "_ARGUMENTS", (("query",), ("query",)))
    assert "has another operator _scaled_dot_product_flash_attention" in (tiled.refuse(CASE) or "")


def test_few_pairs_are_left_to_a_matrix() -> None:
    assert ph.explain(CASE.spec, q_len=1000, kv_len=1000).kernel == "tiled"
    assert "65536 pairs" in ph.explain(CASE.spec, q_len=100, kv_len=100).others["tiled"]
