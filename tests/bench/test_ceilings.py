"""What the machine can do: the quickest of many turns, with the threads and in the dtype asked for."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import torch

from polyhead import bench
from polyhead.bench import ceilings
from polyhead.bench.ceilings import measure_ceilings
from polyhead.errors import ShapeError, UnsupportedError

SECONDS = 0.01


@pytest.fixture(autouse=True)
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read what takes no time to allocate."""
    monkeypatch.setattr(ceilings, "READ_BYTES", 2**22)


@pytest.mark.parametrize("dtype", ceilings.DTYPES)
def test_both_rates_are_measured(dtype: str) -> None:
    found = measure_ceilings(dtype, threads=1, seconds=SECONDS)
    assert (found.dtype, found.threads) == (dtype, 1)
    assert found.flops > 1e6
    assert found.read_bytes > 1e6


def test_the_quickest_turn_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = itertools.cycle([9.0, 1.0, 5.0])
    monkeypatch.setattr(ceilings, "seconds_of", lambda run: next(taken))
    found = measure_ceilings(threads=1, seconds=1e-9)
    assert (found.flops, found.read_bytes) == (2 * 256**3, ceilings.READ_BYTES)


@pytest.mark.parametrize(("waiting", "size"), [(0.0, 2048), (0.016, 2048), (1.0, 256)])
def test_small_products_that_are_kept_waiting_give_way_to_larger_ones(
    monkeypatch: pytest.MonkeyPatch, waiting: float, size: int
) -> None:
    """A product takes what it computes, 1e11 operations a second, and what it is kept waiting."""

    def quickest(run: functools.partial[torch.Tensor], *limits: float, **given: int) -> float:
        return 2 * len(run.args[0]) ** 3 / 1e11 + waiting

    monkeypatch.setattr(ceilings, "_quickest", quickest)
    expected = 2 * size**3 / (2 * size**3 / 1e11 + waiting)
    assert ceilings._product_rate(torch.float32, 5.0) == pytest.approx(expected)


def test_threads_are_given_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        ceilings, "_quickest", lambda run, *limits, **given: seen.append(torch.get_num_threads()) or 1.0
    )
    before = torch.get_num_threads()
    assert measure_ceilings(threads=before + 1).threads == before + 1
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_the_higher_of_each_is_kept() -> None:
    found = bench.Ceilings(dtype="float32", flops=2e9, read_bytes=3e9, threads=1)
    both = found.or_better(dataclasses.replace(found, flops=4e9, read_bytes=1e9))
    assert (both.flops, both.read_bytes) == (4e9, 3e9)
    assert str(both) == "matrix products: float32 4 GFLOP/s; reads of memory: 3.0 GB/s"


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"dtype": "int8"}, UnsupportedError, "dtype='int8' is not timed; use float32"),
        ({"seconds": 0.0}, ShapeError, "seconds=0.0 and threads=None must be positive"),
        ({"threads": 0}, ShapeError, "threads=0 must be positive"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        measure_ceilings(**arguments)
