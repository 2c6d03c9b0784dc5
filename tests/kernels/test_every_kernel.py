"""What every kernel gives: the oracle's output and the right gradients, whatever lengths, masks, dtypes and layouts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels import select
from polyhead.kernels.common import Case
from tests.inputs import INPUTS, Array, Inputs
from tests.kernels.every import (
    SMALL,
    SPECS,
    Results,
    assert_results,
    by_kernel,
    case_of,
    lengths,
    make_pieces_small,
    may_see,
    results,
    takers,
)
from tests.tolerances import assert_close


def test_each_kernel_has_a_spec_here_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.kernels.flex_operator.missing", lambda: None)  # what it needs is on GPU machines
    monkeypatch.setattr("polyhead.kernels.compiled.unavailable", lambda: None)
    cases = [
        Case(spec=one, q_len=q_len, kv_len=300, device=device)
        for one in SPECS.values()
        for q_len in (1, 300)
        for device in ("cpu", "cuda")
    ]
    taken = {kernel for case in cases for kernel in takers(case)}
    assert taken == {kernel.name for kernel in select.KERNELS}


# --- beside the oracle


def masked(inputs: Inputs) -> Inputs:
    """Pad the first sequence at its start and here and there, and mask the second wholly."""
    kv_len = lengths(inputs)[1]
    mask = np.random.default_rng(0).random((2, kv_len)) < 0.8
    mask[0, : kv_len // 4], mask[1] = False, False
    return inputs.giving(key_mask=mask)


def packed(inputs: Inputs) -> Inputs:
    places = np.arange(lengths(inputs)[1])
    return inputs.giving(segments=np.stack([places // 70, places // 150]))


SITUATIONS: dict[str, tuple[int, int, Callable[[Inputs], Inputs]]] = {
    "as many": (301, 301, lambda inputs: inputs),
    "more keys": (131, 521, lambda inputs: inputs),
    "more queries": (300, 231, lambda inputs: inputs),
    "masked": (267, 301, masked),
    "packed": (299, 299, packed),
}


def drawn(name: str, situation: str) -> Inputs:
    q_len, kv_len, give = SITUATIONS[situation]
    return give(Inputs.draw(SPECS[name], 0, q_len=q_len, kv_len=kv_len))


@functools.cache
def expected(name: str, situation: str) -> Results:
    """Return the oracle's output, and gradients through the score matrix."""
    inputs = drawn(name, situation)
    return {**results(inputs, "plain"), "output": inputs.oracle()}


WALK = [
    pytest.param(
        kernel,
        name,
        situation,
        id=f"{kernel}-{name}-{situation}",
        marks=pytest.mark.slow if (k + n + s) % len(SITUATIONS) else (),
    )
    for (n, name), (s, situation) in itertools.product(enumerate(SPECS), enumerate(SITUATIONS))
    for k, kernel in enumerate(takers(case_of(drawn(name, situation))))
]


@pytest.mark.parametrize(("kernel", "name", "situation"), WALK)
def test_output_and_gradients_at_any_lengths_and_masks(kernel: str, name: str, situation: str) -> None:
    assert_results(results(drawn(name, situation), kernel), expected(name, situation), torch.float64)


LENGTHS = [(2, 700), (300, 301), (521, 521)]


def picked(name: str, q_len: int, kv_len: int) -> str:
    return select.choose(Case(spec=SPECS[name], q_len=q_len, kv_len=kv_len, needs_grad=True)).name


def test_auto_picks_each_kernel_at_some_of_these_lengths() -> None:
    able = {kernel for one in SPECS.values() for kernel in takers(Case(spec=one, q_len=2, kv_len=700, needs_grad=True))}
    assert {picked(name, *pair) for name, pair in itertools.product(SPECS, LENGTHS)} == able


@pytest.mark.parametrize(
    ("name", "q_len", "kv_len"),
    [
        pytest.param(name, *pair, marks=pytest.mark.slow if (n + p) % 3 else ())
        for (n, name), (p, pair) in itertools.product(enumerate(SPECS), enumerate(LENGTHS))
    ],
)
def test_what_auto_picks_gives_it_too(name: str, q_len: int, kv_len: int) -> None:
    inputs = Inputs.draw(SPECS[name], 1, batch=1, q_len=q_len, kv_len=kv_len)
    assert_results(results(inputs, "auto"), {**results(inputs, "plain"), "output": inputs.oracle()}, torch.float64)


def has_norm(whole: ph.AttentionSpec) -> bool:
    """Whether each row of the output is normed, which mixes its numbers."""
    return isinstance(whole.weighting, ph.Differential) and whole.weighting.form != "clipped"


