"""What the machine can do at most: matrix products and reads of memory, measured."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from polyhead.bench.timer import computing_with, seconds_of
from polyhead.errors import ShapeError, UnsupportedError, require_extra

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float64", "bfloat16", "float16")
"""The dtypes that matrices are multiplied in, and cases timed."""

SMALLEST, LARGEST = 256, 2048
"""Rows and columns of the matrices multiplied."""

READ_BYTES = 2**28
"""Bytes read: past the largest caches."""

FEWEST_TURNS = 3
"""Times that each is run at least, however slow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What one machine can do at most, with a number of threads.

    Attributes:
        dtype: Name of the dtype of the matrices multiplied.
        flops: Floating-point operations per second of a product of square matrices, ``2·n³`` for each.
        read_bytes: Bytes per second read from memory, past the caches, by a sum.
        threads: Threads that computed.
    """

    dtype: str
    flops: float
    read_bytes: float
    threads: int

    def or_better(self, other: Ceilings) -> Ceilings:
        """Return the higher of each figure: what was measured in a busy moment is no ceiling."""
        flops, read_bytes = max(self.flops, other.flops), max(self.read_bytes, other.read_bytes)
        return dataclasses.replace(self, flops=flops, read_bytes=read_bytes)

    def __str__(self) -> str:
        products = f"matrix products: {self.dtype} {self.flops / 1e9:.0f} GFLOP/s"
        return f"{products}; reads of memory: {self.read_bytes / 1e9:.1f} GB/s"


def measure_ceilings(dtype: str = "float32", *, threads: int | None = None, seconds: float = 1.5) -> Ceilings:
    """Measure what this machine's CPU can do at most: how fast it multiplies matrices, and how fast it reads memory.

    Each is run again and again until its half of the time is up, and the quickest counts, so that what other programs
    take in between does not.

    Args:
        dtype: Name of the dtype of the matrices.
        threads: Threads to compute with. None: as many as torch has.
        seconds: How long to measure, both together; allocating what is read takes some tenths more.

    Returns:
        The ceilings, in operations and bytes per second.

    Raises:
        UnsupportedError: If the dtype is not one of ``DTYPES``.
        ShapeError: If threads or seconds are not positive.
        MissingExtraError: If torch is not installed.
    """
    if dtype not in DTYPES:
        raise UnsupportedError(f"dtype={dtype!r} is not timed; use {', '.join(DTYPES)}")
    if seconds <= 0 or (threads is not None and threads < 1):
        raise ShapeError(f"seconds={seconds} and threads={threads} must be positive")
    require_extra("torch", "torch", "measuring the machine")
    import torch

    with computing_with(threads) as used:
        flops = _product_rate(getattr(torch, dtype), seconds / 2)
        read = READ_BYTES / _quickest(torch.ones(READ_BYTES // 4).sum, seconds / 2)
    return Ceilings(dtype=dtype, flops=flops, read_bytes=read, threads=used)


def machine_line(threads: int) -> str:
    """Return the machine in a line: processor, torch's version, threads, date."""
    import torch

    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    words = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{_processor()}, torch {torch.__version__}, {words}, {today}"


def _product_rate(dtype: torch.dtype, seconds: float) -> float:
    """Double the matrices as long as there is time, and return the most operations per second of any.

    Among other programs a small product takes as long as the system lets a thread wait, a large one what it computes.
    """
    import torch

    start, size, best = time.perf_counter(), SMALLEST, 0.0
    while True:
        matrix = torch.randn(size, size).to(dtype)
        multiply = functools.partial(torch.matmul, matrix, matrix)
        taken = _quickest(multiply)
        left = seconds - (time.perf_counter() - start)
        if size < LARGEST and FEWEST_TURNS * 2**3 * taken < left:  # there is time for the next one
            best, size = max(best, 2 * size**3 / taken), 2 * size
        elif left > 0:
            return max(best, 2 * size**3 / min(taken, _quickest(multiply, left, fewest=1)))
        else:
            return max(best, 2 * size**3 / taken)


def _quickest(run: Callable[[], object], seconds: float = 0.0, *, fewest: int = FEWEST_TURNS) -> float:
    """Return the least time of a call of all that begin before the time is up."""
    start, taken = time.perf_counter(), [seconds_of(run) for _ in range(fewest)]
    while time.perf_counter() - start < seconds:
        taken.append(seconds_of(run))
    return min(taken)


def _processor() -> str:
    """Return the processor's name, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
