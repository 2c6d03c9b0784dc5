"""FlexAttention: what it is told gives what the whole matrix gives, and on a GPU what the oracle gives.

On the CPU PyTorch runs it uncompiled, which asks the rule of a pair and never looks at the blocks; so these have tests
of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention as theirs

import polyhead as ph
from polyhead.kernels import checks, dense, flex, flex_mask, flex_operator, plain
from polyhead.kernels.common import Call, Case, allowed_pairs, prepared
from polyhead.spec.ranges import BlockState
from tests.inputs import Inputs
from tests.tolerances import assert_close

pytestmark = [
    pytest.mark.skipif(not hasattr(theirs, "AuxRequest"), reason="this FlexAttention has no log-sum-exps"),
    # torch's compiler looks for a .grad at what is no leaf, and only hides the warning that this brings
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    # and advises to round float32, which these tests must not
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]

WINDOW = ph.SlidingWindow.causal(50)
PATTERNS = {
    "full": ph.Full(),
    "causal": ph.Causal(),
    "window": WINDOW,
    "future window": ph.SlidingWindow(left=3, right=7),
    "causal chunks": ph.Chunked(size=64) & ph.Causal(),
    "first tokens kept": ph.Causal() & (WINDOW | ph.Global(first=4)),
    "both ends global": ph.SlidingWindow.symmetric(20) | ph.Global(first=3, last=2),
    "BigBird": ph.BigBird(radius=1, num_global=2, num_random=3, block=32, span="all"),
    "causal BigBird": ph.BigBird(radius=1, num_global=2, num_random=3, block=32) & ph.Causal(),
    "BigBird by token": ph.BigBird(radius=5, num_global=2, num_random=3),
    "links": ph.Links(table=tuple(tuple((i, i // (h + 2), i // 7) for i in range(150)) for h in range(4))),
    "links for all heads": ph.Links(table=(((0,), (), (1, 3, 4, 0, 2)),), block=30),
    "links of long blocks": ph.BigBird(radius=1, num_random=2, block=256),
    "no links": ph.Links(table=(((), ()),)),
}
POSITIONS = {
    "no position": ph.NoPosition(),
    "rotary": ph.Rotary(),
    "alibi": ph.Alibi(),
    "t5": ph.RelativeBias.t5(),
    "one-sided t5": ph.RelativeBias.t5(bidirectional=False),
    "clipped": ph.RelativeBias.clipped(max_distance=5),
}
GROUPED = ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8)
WIDER = ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=20, v_head_dim=12)
LATENT = ph.Latent(num_heads=4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
STACKS: dict[str, Any] = {
    "softmax": (GROUPED, ph.Softmax()),
    "softcap": (GROUPED, ph.Softmax(softcap=0.5, scale=0.7)),
    "sinks": (GROUPED, ph.Softmax(sink=True)),
    "wider keys": (WIDER, ph.Softmax(sink=True, softcap=2.0)),
    "differential": (GROUPED, ph.Differential(form="paper")),
    "diffllama": (WIDER, ph.Differential(form="diffllama")),
    "latent": (LATENT, ph.Softmax()),
}


def of(pattern: str, position: str = "no position", stack: str = "softmax") -> ph.AttentionSpec:
    storage, weighting = STACKS[stack]
    return ph.AttentionSpec(
        storage=storage, position=POSITIONS[position], pattern=PATTERNS[pattern], weighting=weighting
    )


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Call], torch.Tensor]:
    """Return the kernel with PyTorch's function as it is, which on the CPU can go backward if it is let."""
    monkeypatch.setattr(theirs, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(theirs, "_WARNINGS_SHOWN", {"flex_attention_performance"})  # that it was not compiled
    return lambda call: flex.attend(call, theirs.flex_attention)


@pytest.fixture
def untraced(uncompiled: Callable[[Call], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the same without torch's compiler, which would trace the rules of pairs and run them as they are.

    It takes most of the time; only a learned table has no gradient without it.
    """
    monkeypatch.setattr(theirs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
    return uncompiled


def in_full(call: Call) -> torch.Tensor:
    return plain.run(call)[0]


def results(
    inputs: Inputs, run: Callable[[Call], torch.Tensor], dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """Return the output and the gradient of every tensor."""
    leaves = {n: torch.tensor(x, dtype=dtype, device=device, requires_grad=True) for n, x in inputs.learned.items()}
    output = run(call_of(inputs, leaves))
    assert output.dtype == dtype
    weights = torch.linspace(-1.0, 1.0, output.numel(), dtype=dtype, device=device).view(output.shape)
    grads = torch.autograd.grad(output, list(leaves.values()), weights, allow_unused=True)
    return {"output": output.detach()} | {n: g for n, g in zip(leaves, grads, strict=True) if g is not None}


def call_of(inputs: Inputs, tensors: dict[str, torch.Tensor]) -> Call:
    names = ("query", "key", "value")
    given: dict[str, Any] = {n: torch.from_numpy(x).to(tensors["query"].device) for n, x in inputs.given.items()}
    params = {name: x for name, x in tensors.items() if name not in names}
    asked = checks.checked_call({n: tensors.get(n) for n in names}, inputs.spec, params=params, **given)
    return prepared(asked)


def drawn(inputs: Inputs) -> Call:
    return call_of(inputs, inputs.tensors(torch.float64))


def given_of(what: str, length: int) -> dict[str, Any]:
    """Return a padding mask, packed sequences, or positions, for two sequences."""
    mask = np.ones((2, length), dtype=bool)
    mask[0, : length // 2] = False  # some rows see nothing
    mask[1, ::3] = False
    return {
        "nothing": {},
        "key_mask": {"key_mask": mask},
        "segments": {"segments": np.arange(2 * length).reshape(2, length) // 70},
        "positions of all": {"query_positions": np.arange(length)[::-1].copy(), "key_positions": np.arange(length)},
        "positions of each": {"query_positions": np.arange(2 * length).reshape(2, length)[::-1] % 170},
    }[what]


def check(inputs: Inputs, run: Callable[[Call], torch.Tensor]) -> None:
    ours, expected = results(inputs, run), results(inputs, in_full)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(ours[name], tensor, torch.float64, what=name)


LENGTHS = [(40, 151), *(pytest.param(lengths, marks=pytest.mark.slow) for lengths in ((150, 150), (40, 30)))]


TRACED = ("causal chunks", "BigBird", "links")
"""Patterns whose rules are traced in every run; bands and global tokens are wherever a bias is traced."""


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_gives_what_the_whole_matrix_gives(request: Any, pattern: str, lengths: Any) -> None:
    run = request.getfixturevalue("uncompiled" if pattern in TRACED or lengths != (40, 151) else "untraced")
    check(Inputs.draw(of(pattern, "rotary"), 0, q_len=lengths[0], kv_len=lengths[1]), run)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("position", POSITIONS)
def test_every_bias(uncompiled: Any, position: str, lengths: Any) -> None:
    check(Inputs.draw(of("both ends global", position, "sinks"), 1, q_len=lengths[0], kv_len=lengths[1]), uncompiled)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("pattern", "position"), [("causal", "alibi"), ("BigBird", "no position")])
def test_every_stack(untraced: Any, stack: str, pattern: str, position: str) -> None:
    check(Inputs.draw(of(pattern, position, stack), 2, q_len=70, kv_len=90), untraced)


@pytest.mark.parametrize(
    ("pattern", "position"),
    [
        ("window", "alibi"),
        ("BigBird by token", "t5"),
        pytest.param("links", "alibi", marks=pytest.mark.slow),
        pytest.param("first tokens kept", "clipped", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("what", ["key_mask", "segments", "positions of all", "positions of each"])
def test_padding_packed_sequences_and_positions(request: Any, what: str, pattern: str, position: str) -> None:
    inputs = Inputs.draw(of(pattern, position, "sinks"), 3, q_len=150, kv_len=150).giving(**given_of(what, 150))
    check(inputs, request.getfixturevalue("untraced" if position == "alibi" else "uncompiled"))


@pytest.mark.parametrize("stack", ["softmax", "sinks", "differential"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_float32(untraced: Any, stack: str, dtype: torch.dtype) -> None:
    inputs = Inputs.draw(of("first tokens kept", "t5", stack), 4, q_len=150, kv_len=150).rounded(dtype)
    expected = results(inputs, in_full)["output"]
    assert_close(results(inputs, untraced, dtype)["output"], expected, dtype)


@pytest.mark.parametrize("pattern", ["window", "first tokens kept", "BigBird"])
def test_a_nan_reaches_the_rows_that_may_see_it_and_no_other(untraced: Any, pattern: str) -> None:
    call = drawn(Inputs.draw(of(pattern), 5, q_len=150, kv_len=150))
    call.value[0, 1, 100] = torch.nan
    ours, expected = untraced(call), in_full(call)
    assert 0 < expected.isnan().sum() < expected.numel()
    assert torch.equal(ours.isnan(), expected.isnan())


def test_a_query_without_a_key_gets_zeros_and_harms_no_gradient(uncompiled: Any) -> None:
    inputs = Inputs.draw(of("causal", "t5", "sinks"), 6, q_len=70, kv_len=70)
    ours = results(inputs.giving(key_mask=np.array([[True] * 70, [False] * 70])), uncompiled)
    assert (ours["output"][1] == 0).all()
    assert (ours["output"][0] != 0).any()
    assert (ours["query"][1] == 0).all()
    assert all(tensor.isfinite().all() for tensor in ours.values())


# --- blocks


def states_by_pairs(call: Call) -> torch.Tensor:
    """Return each block's state from all of its pairs; what lies past the lengths may not meet."""
    allowed = allowed_pairs(call)
    block = flex_mask.BLOCK
    padding = (0, -allowed.shape[-1] % block, 0, -allowed.shape[-2] % block)
    blocks = torch.nn.functional.pad(allowed, padding).unflatten(-1, (-1, block)).unflatten(-3, (-1, block))
    full, some = blocks.all(dim=-1).all(dim=-2), blocks.any(dim=-1).any(dim=-2)
    return torch.where(full, BlockState.FULL, torch.where(some, BlockState.PARTIAL, BlockState.EMPTY))


@pytest.mark.parametrize("lengths", [(1000, 1000), (300, 1100), (129, 1), (500, 300), (384, 384)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_block_is_missing_and_a_full_one_is_full(pattern: str, lengths: tuple[int, int]) -> None:
    call = drawn(Inputs.draw(of(pattern), 7, q_len=lengths[0], kv_len=lengths[1]))
    states, exact = flex_mask.block_states(call), states_by_pairs(call)
    assert states.shape[:2] == (1, 4 if call.case.spec.pattern.per_head else 1)
    assert torch.equal(states == BlockState.EMPTY, exact == BlockState.EMPTY)
    assert (exact[states == BlockState.FULL] == BlockState.FULL).all()
    if pattern != "BigBird":  # of links that are shorter than a block, nobody asks whether they fill one
        assert torch.equal(states, exact)


@pytest.mark.parametrize("what", ["key_mask", "segments", "positions of each"])
def test_blocks_of_padding_and_packed_sequences_are_left_out(what: str) -> None:
    call = drawn(Inputs.draw(of("causal"), 8, q_len=1000, kv_len=1000).giving(**given_of(what, 1000)))
    states, exact = flex_mask.block_states(call), states_by_pairs(call)
    assert not ((states != exact) & (states != BlockState.PARTIAL)).any()
    if what != "positions of each":  # of given positions nothing is known before they are read
        assert torch.equal(states == BlockState.EMPTY, exact == BlockState.EMPTY)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_block_mask_holds_the_blocks_and_the_rule_of_the_pattern(pattern: str) -> None:
    call = drawn(Inputs.draw(of(pattern), 9, q_len=300, kv_len=300))
    mask = flex_mask.block_mask(call)
    states, allowed = flex_mask.block_states(call), allowed_pairs(call)
    assert torch.equal(mask.to_dense() > 0, states != BlockState.EMPTY)
    full = theirs.BlockMask.from_kv_blocks(mask.full_kv_num_blocks, mask.full_kv_indices, seq_lengths=mask.seq_lengths)
    assert torch.equal(full.to_dense() > 0, states == BlockState.FULL)
    heads = allowed.shape[1]
    assert torch.equal(theirs.create_mask(mask.mask_mod, 1, heads, 300, 300, device="cpu"), allowed)
    assert mask.shape == (1, heads, 300, 300)


def test_a_window_s_blocks_grow_with_its_length_and_not_with_the_square() -> None:
    def blocks(length: int) -> int:
        states = flex_mask.block_states(drawn(Inputs.draw(of("window"), 0, batch=1, q_len=length, kv_len=length)))
        return int((states != BlockState.EMPTY).sum())

    assert [blocks(flex_mask.BLOCK * n) for n in (1, 2, 10, 20)] == [1, 3, 19, 39]


# --- which cases

CASE = Case(spec=of("window"), q_len=1000, kv_len=1000, device="cuda")


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_operator, "missing", lambda: None)


def with_spec(**changes: Any) -> Case:
    return CASE._replace(spec=dataclasses.replace(CASE.spec, **changes))


DYNAMIC = ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=8))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (CASE._replace(device="cpu"), "is for GPUs here, not cpu: on the CPU tiles do better"),
        (CASE._replace(device="meta"), "is for GPUs here, not meta"),
        (with_spec(weighting=ph.Linear(), pattern=ph.Causal()), "weights are a softmax"),
        (with_spec(weighting=ph.Differential(form="clipped")), "needs the weights of both maps"),
        (with_spec(position=ph.RelativeBias.shaw(max_distance=3)), "goes by the query"),
        (with_spec(position=DYNAMIC), "keys rotated by frequencies of its own"),
        (CASE._replace(dtype=torch.float64), "float32, bfloat16 or float16, not float64"),
        (CASE._replace(compiled=True), "which a compiled graph leaves open"),
        (CASE._replace(dropout=True), "dropout is in the plain kernel alone"),
        (CASE._replace(weights=True), "does not return weights"),
        (CASE._replace(q_len=0), "there is no query or no key"),
        (CASE._replace(kv_len=0), "there is no query or no key"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.usefixtures("with_triton")
def test_what_it_refuses(case: Case, reason: str) -> None:
    assert flex.refuse(CASE) is None
    assert reason in (flex.refuse(case) or "")


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize("position", [name for name in POSITIONS if name != "rotary"])
@pytest.mark.parametrize("stack", STACKS)
def test_on_a_gpu_auto_takes_it_for_what_dense_would_make_a_matrix_for(stack: str, position: str) -> None:
    spec = of("window", position, stack)
    assert ph.explain(spec, q_len=1000, kv_len=1000, device="cuda").kernel == "flex"
    small = ph.explain(spec, q_len=100, kv_len=100, device="cuda")
    assert "below 65536 pairs" in small.others["flex"]
    assert ph.explain(of("causal"), q_len=1000, kv_len=1000, device="cuda").kernel == "dense"


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize("asked", [{}, {"aligned": False}, {"key_mask": True}, {"needs_grad": True}], ids=str)
def test_dense_leaves_large_masks_to_it(asked: dict[str, bool]) -> None:
    case = CASE._replace(**asked)
    assert "a mask of all 1,000 × 1,000 pairs" in (dense.pass_over(case) or "")
    assert dense.pass_over(case._replace(compiled=True)) is None
    assert dense.pass_over(case._replace(q_len=60)) is None
    wide = dataclasses.replace(WIDER, head_dim=24)
    assert dense.pass_over(CASE._replace(spec=ph.AttentionSpec(storage=wide))) is None


def test_without_triton_or_log_sum_exps_it_says_so_and_dense_keeps_its_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton, which is not installed" in (flex.refuse(CASE) or "")
    assert dense.pass_over(CASE) is None
    monkeypatch.delattr(theirs, "AuxRequest")
    assert "has no FlexAttention that returns log-sum-exps" in (flex.refuse(CASE) or "")


def test_it_is_compiled_once_and_raises_rather_than_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def compile_(function: Any, **options: Any) -> Callable[[], int]:
        asked.append((function, options))
        return lambda: torch._dynamo.config.recompile_limit

    monkeypatch.setattr(torch, "compile", compile_)
    flex_operator.compiled.cache_clear()
    assert flex_operator.compiled() is flex_operator.compiled()
    assert asked == [(theirs.flex_attention, {"fullgraph": True})]
    usual = torch._dynamo.config.recompile_limit
    assert flex_operator.compiled()() == flex_operator.MOST_FORMS > usual == torch._dynamo.config.recompile_limit
    flex_operator.compiled.cache_clear()


@pytest.mark.slow
def test_lengths_and_windows_are_compiled_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A length is an input of the compiled code after the second; a window's size is a constant in it."""
    torch.compiler.reset()
    made: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    compiled = torch.compile(theirs.flex_attention, fullgraph=True, backend=backend)

    def graphs(pattern: ph.Pattern, q_len: int, kv_len: int) -> int:
        before = len(made)
        spec = dataclasses.replace(of("causal", "alibi"), pattern=pattern)
        inputs = Inputs.draw(spec, 0, q_len=q_len, kv_len=kv_len)
        call = drawn(inputs)
        with torch.no_grad():
            assert_close(flex.attend(call, compiled), in_full(call), torch.float64)
        return len(made) - before

    assert [graphs(WINDOW, n, n) for n in (150, 160, 170, 180)] == [1, 1, 0, 0]
    assert [graphs(PATTERNS["links"], n, n) for n in (150, 160, 170)][-1] == 0
    assert [graphs(WINDOW, 1, n) for n in (200, 201, 202, 203)][-2:] == [0, 0]
    assert [graphs(ph.SlidingWindow.causal(size), 150, 150) for size in (5, 6, 7)] == [1, 1, 1]
    torch.compiler.reset()


# --- on a GPU

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def check_on_gpu(inputs: Inputs, dtype: torch.dtype = torch.float32) -> None:
    """Compare with the oracle, and gradients with the plain kernel's in float64."""
    inputs = inputs.rounded(dtype)
    ours = results(inputs, lambda call: flex.run(call)[0], dtype, "cuda")
    assert_close(ours["output"], inputs.oracle(), dtype)
    if dtype == torch.float32:
        for name, tensor in results(inputs, in_full).items():
            assert_close(ours[name], tensor, dtype, what=name)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("lengths", [(300, 300), (40, 301), (1, 300), (40, 30), (384, 384)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_on_a_gpu(pattern: str, lengths: tuple[int, int]) -> None:
    check_on_gpu(Inputs.draw(of(pattern, "rotary"), 0, q_len=lengths[0], kv_len=lengths[1]))


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("pattern", ["causal", "first tokens kept"])
def test_every_bias_and_stack_on_a_gpu(pattern: str, position: str, stack: str) -> None:
    if not (stack == "latent" and position == "rotary"):
        check_on_gpu(Inputs.draw(of(pattern, position, stack), 1, q_len=300, kv_len=300))


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("what", ["key_mask", "segments", "positions of all", "positions of each"])
@pytest.mark.parametrize("pattern", ["window", "causal BigBird", "links"])
def test_padding_packed_sequences_and_positions_on_a_gpu(pattern: str, what: str) -> None:
    check_on_gpu(Inputs.draw(of(pattern, "t5", "sinks"), 2, q_len=300, kv_len=300).giving(**given_of(what, 300)))


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stack", STACKS)
def test_half_precision_on_a_gpu(stack: str, dtype: torch.dtype) -> None:
    check_on_gpu(Inputs.draw(of("first tokens kept", "alibi", stack), 3, q_len=300, kv_len=300), dtype)


@pytest.mark.gpu
@on_a_gpu
def test_attend_picks_it_on_a_gpu_and_a_nan_stays_where_it_may_be_seen() -> None:
    inputs = Inputs.draw(of("window", "alibi"), 4, q_len=300, kv_len=300)
    tensors = [torch.tensor(inputs.learned[n], dtype=torch.float32, device="cuda") for n in ("query", "key", "value")]
    tensors[2][0, 1, 100] = torch.nan
    ours, expected = (ph.attend(*tensors, inputs.spec, kernel=kernel) for kernel in ("auto", "plain"))
    assert ph.explain(inputs.spec, q_len=300, kv_len=300, device="cuda").kernel == "flex"
    assert torch.equal(ours.isnan(), expected.isnan())
