"""Turns on a clock of our own: which of them count, when measuring stops, and how growth is fitted."""

from __future__ import annotations

import functools
import gc

import pytest

from polyhead.bench.timer import COUNTED_TURNS, Turns, fitted_exponent, measure, quartiles
from polyhead.errors import ShapeError


class Clock:
    """A clock that stands still but for what is run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def run(self, *seconds: float) -> object:
        """Return a call that takes the given times, one after another and again from the first."""
        calls = iter(range(10**6))

        def spend() -> None:
            self.now += seconds[next(calls) % len(seconds)]

        return spend


def turns(base: list[float], ours: list[float] | None = None) -> Turns:
    return Turns({"base": tuple(base), "ours": tuple(ours or base)}, "base")


def test_turns_count_in_which_the_base_was_quiet() -> None:
    found = turns([1.0, 2.0, 1.1, 1.15, 1.16, 1.0, 1.0], [3.0, 9.0, 3.3, 3.45, 9.0, 4.0, 2.0])
    assert found.counted == (0, 2, 3, 5, 6)
    assert found.quiet
    assert found.median("ours") == 3.3
    assert found.ratios("ours", "base") == pytest.approx((3.0, 3.0, 3.0))


def test_where_few_turns_were_quiet_the_quickest_count() -> None:
    found = turns([1.0, 2.0, 3.0, 2.5, 1.5, 9.0])
    assert not found.quiet
    assert found.counted == (0, 1, 2, 3, 4)


def test_a_ratio_is_taken_within_each_turn() -> None:
    found = turns([1.0, 1.1, 1.0, 1.1, 1.0], [2.0, 2.2, 2.0, 2.2, 2.0])
    assert found.ratios("ours", "base") == pytest.approx((2.0, 2.0, 2.0))


def test_contenders_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    clock = Clock()
    runs = {name: (lambda name=name: (order.append(name), clock.run(0.1)())) for name in ("base", "ours")}
    found = measure(runs, base="base", seconds=0.5, clock=clock)
    assert order == ["base", "ours"] * (len(order) // 2)
    assert len(order) // 2 - len(found.seconds["base"]) == 1  # long runs have warmed up after one turn


def test_the_times_are_those_of_the_clock() -> None:
    clock = Clock()
    found = measure({"base": clock.run(1.0), "ours": clock.run(3.0)}, base="base", seconds=1.0, clock=clock)
    assert found.seconds == {
        "base": pytest.approx((1.0,) * COUNTED_TURNS),
        "ours": pytest.approx((3.0,) * COUNTED_TURNS),
    }


def test_at_least_five_turns_are_counted_though_the_time_is_up() -> None:
    clock = Clock()
    found = measure({"base": clock.run(100.0)}, base="base", seconds=1.0, clock=clock)
    assert len(found.seconds["base"]) == COUNTED_TURNS


def test_measuring_goes_on_until_the_base_is_quiet() -> None:
    clock = Clock()
    found = measure({"base": clock.run(1.0, 2.0, 2.0)}, base="base", seconds=30.0, clock=clock)
    assert found.quiet
    assert len(found.seconds["base"]) > COUNTED_TURNS


def test_measuring_gives_up_on_a_machine_that_is_never_quiet() -> None:
    clock = Clock()
    falling = [2.0**-n for n in range(40)]
    found = measure({"base": clock.run(*[100 * x for x in falling])}, base="base", seconds=180.0, clock=clock)
    assert not found.quiet
    assert len(found.counted) == COUNTED_TURNS


def test_quick_runs_are_repeated_beyond_five() -> None:
    clock = Clock()
    found = measure({"base": clock.run(0.01)}, base="base", seconds=20.0, clock=clock)
    assert len(found.seconds["base"]) == 25


@pytest.mark.parametrize(("limit", "number"), [(3.5, 3), (0.5, 1)])
def test_past_a_limit_fewer_turns_do_and_there_is_one(limit: float, number: int) -> None:
    clock = Clock()
    found = measure({"base": clock.run(1.0)}, base="base", seconds=1.0, limit=limit, clock=clock)
    assert (len(found.seconds["base"]), found.quiet) == (number, False)
    assert found.median("base") == pytest.approx(1.0)


def test_garbage_is_collected_again_after_a_run_that_fails() -> None:
    calls = iter(range(2))  # enough to warm up
    with pytest.raises(StopIteration):
        measure({"base": functools.partial(next, calls)}, base="base", seconds=1.0, clock=Clock())
    assert gc.isenabled()


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_the_fit_recovers_an_exponent(exponent: float) -> None:
    seconds = {length: 3e-7 * length**exponent for length in (512, 1024, 4096)}
    assert fitted_exponent(seconds) == pytest.approx(exponent)


def test_the_fit_is_that_of_least_squares() -> None:
    assert fitted_exponent({1: 1.0, 10: 100.0, 100: 100.0}) == pytest.approx(1.0)


def test_one_length_has_no_exponent() -> None:
    with pytest.raises(ShapeError, match="two lengths or more, got 1"):
        fitted_exponent({512: 1.0})


@pytest.mark.parametrize(
    ("values", "expected"),
    [([4.0], (4.0, 4.0, 4.0)), ([1.0, 2.0, 3.0, 4.0, 5.0], (2.0, 3.0, 4.0))],
    ids=["one", "five"],
)
def test_quartiles(values: list[float], expected: tuple[float, float, float]) -> None:
    assert quartiles(values) == expected
