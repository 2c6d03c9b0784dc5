"""Timing on a machine that others use: contenders take turns, and what counts is the turns in which it was quiet."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from polyhead.errors import ShapeError

Run = Callable[[], object]

COUNTED_TURNS = 5
"""Fewest turns that a figure is taken from."""

ENOUGH_TURNS = 25
"""Turns after which more would add nothing, if the machine was quiet."""

QUIET_FACTOR = 1.15
"""A turn is quiet if the base took at most this much of its quickest time."""


@dataclasses.dataclass(frozen=True)
class Turns:
    """What the turns of some contenders gave.

    Attributes:
        seconds: Each contender's time in every counted turn, in order, by name.
        base: The contender whose times say whether a turn was quiet.
    """

    seconds: Mapping[str, tuple[float, ...]]
    base: str

    @property
    def quiet(self) -> bool:
        """Whether enough turns were quiet."""
        return len(self._within_factor()) >= COUNTED_TURNS

    @property
    def counted(self) -> tuple[int, ...]:
        """The turns that figures are taken from: the quiet ones, or those with the quickest base where few were."""
        within = self._within_factor()
        if len(within) >= COUNTED_TURNS:
            return tuple(within)
        times = self.seconds[self.base]
        return tuple(sorted(sorted(range(len(times)), key=times.__getitem__)[:COUNTED_TURNS]))

    def of(self, name: str) -> list[float]:
        """Return a contender's seconds in the turns that count."""
        return [self.seconds[name][turn] for turn in self.counted]

    def median(self, name: str) -> float:
        """Return a contender's median seconds."""
        return statistics.median(self.of(name))

    def ratios(self, name: str, unit: str) -> tuple[float, float, float]:
        """Return a contender's time over another's in the same turn: lower quartile, median, upper quartile."""
        return quartiles([a / b for a, b in zip(self.of(name), self.of(unit), strict=True)])

    def _within_factor(self) -> list[int]:
        times = self.seconds[self.base]
        return [turn for turn, taken in enumerate(times) if taken <= QUIET_FACTOR * min(times)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def measure(
    runs: Mapping[str, Run],
    *,
    base: str,
    seconds: float,
    limit: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Turns:
    """Let contenders take turns until enough turns were quiet, or the time is up.

    Each is run once or twice before any time counts.

    Args:
        runs: What each contender runs, by name.
        base: The contender whose times say whether a turn was quiet.
        seconds: When to stop though the machine was not quiet; at least five turns are counted all the same.
        limit: Seconds after which fewer than five will do, warm-up included; there is always one.
        clock: Returns the time in seconds.

    Returns:
        The turns.
    """
    begun = clock()
    for _ in range(2):
        for run in runs.values():
            run()
        if clock() - begun > seconds / 10:  # long runs have warmed up by then
            break
    taken: dict[str, list[float]] = {name: [] for name in runs}
    start, collecting = clock(), gc.isenabled()
    gc.disable()
    try:
        while not taken[base] or (clock() - begun < limit and _goes_on(_turns(taken, base), clock() - start, seconds)):
            for name, run in runs.items():
                taken[name].append(seconds_of(run, clock))
    finally:
        if collecting:
            gc.enable()
    return _turns(taken, base)


def _turns(taken: Mapping[str, list[float]], base: str) -> Turns:
    return Turns({name: tuple(times) for name, times in taken.items()}, base)


def _goes_on(turns: Turns, elapsed: float, seconds: float) -> bool:
    number = len(turns.seconds[turns.base])
    if number < COUNTED_TURNS:
        return True
    if elapsed >= seconds:
        return False
    return not turns.quiet or (number < ENOUGH_TURNS and elapsed < seconds / 10)


def seconds_of(run: Run, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long one call takes; what it returns is freed outside the timing."""
    start = clock()
    result = run()
    taken = clock() - start
    del result
    return taken


@contextlib.contextmanager
def computing_with(threads: int | None) -> Iterator[int]:
    """Give torch a number of threads for as long as the block lasts.

    Args:
        threads: How many. None: as many as torch has.

    Yields:
        How many there are.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def fitted_exponent(seconds: Mapping[int, float]) -> float:
    """Fit time ∝ length^exponent by least squares on logarithms.

    Args:
        seconds: The time at each length.

    Returns:
        The exponent.

    Raises:
        ShapeError: If there are fewer than two lengths.
    """
    if len(seconds) < 2:
        raise ShapeError(f"an exponent needs times at two lengths or more, got {len(seconds)}")
    x = [math.log(length) for length in seconds]
    y = [math.log(taken) for taken in seconds.values()]
    return statistics.linear_regression(x, y).slope