def is_enlarging(whole: ph.AttentionSpec) -> bool:
    """Whether keys are rounded once more when they are expanded, and a norm enlarges what that changes."""
    return isinstance(whole.storage, ph.Latent) and has_norm(whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@by_kernel([name for name, one in SPECS.items() if not is_enlarging(one)], one_in=3)
def test_each_dtype_is_as_near_as_its_rounding_allows(kernel: str, name: str, dtype: torch.dtype) -> None:
    inputs = Inputs.draw(SPECS[name], 2, batch=1, q_len=151, kv_len=301).rounded(dtype)
    found = results(inputs, kernel, dtype)
    assert all(tensor.dtype == (dtype if n in {*INPUTS, "output"} else torch.float32) for n, tensor in found.items())
    assert_results(found, {**results(inputs, "plain"), "output": inputs.oracle()}, dtype)


# --- layouts


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pieces_small(monkeypatch)


def small(name: str, seed: int = 3, **sizes: int) -> Inputs:
    return Inputs.draw(SMALL[name], seed, **{"q_len": 13, "kv_len": 22, **sizes})


Layout = Callable[[torch.Tensor], torch.Tensor]


def in_order(order: tuple[int, ...]) -> Layout:
    """Return what lays dimensions out in an order, the outermost first."""
    back = [order.index(dim) for dim in range(4)]
    return lambda x: x.permute(order).contiguous().permute(back)


ORDERS = [in_order(order) for order in itertools.permutations(range(4))]
SHARED: dict[str, Layout] = {
    "one sequence for all": lambda x: x[:1].expand(x.shape),
    "one head for all": lambda x: x[:, :1].expand(x.shape),
    "one token for all": lambda x: x[:, :, :1].expand(x.shape),
    "one number for a row": lambda x: x[..., :1].expand(x.shape),
    "cut from wider rows": lambda x: torch.cat([x, torch.full_like(x, torch.nan)], dim=-1)[..., : x.shape[-1]],
    "every second number": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0],
}


@pytest.mark.usefixtures("small_pieces")
@by_kernel(one_in=4)
def test_any_order_of_strides_of_each_tensor(kernel: str, name: str) -> None:
    inputs = small(name)
    theirs = results(inputs, kernel)
    for first in range(list(SPECS).index(name) % 3, len(ORDERS), 3):  # three specs have gone through all
        layouts = dict(zip(INPUTS, (ORDERS[(first + more) % len(ORDERS)] for more in (0, 7, 17)), strict=True))
        ours = results(inputs, kernel, lay=lambda n, x, layouts=layouts: layouts.get(n, lambda x: x)(x))
        assert_results(ours, theirs, torch.float64, what=f"order {first}")


@pytest.mark.usefixtures("small_pieces")
@by_kernel(one_in=4)
def test_rows_that_share_memory_or_lie_apart(kernel: str, name: str) -> None:
    inputs = small(name, 4)
    for layout, lay in SHARED.items():
        ours = results(inputs, kernel, lay=lambda n, x, lay=lay: lay(x) if n in INPUTS else x)
        theirs = results(inputs, "plain", lay=lambda n, x, lay=lay: lay(x).contiguous() if n in INPUTS else x)
        assert_results(ours, theirs, torch.float64, what=layout)


COTANGENTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "one number": lambda x: torch.full((), 0.5, dtype=x.dtype).expand(x.shape),
    "one row": lambda x: torch.linspace(-1.0, 1.0, x.shape[-1], dtype=x.dtype).expand(x.shape),
    "a number for a row": lambda x: torch.linspace(-1.0, 1.0, x.shape[2], dtype=x.dtype)[:, None].expand(x.shape),
    "heads innermost": lambda x: in_order((0, 2, 3, 1))(torch.sin(x)),
    "tokens innermost": lambda x: in_order((3, 1, 0, 2))(torch.sin(x)),
    "every second": lambda x: SHARED["every second number"](torch.sin(x)),
}


@pytest.mark.usefixtures("small_pieces")
@by_kernel(one_in=4)
def test_the_output_s_gradient_may_lie_in_memory_as_it_likes(kernel: str, name: str) -> None:
    inputs = small(name, 5)
    for layout, cotangent in COTANGENTS.items():
        ours = results(inputs, kernel, cotangent=cotangent)
        theirs = results(inputs, kernel, cotangent=lambda x, make=cotangent: make(x).contiguous())
        assert_results(ours, theirs, torch.float64, what=layout)


