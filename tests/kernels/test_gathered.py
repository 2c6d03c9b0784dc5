"""Each query's own keys, gathered: the plain kernel's function, at the memory and the work of the links alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels import gathered
from polyhead.kernels.common import Case
from tests.compositions.choices import PATTERNS
from tests.inputs import Inputs, spec
from tests.kernels.test_blockwise import CAPPED, CHOICES, SIZES
from tests.kernels.watch import NothingAsLargeAs, multiplications
from tests.tolerances import assert_close
from tests.walk import walk

LISTED = {name: of for name, of in PATTERNS.items() if of(SIZES).degree is not None}
LINKS = ph.RandomLinks(per_query=2, seed=0)
BIGBIRD = ph.BigBird(radius=1, num_global=2, num_random=3)
by_choices = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)


PIECES = {"a query at a time": 10, "some queries": 1000}


@pytest.fixture(params=PIECES.values(), ids=PIECES)
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "GATHERED_ELEMENTS", request.param)
    monkeypatch.setattr(gathered, "ROW_ELEMENTS", request.param)


def gradients(inputs: Inputs, kernel: str) -> dict[str, torch.Tensor]:
    leaves = inputs.tensors(torch.float64, requires_grad=True)
    output = inputs.attend(leaves, kernel=kernel)
    cotangent = torch.sin(torch.arange(output.numel(), dtype=output.dtype)).view_as(output)
    grads = torch.autograd.grad(output, list(leaves.values()), cotangent, materialize_grads=True, allow_unused=True)
    return dict(zip(leaves, grads, strict=True))


def check(inputs: Inputs) -> None:
    """Output against the oracle, gradients against the plain kernel's."""
    assert_close(inputs.attend(torch.float64, kernel="gathered"), inputs.oracle(), torch.float64)
    ours = gradients(inputs, "gathered")
    for name, expected in gradients(inputs, "plain").items():
        assert_close(ours[name], expected, torch.float64, what=name)


@walk("small_pieces, pattern", PIECES, LISTED, indirect=["small_pieces"])
def test_every_pattern_gives_what_the_score_matrix_gives(small_pieces: None, pattern: Any) -> None:
    check(Inputs.draw(spec("gqa", pattern=pattern(SIZES), **CAPPED), 1, q_len=9, kv_len=9))


STACKED = ("links", "links-per-head", "bigbird-and-causal", "global-last")


@walk("small_pieces, choices, name", PIECES, CHOICES, STACKED, indirect=["small_pieces"])
def test_every_stack_gives_what_the_score_matrix_gives(small_pieces: None, choices: dict[str, Any], name: str) -> None:
    for storage, q_len, kv_len in [("gqa", 9, 9), ("mla", 4, 10)]:
        whole = spec(storage, **{**choices, "pattern": LISTED[name](SIZES)})
        inputs = Inputs.draw(whole, q_len, q_len=q_len, kv_len=kv_len)
        check(inputs.giving(key_mask=np.random.default_rng(1).random((2, kv_len)) < 0.7))


@walk(
    "small_pieces, choices, pattern", PIECES, CHOICES, [LINKS, BIGBIRD, ph.Global(first=2)], indirect=["small_pieces"]
)
def test_packed_sequences(small_pieces: None, choices: dict[str, Any], pattern: ph.Pattern) -> None:
    segments = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2], [4, 4, 4, 4, 4, 4, 4, 4, 9]])
    check(Inputs.draw(spec("gqa", **{**choices, "pattern": pattern}), 2, q_len=9, kv_len=9).giving(segments=segments))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("q_len", "kv_len"), [(10, 4), (0, 4), (3, 0), (0, 0), (1, 1), (1, 9)])
@pytest.mark.parametrize("pattern", [BIGBIRD, ph.Global(first=1, last=2), LINKS & ph.Causal()], ids=repr)
def test_odd_lengths(pattern: ph.Pattern, q_len: int, kv_len: int) -> None:
    check(Inputs.draw(spec("gqa", pattern=pattern, **CAPPED), 3, q_len=q_len, kv_len=kv_len))


