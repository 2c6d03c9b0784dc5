"""How every kernel runs: far out and with large scores, on any number of threads, and without a matrix of all pairs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels.common import Case
from polyhead.kernels.select import KERNELS
from polyhead.spec.rules import Choices, refusal
from tests.compositions.choices import PATTERNS, Sizes
from tests.inputs import VARIED, Inputs, spec
from tests.kernels.every import (
    SPECS,
    Results,
    assert_results,
    assert_same_bits,
    by_kernel,
    results,
    takers,
)
from tests.kernels.watch import NothingAsLargeAs
from tests.tolerances import assert_close

FAR = 1_000_000

# --- far out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@by_kernel(one_in=3, aligned=False)
def test_positions_may_be_given_and_far_out(kernel: str, name: str, dtype: torch.dtype) -> None:
    inputs = Inputs.draw(SPECS[name], 0, batch=1, q_len=60, kv_len=90)
    inputs = inputs.giving(query_positions=FAR + np.arange(30, 90), key_positions=FAR + np.arange(90))
    assert_results(results(inputs, kernel, dtype), {**results(inputs, "plain"), "output": inputs.oracle()}, dtype)


FAR_SPECS = {
    name: ph.AttentionSpec(storage=ph.Grouped(num_heads=2, num_kv_heads=1, head_dim=4), **choices)
    for name, choices in {
        "RoPE": {"position": ph.Rotary(), "pattern": ph.Causal()},
        "RoPE in a window": {"position": ph.Rotary(), "pattern": ph.SlidingWindow.causal(100)},
        "ALiBi": {"position": ph.Alibi(), "pattern": ph.Causal()},
        "linear": {"position": ph.Rotary(), "pattern": ph.Causal(), "weighting": ph.Linear()},
    }.items()
}
FAR_WALK = [
    pytest.param(kernel, name, marks=pytest.mark.slow if isinstance(one.weighting, ph.Softmax) else ())
    for name, one in FAR_SPECS.items()
    for kernel in takers(Case(spec=one, q_len=3, kv_len=FAR))
]


@pytest.mark.parametrize(("kernel", "name"), FAR_WALK)
def test_the_last_queries_of_a_million_keys(kernel: str, name: str) -> None:
    inputs = Inputs.draw(FAR_SPECS[name], 1, batch=1, q_len=3, kv_len=FAR).rounded(torch.float32)
    assert_close(inputs.attend(torch.float32, kernel=kernel), inputs.attend(torch.float64, kernel="plain"), "float32")


# --- scores


SIGNS = {
    "all positive": (lambda i: 1.0 + 0.0 * i, lambda j: 1.0 + 0.0 * j),
    "all negative": (lambda i: 1.0 + 0.0 * i, lambda j: -1.0 + 0.0 * j),
    "by key": (lambda i: 1.0 + 0.0 * i, lambda j: (-1.0) ** j),
    "by query": (lambda i: (-1.0) ** i, lambda j: 1.0 + 0.0 * j),
    "by both": (lambda i: (-1.0) ** i, lambda j: (-1.0) ** j),
    "by key's half": (lambda i: 1.0 + 0.0 * i, lambda j: np.sign(j - 130.5)),
    "one key apart": (lambda i: 1.0 + 0.0 * i, lambda j: np.where(j == 150, 1.0, -1.0)),
}


def with_scores_of(size: float, name: str, signs: str) -> Inputs:
    """Return inputs whose scores are near ``±size``, and differ by about 1 besides."""
    inputs = Inputs.draw(SPECS[name], 2, batch=1, q_len=150, kv_len=260)
    changed = {}
    for tensor, sign in zip(("query", "key"), SIGNS[signs], strict=True):
        array = inputs.learned[tensor].copy()
        array[..., -1] = np.sqrt(size / inputs.spec.scale) * sign(np.arange(array.shape[2]))
        changed[tensor] = array
    return inputs.changing(**changed)


@pytest.mark.parametrize("signs", SIGNS)
@by_kernel([name for name, one in SPECS.items() if not isinstance(one.weighting, ph.Linear)], one_in=7)
def test_scores_of_ten_thousand_of_any_sign(kernel: str, name: str, signs: str) -> None:
    inputs = with_scores_of(1e4, name, signs)
    assert_results(results(inputs, kernel), {**results(inputs, "plain"), "output": inputs.oracle()}, torch.float64)
    assert all(tensor.isfinite().all() for tensor in results(inputs, kernel, torch.float32).values())


# --- where a window ends


TOKENS = [0, 1, 2, 63, 64, 65, 126, 127]
"""Where a number stands out, each in a width of its own, counted from the end too."""


def edges(kernel: str, pattern: ph.Band, q_len: int, kv_len: int) -> None:
    """Assert that exactly the pairs of a band meet, by what one key's value brings to the output, and back."""
    inputs = Inputs.draw(spec("mha", pattern=pattern), 3, batch=1, q_len=q_len, kv_len=kv_len)
    distance = np.arange(kv_len) - (kv_len - q_len + np.arange(q_len))[:, None]
    meet = (distance >= -pattern.left) & (distance <= pattern.right)
    keys = np.array([*TOKENS[:4], *(kv_len - 1 - token for token in TOKENS[4:])])
    value = np.zeros_like(inputs.learned["value"])
    value[:, :, keys, np.arange(8)] = 1.0
    rows = np.array([*TOKENS[:4], *(q_len - 1 - token for token in TOKENS[4:])])
    cotangent = torch.zeros(1, 4, q_len, 8)
    cotangent[:, :, rows, np.arange(8)] = 1.0
    found = results(inputs.changing(value=value), kernel, torch.float32, cotangent=lambda output: cotangent)
    assert (found["output"].numpy() > 0).tolist() == np.broadcast_to(meet[:, keys], (1, 4, q_len, 8)).tolist()
    assert (found["value"].numpy() > 0).tolist() == np.broadcast_to(meet[rows].T, (1, 4, kv_len, 8)).tolist()