@by_kernel(one_in=4)
def test_nothing_given_is_written_to_and_the_output_is_memory_of_its_own(kernel: str, name: str) -> None:
    inputs = masked(Inputs.draw(SPECS[name], 6, q_len=40, kv_len=300))
    given = {n: torch.tensor(array) for n, array in inputs.given.items() if takes_masks(kernel, name)}
    for needs_grad in (False, True):
        tensors = inputs.tensors(torch.float32, requires_grad=needs_grad)
        everything = {**tensors, **given}
        before = {n: (x.detach().clone(), x._version) for n, x in everything.items()}
        params = {n: x for n, x in tensors.items() if n not in INPUTS}
        three = [tensors.get(n) for n in INPUTS]
        output = ph.attend(*three, inputs.spec, params=params, kernel=kernel, **given)
        if needs_grad:
            output.sum().backward()
        for n, x in everything.items():
            assert torch.equal(x, before[n][0]), n
            assert x._version == before[n][1], n
            assert x.untyped_storage().data_ptr() != output.untyped_storage().data_ptr(), n


def takes_masks(kernel: str, name: str) -> bool:
    return kernel in takers(Case(spec=SPECS[name], q_len=40, kv_len=300, needs_grad=True, key_mask=True))


# --- gradients


@pytest.mark.usefixtures("small_pieces")
@by_kernel(one_in=4)
def test_a_gradient_is_the_same_where_it_alone_is_wanted(kernel: str, name: str) -> None:
    inputs = small(name, 7)
    every = results(inputs, kernel)
    for alone in inputs.learned:
        ours = results(inputs, kernel, wanted=[alone])
        assert_results(ours, {n: every[n] for n in ("output", alone)}, torch.float64, what=f"with {alone} alone,")
    params = [n for n in inputs.learned if n not in INPUTS]
    if params:
        ours = results(inputs, kernel, wanted=params)
        assert_results(ours, {n: every[n] for n in ("output", *params)}, torch.float64, what="with params alone,")


def assert_slopes(inputs: Inputs, kernel: str) -> None:
    leaves = inputs.tensors(torch.float64, requires_grad=True)

    def run(*tensors: torch.Tensor) -> Any:
        return inputs.attend(dict(zip(leaves, tensors, strict=True)), kernel=kernel)

    assert torch.autograd.gradcheck(run, tuple(leaves.values()), fast_mode=True)


@pytest.mark.usefixtures("small_pieces")
@by_kernel(one_in=4)
def test_gradients_are_the_slopes_of_the_output(kernel: str, name: str) -> None:
    assert_slopes(small(name, 8), kernel)


@pytest.mark.usefixtures("small_pieces")
@by_kernel(one_in=4, key_mask=True)
def test_gradients_beside_masked_keys_are_the_slopes_of_the_output(kernel: str, name: str) -> None:
    assert_slopes(masked(small(name, 8)), kernel)


# --- numbers that are none


def readers(inputs: Inputs, name: str, head: int) -> list[int]:
    """Return the heads whose output comes from a head of a tensor."""
    whole = inputs.spec
    if isinstance(whole.storage, ph.Latent):
        return list(range(whole.num_heads))
    if name == "value":
        return [h for h in range(whole.num_heads) if h // whole.group_size == head]
    maps = range(whole.num_maps)
    return [h for h in range(whole.num_heads) if any(whole.map_of(h, index)[1] == head for index in maps)]


def planted(inputs: Inputs, name: str, bad: float) -> tuple[Inputs, Array]:
    """Return inputs with one number that is none, and which of the output may see it."""
    array = inputs.learned[name].copy()
    head, token = array.shape[1] - 1, array.shape[2] - 5
    array[0, head, token, 2] = bad
    hit = np.zeros((2, inputs.spec.num_heads, lengths(inputs)[0], inputs.spec.v_head_dim), dtype=bool)
    one_width = name == "value" and not has_norm(inputs.spec)
    for h in readers(inputs, name, head):
        hit[0, h, :, 2 if one_width else slice(None)] = may_see(inputs)[h, :, token, None if not one_width else ...]
    return inputs.changing(**{name: array}), hit


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("bad", [np.nan, *(pytest.param(bad, marks=pytest.mark.slow) for bad in (np.inf, -np.inf))])
@by_kernel()
def test_what_is_not_finite_reaches_what_may_see_it_and_no_other(kernel: str, name: str, bad: float) -> None:
    clean = small(name, 9)
    for tensor in sorted({"key", "value"} & set(clean.learned)):
        inputs, hit = planted(clean, tensor, bad)

        def elsewhere(output: torch.Tensor, hit: Array = hit) -> torch.Tensor:
            return torch.ones_like(output).masked_fill(torch.tensor(hit), 0.0)

        ours, theirs = (results(one, kernel, cotangent=elsewhere) for one in (inputs, clean))
        output = ours.pop("output").numpy()
        assert_close(output[~hit], theirs.pop("output").numpy()[~hit], torch.float64)
        if np.isnan(bad):
            assert np.isnan(output[hit]).all()
        if SMALL[name].pattern == ph.Full() or (np.isinf(bad) and tensor == "key"):
            continue  # every row sees it, or a score of −inf leaves the output finite
        for n, gradient in theirs.items():
            assert_close(ours[n], gradient, torch.float64, what=f"gradient of {n}")