@by_choices
def test_keys_that_links_repeat_count_once_in_output_and_gradient(choices: dict[str, Any]) -> None:
    table = ((0,), (0, 0, 1), (2, 1, 2), (0, 3, 0, 3), (4,), ())
    repeated = ph.Links(table=(table,)) | ph.SlidingWindow.causal(2)  # the window repeats some of them again
    once = ph.Links(table=(tuple(tuple(dict.fromkeys(row)) for row in table),)) | ph.SlidingWindow.causal(2)
    found = []
    for pattern in (repeated, once):
        inputs = Inputs.draw(spec("gqa", **{**choices, "pattern": pattern}), 5, q_len=6, kv_len=6)
        check(inputs)
        found.append(gradients(inputs, "gathered"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("weighting", [ph.Softmax(), ph.Softmax(sink=True), ph.Differential(form="clipped")], ids=repr)
def test_a_query_without_a_link_gives_zeros_and_passes_no_gradient(weighting: Any) -> None:
    inputs = Inputs.draw(spec("gqa", pattern=ph.Links(table=(((0,), (), (1, 2)),)), weighting=weighting), 6)
    leaves = inputs.tensors(torch.float64, requires_grad=True)
    output = inputs.attend(leaves, kernel="gathered")
    assert (output[:, :, [1, 3, 4]] == 0).all()
    assert (output[:, :, [0, 2]] != 0).all()
    grad = torch.autograd.grad(output, leaves["query"], torch.ones_like(output))[0]
    assert (grad[:, :, [1, 3, 4]] == 0).all()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("where", [0, 5])  # the first key stands in where a list has no more
def test_what_is_not_finite_reaches_the_rows_that_may_see_it_and_no_other(name: str, where: int) -> None:
    table = ((1,), (2, 5), (0,), (), (5, 6, 7))
    inputs = Inputs.draw(spec("gqa", pattern=ph.Links(table=(table,)), **CAPPED), 7, q_len=8, kv_len=8)
    planted = inputs.learned[name].copy()
    planted[0, 1, where, 2] = np.nan  # heads 2 and 3 read these keys
    output = inputs.changing(**{name: planted}).attend(torch.float64, kernel="gathered").numpy()
    hit = np.zeros(output.shape, dtype=bool)
    hit[0, 2:, [query for query, keys in enumerate(table) if where in keys], slice(None) if name == "key" else 2] = True
    assert (np.isnan(output) == hit).all()
    assert_close(output[~hit], inputs.oracle()[~hit], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_as_near_as_its_rounding_allows(dtype: torch.dtype) -> None:
    inputs = Inputs.draw(spec("gqa", pattern=BIGBIRD, **CAPPED), 8, q_len=30, kv_len=40).rounded(dtype)
    output = inputs.attend(dtype, kernel="gathered")
    assert output.dtype == dtype
    assert_close(output, inputs.oracle(), dtype)


def test_a_gradient_is_the_same_at_each_run_and_under_autocast() -> None:
    inputs = Inputs.draw(spec("gqa", pattern=BIGBIRD, **CAPPED), 9, q_len=40, kv_len=50)
    found = []
    for autocast in (False, False, True):
        leaves = inputs.tensors(torch.float32, requires_grad=True)
        output = inputs.attend(leaves, kernel="gathered")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output.backward(torch.ones_like(output))
        found.append([leaf.grad for leaf in leaves.values()])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.usefixtures("small_pieces")
def test_second_derivatives_exist() -> None:
    inputs = Inputs.draw(spec("gqa", pattern=LINKS, **CAPPED), 10, batch=1, q_len=3, kv_len=4)
    leaves = inputs.tensors(torch.float64, requires_grad=True)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return inputs.attend(dict(zip(leaves, tensors, strict=True)), kernel="gathered")

    assert torch.autograd.gradgradcheck(run, tuple(leaves.values()), fast_mode=True)


LENGTH = 2048


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"position": ph.RelativeBias.shaw(max_distance=4)},
        {"position": ph.RelativeBias.t5()},
        {"weighting": ph.Differential(form="clipped")},
    ],
    ids=str,
)
@pytest.mark.parametrize("pattern", [BIGBIRD, ph.Global(first=1, last=3)], ids=repr)
def test_no_tensor_has_an_element_for_each_pair(choices: dict[str, Any], pattern: ph.Pattern) -> None:
    inputs = Inputs.draw(spec("gqa", pattern=pattern, **choices), 11, batch=1, q_len=LENGTH, kv_len=LENGTH)
    leaves = inputs.tensors(torch.float32, requires_grad=True)
    with NothingAsLargeAs(LENGTH * LENGTH) as watch:
        inputs.attend(leaves, kernel="gathered").square().sum().backward()
    assert watch.operations


