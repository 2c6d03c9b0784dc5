"""What the machine can do at most: matrix products and reads of memory, measured."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from polyhead.bench.timer import measure

if TYPE_CHECKING:
    import torch

SMALLEST, LARGEST = 256, 4096
"""Rows and columns of the matrices multiplied."""

LONG_ENOUGH = 0.02
"""Seconds from which a product is long enough; half precision without its instructions reaches them at the smallest."""

READ_BYTES = 2**28
"""Bytes read: past the largest caches."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What one machine can do at most, with a number of threads.

    Attributes:
        flops: Floating-point operations per second of a matrix product, by dtype.
        read_bytes: Bytes per second read from memory.
        threads: Threads that computed.
        machine: The machine in a line: processor, torch, threads, date.
    """

    flops: Mapping[str, float]
    read_bytes: float
    threads: int
    machine: str

    def or_better(self, other: Ceilings) -> Ceilings:
        """Return the higher of each figure: what was measured in a busy moment is no ceiling."""
        flops = {name: max(rate, other.flops[name]) for name, rate in self.flops.items()}
        return dataclasses.replace(self, flops=flops, read_bytes=max(self.read_bytes, other.read_bytes))


def ceilings(dtypes: Sequence[str] = ("float32",), *, seconds: float = 2.0) -> Ceilings:
    """Measure what the machine can do with the threads that torch has been given.

    Args:
        dtypes: Names of the dtypes to multiply matrices in.
        seconds: How long to measure each at most.

    Returns:
        The ceilings, each from the quickest turn.
    """
    import torch

    numbers = torch.ones(READ_BYTES // 4)
    read = _quickest(numbers.sum, seconds)
    flops = {name: _product_rate(getattr(torch, name), seconds) for name in dtypes}
    threads = torch.get_num_threads()
    return Ceilings(flops=flops, read_bytes=READ_BYTES / read, threads=threads, machine=machine_line(threads))


def machine_line(threads: int) -> str:
    """Return the machine in a line: processor, torch's version, threads, date."""
    import torch

    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    words = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{_processor()}, torch {torch.__version__}, {words}, {today}"


def _product_rate(dtype: torch.dtype, seconds: float) -> float:
    """Multiply ever larger matrices until that takes long enough, and return operations per second."""
    import torch

    size, taken = SMALLEST // 2, 0.0
    while taken < LONG_ENOUGH and size < LARGEST:
        size *= 2
        matrix = torch.randn(size, size).to(dtype)
        taken = _quickest(functools.partial(torch.matmul, matrix, matrix), seconds)
    return 2 * size**3 / taken


def _quickest(run: Callable[[], object], seconds: float) -> float:
    turns = measure({"run": run}, base="run", seconds=seconds)
    return min(turns.seconds["run"])


def _processor() -> str:
    """Return the processor's name, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
