"""Where the time of a case of `polyhead bench` goes: ``python benchmarks/profile_case.py window-layer mla``.

For each case it prints PyTorch's operators that take the most time by themselves, and their part of the whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from polyhead.bench.cases import case
from polyhead.bench.work import Work

MOST = 8
"""Operators that are printed."""


def shares(name: str) -> Iterator[tuple[str, float]]:
    """Yield operators and their parts of a case's time, the largest first."""
    run = Work.of(case(name), torch.float32).ours()
    run()  # what the first run alone does is no part of it
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    for event in events[:MOST]:
        yield event.key, event.self_cpu_time_total / total


def main() -> None:
    """Print the shares of every case named."""
    torch.manual_seed(0)
    for name in sys.argv[1:]:
        sys.stdout.write(f"{name}\n")
        for operator, share in shares(name):
            sys.stdout.write(f"  {100 * share:5.1f} %  {operator}\n")


if __name__ == "__main__":
    main()