def test_a_piece_gathers_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor has a block of queries that see everything more scores."""
    monkeypatch.setattr(gathered, "GATHERED_ELEMENTS", 2**15)
    monkeypatch.setattr(gathered, "ROW_ELEMENTS", 2**15)
    links = ph.RandomLinks(per_query=2, seed=0) | ph.Global(first=40)
    inputs = Inputs.draw(spec("gqa", pattern=links, **CAPPED), 12, batch=1, q_len=LENGTH, kv_len=LENGTH)
    with NothingAsLargeAs(1 + 4 * LENGTH * 8) as watch:  # the largest are the queries, and not 40 · 2048 scores
        inputs.attend(torch.float32, kernel="gathered")
    assert watch.operations


@pytest.mark.parametrize("pattern", [LINKS, BIGBIRD], ids=repr)
def test_twice_the_tokens_are_twice_the_work(pattern: ph.Pattern) -> None:
    def work(length: int) -> int:
        inputs = Inputs.draw(spec("gqa", pattern=pattern, **CAPPED), 13, batch=1, q_len=length, kv_len=length)
        leaves = inputs.tensors(torch.float32, requires_grad=True)
        return multiplications(lambda: inputs.attend(leaves, kernel="gathered").sum().backward())

    short, long = work(512), work(1024)
    assert 1.9 * short < long < 2.1 * short


LONG = {"q_len": 2048, "kv_len": 2048}
HUBS = ph.Links(table=(tuple((i // 128, i // 64) for i in range(2048)),))
SCATTERED = ph.Links(table=(tuple((i * 31 % 2048, i * 17 % 2048) for i in range(2048)),))


@pytest.mark.parametrize(
    ("pattern", "asked", "reason"),
    [
        (LINKS, {}, None),
        (BIGBIRD, {}, None),
        (BIGBIRD & ph.Causal(), {"key_mask": True, "needs_grad": True}, None),
        (SCATTERED, {}, None),
        (HUBS, {}, "see no more than 3 keys"),
        (SCATTERED | ph.SlidingWindow.symmetric(100), {}, "see no more than 5.. keys"),
        (ph.RandomLinks(per_query=2, seed=0, block=64), {}, "see no more than 256 keys"),
        (LINKS, {"q_len": 1}, "see no more than 2 keys"),
        (ph.SlidingWindow.causal(2), {}, "a pattern that looks the same further on is quicker in tiles"),
        (ph.Global(first=2), {}, "a pattern that looks the same further on is quicker in tiles"),
        (LINKS, {"device": "cuda"}, "measured on the CPU alone, not on cuda"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else str(x)[:40],
)
def test_auto_gathers_where_queries_that_lie_together_see_keys_that_do_not(
    pattern: ph.Pattern, asked: dict[str, Any], reason: str | None
) -> None:
    case = Case(spec=spec("gqa", pattern=pattern), **{**LONG, **asked})
    explanation = ph.explain(case.spec, **{**LONG, **asked})
    assert (explanation.kernel == "gathered") == (reason is None)
    if reason is not None:
        assert gathered.refuse(case) is None
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(gathered.pass_over(case))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"dropout_p": 0.5}, "dropout is in the plain kernel alone"),
        ({"return_weights": True}, "a piece's weights are not kept"),
    ],
)
def test_what_lists_do_not_do_is_refused(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(ph.UnsupportedError, match=f"kernel='gathered' does not run this: {reason}"):
        Inputs.draw(spec("gqa", pattern=LINKS), 14).attend(torch.float32, kernel="gathered", **asked)


def test_what_is_compiled_is_refused() -> None:
    case = Case(spec=spec("gqa", pattern=LINKS), **LONG, compiled=True)
    assert gathered.refuse(case) == "its lists go by the lengths, which a compiled graph leaves open"