WINDOWS = [ph.SlidingWindow.causal(1), ph.SlidingWindow.causal(64), ph.SlidingWindow.causal(127)]
WINDOWS += [ph.SlidingWindow(left=128, right=63), ph.SlidingWindow(left=0, right=126)]
ABLE = takers(Case(spec=spec("mha", pattern=WINDOWS[0]), q_len=300, kv_len=300, needs_grad=True))


@pytest.mark.parametrize("more_keys", [0, 3])
@pytest.mark.parametrize(
    "q_len", [127, 128, 129, *(pytest.param(n, marks=pytest.mark.slow) for n in (1023, 1024, 1025))]
)
@pytest.mark.parametrize("window", WINDOWS, ids=repr)
@pytest.mark.parametrize("kernel", ABLE)
def test_a_window_ends_exactly_where_it_says(kernel: str, window: ph.Band, q_len: int, more_keys: int) -> None:
    edges(kernel, window, q_len, q_len + more_keys)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ABLE)
@pytest.mark.parametrize("window", [ph.SlidingWindow.causal(1024), ph.SlidingWindow(left=1023, right=1025)], ids=repr)
@pytest.mark.parametrize("q_len", [1024, 1025, 2049])
def test_a_wide_window_too(kernel: str, window: ph.Band, q_len: int) -> None:
    edges(kernel, window, q_len, q_len + 1)


# --- the same numbers again


@pytest.fixture
def threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@by_kernel(one_in=9)
def test_every_run_gives_the_same_bits_and_threads_change_rounding_alone(kernel: str, name: str) -> None:
    inputs = Inputs.draw(SPECS[name], 4, q_len=150, kv_len=301)
    found = {}
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found[number] = results(inputs, kernel, torch.float32)
        assert_same_bits(results(inputs, kernel, torch.float32), found[number])
    for number in (2, 3):
        assert_results(found[number], found[1], torch.float32, what=f"{number} threads'")


CROWDS = [list(SPECS)[start::4] for start in range(4)]


def crowd(kernel: str, names: list[str]) -> list[tuple[Inputs, str]]:
    """Return four jobs of a kernel that are as different as can be, or none if it takes none of these specs."""
    jobs = []
    for seed, name in enumerate(names):
        able = takers(Case(spec=SPECS[name], q_len=150, kv_len=301, needs_grad=True))
        if kernel in ("auto", *able):
            jobs.append((Inputs.draw(SPECS[name], seed, q_len=150 + 7 * seed, kv_len=301 - 9 * seed), kernel))
    return (jobs * 4)[:4]


@pytest.mark.parametrize("kernel", ["auto", *(pytest.param(one.name, marks=pytest.mark.slow) for one in KERNELS)])
def test_calls_at_the_same_time_are_as_if_alone(kernel: str) -> None:
    for jobs in filter(None, (crowd(kernel, names) for names in CROWDS)):
        assert_alone(jobs)


def assert_alone(jobs: list[tuple[Inputs, str]]) -> None:
    """Assert that jobs in a thread each, at the same time, give what they give one after another."""
    alone = [results(*job) for job in jobs]
    start = threading.Barrier(len(jobs))
    found: dict[int, list[Results]] = {number: [] for number in range(len(jobs))}

    def work(number: int) -> None:
        for _ in range(3):
            start.wait()
            found[number].append(results(*jobs[number]))

    workers = [threading.Thread(target=work, args=(number,)) for number in found]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number, runs in found.items():
        assert len(runs) == 3, "a thread has failed"
        for run in runs:
            assert_results(run, alone[number], torch.float64)


# --- memory


def assert_no_matrix(inputs: Inputs, kernel: str) -> None:
    length = inputs.learned["query"].shape[2]
    with NothingAsLargeAs(length * length) as watch:
        results(inputs, kernel, torch.float32)
    assert watch.operations


def lean(case: Case) -> list[str]:
    """Return the kernels that are made for a case: that take it and would be picked, but the last, which takes all."""
    return [kernel.name for kernel in KERNELS[:-1] if kernel.refuse(case) is None and kernel.pass_over(case) is None]


MAKERS = {
    "a result": lambda x: x[:, None] * x,
    "one of several": lambda x: torch.max(x[:, None] * x, dim=0),
    "memory to write to": lambda x: torch.mul(x[:, None], x, out=torch.empty(0)),
    "enlarged in place": lambda x: torch.empty(0).resize_(len(x) ** 2),
    "from NumPy": lambda x: torch.from_numpy(np.ones((len(x), len(x)))) + 1,
    "a part": lambda x: (x[:, None] * x)[:2],
    "booleans": lambda x: x[:, None] > x,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_watch_sees_a_matrix_however_it_is_made(make: Callable[[torch.Tensor], Any]) -> None:
    x = torch.ones(30)
    with NothingAsLargeAs(901):
        make(x)
    with pytest.raises(AssertionError, match="makes a tensor"), NothingAsLargeAs(900):
        make(x)


LENGTH = 1030
LEAN = [
    (kernel, name)
    for name, one in SPECS.items()
    for kernel in lean(Case(spec=one, q_len=LENGTH, kv_len=LENGTH, needs_grad=True))
]


@pytest.fixture
def smaller_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is formed at once be less than all pairs of a thousand tokens."""
    for name in ("formed.MASK_ELEMENTS", "table_gradient.MOST_ELEMENTS", "blockwise.BLOCK_ELEMENTS"):
        monkeypatch.setattr(f"polyhead.kernels.{name}", 2**18)
    monkeypatch.setattr("polyhead.kernels.tiled.COPIED_BYTES", 2**18)
    for name in ("TOGETHER_BYTES", "GATHERED_BYTES"):
        monkeypatch.setattr(f"polyhead.kernels.tiles.{name}", 2**18)


@pytest.mark.usefixtures("smaller_pieces")
@pytest.mark.parametrize(("kernel", "name"), LEAN)
def test_a_kernel_that_a_case_is_for_makes_no_matrix_of_all_pairs(kernel: str, name: str) -> None:
    assert_no_matrix(Inputs.draw(SPECS[name], 5, batch=1, q_len=LENGTH, kv_len=LENGTH), kernel)


def test_every_spec_has_a_kernel_that_makes_none() -> None:
    assert {name for _, name in LEAN} == set(SPECS)


SIZES = Sizes(num_heads=4, width=8, v_width=None, seed=3)


def varied() -> Iterator[Any]:
    for number, (pattern, (name, choices)) in enumerate(itertools.product(PATTERNS, VARIED.items())):
        whole = {**choices, "pattern": PATTERNS[pattern](SIZES)}
        fields = {"position": ph.NoPosition(), "weighting": ph.Softmax(), **whole, "storage": spec("gqa").storage}
        if refusal(Choices(**fields)) is None:
            yield pytest.param(whole, id=f"{name}-{pattern}", marks=pytest.mark.slow if number % 13 else ())


@pytest.mark.usefixtures("smaller_pieces")
@pytest.mark.parametrize("choices", list(varied()))
def test_auto_makes_no_matrix_of_all_pairs(choices: dict[str, Any]) -> None:
    assert_no_matrix(Inputs.draw(spec("gqa", **choices), 6, batch=1, q_len=LENGTH, kv_len=LENGTH), "auto")


def test_a_large_sum_in_float16_is_not_taken_for_something_that_is_not_finite() -> None:
    """All is computed again with all pairs listed, where an output is not finite."""
    inputs = Inputs.draw(spec("mha", pattern=ph.Causal()), 7, batch=1, q_len=600, kv_len=600)
    inputs = inputs.changing(value=np.full_like(inputs.learned["value"], 100.0))
    with torch.no_grad(), NothingAsLargeAs(600 * 600):
        output = inputs.attend(torch.float16)
    assert output.sum().isinf()
    assert_close(output, inputs.oracle(), torch.float16)
