"""Time the textbook's comparison, and attend() as a ratio to PyTorch's own attention.

A time alone says little on a shared machine, so each case takes turns with its base in one process and
what counts is their ratio: its median over the turns in which the base was quickest. They are quiet turns
if their bases agree within 15 %. A case repeats until they do, or until its time is up, and then says so.
"""

from __future__ import annotations

import functools
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

import polyhead as ph

SEQ_LEN, NUM_HEADS, HEAD_DIM = 1024, 8, 64
WARMUP_TURNS = 3
COUNTED_TURNS = 15
QUIET_FACTOR = 1.15
MAX_SECONDS = 20.0

Run = Callable[[], object]


class Case(NamedTuple):
    """One row: a call, and the call that it is compared with."""

    name: str
    kernel: str
    run: Run
    base: Run


class Measurement(NamedTuple):
    """What the turns of one case gave; times in seconds."""

    case_seconds: float
    ratios: list[float]
    num_turns: int
    quiet: bool


def seconds(run: Run) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(case: Case) -> Measurement:
    """Let case and base take turns until enough turns were quiet, or time is up."""
    for _ in range(WARMUP_TURNS):
        case.base()
        case.run()
    turns: list[tuple[float, float]] = []  # base and case, the quickest base first
    quiet = False
    deadline = time.perf_counter() + MAX_SECONDS
    while len(turns) < COUNTED_TURNS or (not quiet and time.perf_counter() < deadline):
        turns.append((seconds(case.base), seconds(case.run)))
        turns.sort()
        quiet = turns[:COUNTED_TURNS][-1][0] <= QUIET_FACTOR * turns[0][0]
    counted = turns[:COUNTED_TURNS]
    case_seconds = statistics.median(run for _, run in counted)
    return Measurement(case_seconds, [run / base for base, run in counted], len(turns), quiet)


def attend_case(
    name: str, spec: ph.AttentionSpec, kernel: str = "auto", num_maps: int = NUM_HEADS, causal: bool = True
) -> Case:
    """Build the case of one spec, on random input, against SDPA over as many heads of the same width."""
    query, key = (torch.randn(1, num_maps, SEQ_LEN, HEAD_DIM) for _ in range(2))
    num_values = spec.storage.num_heads
    value = torch.randn(1, num_values, SEQ_LEN, num_maps * HEAD_DIM // num_values)
    base_value = torch.randn_like(query)
    params = {name: 0.1 * torch.randn(shape) for name, shape in spec.parameter_shapes().items()}
    run = functools.partial(ph.attend, query, key, value, spec, params=params, kernel=kernel)
    base = functools.partial(F.scaled_dot_product_attention, query, key, base_value, is_causal=causal)
    return Case(name, kernel, run, base)


def attend_cases() -> Iterator[Case]:
    """List what is timed: full and causal as `auto` runs them, and the plain kernel on four mechanisms."""
    heads = ph.Grouped(num_heads=NUM_HEADS, num_kv_heads=NUM_HEADS, head_dim=HEAD_DIM)
    pairs = ph.Grouped(num_heads=NUM_HEADS // 2, num_kv_heads=NUM_HEADS // 2, head_dim=HEAD_DIM)
    spec = functools.partial(
        ph.AttentionSpec, storage=heads, position=ph.NoPosition(), pattern=ph.Causal(), weighting=ph.Softmax()
    )
    yield attend_case("full", spec(pattern=ph.Full()), causal=False)
    yield attend_case("causal", spec())
    yield attend_case("causal", spec(), "plain")
    yield attend_case("causal + ALiBi", spec(position=ph.Alibi()), "plain")
    yield attend_case("causal, window of 128", spec(pattern=ph.SlidingWindow.causal(128)), "plain")
    yield attend_case("causal, linear", spec(weighting=ph.Linear()), "plain")
    differential = spec(storage=pairs, weighting=ph.Differential(form="paper"))
    yield attend_case("causal, differential", differential, "plain", num_maps=NUM_HEADS)


def report(case: Case) -> str:
    """Measure one case and write its row."""
    result = measure(case)
    low, middle, high = statistics.quantiles(result.ratios, n=4)
    noisy = "" if result.quiet else "  (the machine was never quiet)"
    return (
        f"{case.name:24}{case.kernel:8}{1e3 * result.case_seconds:9.2f}{middle:9.2f}"
        f"{low:9.2f}-{high:.2f}{result.num_turns:8}{noisy}"
    )


def compare_all(engine: str) -> object:
    """Compute the textbook's table."""
    return ph.AttentionComparison(engine=engine).table(token="cat")


def main() -> None:
    """Print both tables."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, CPU, {threads} threads")
    print("\nThe shared example, all fifteen mechanisms, median of 5:")
    for engine in ("numpy", "torch"):
        times = [seconds(functools.partial(compare_all, engine)) for _ in range(5)]
        print(f"  {engine:6}{1e3 * statistics.median(times):8.1f} ms")
    print(f"\nattend() against SDPA, float32, N = {SEQ_LEN}, {NUM_HEADS} heads of {HEAD_DIM}, forward only:")
    print(f"{'case':24}{'kernel':8}{'ms':>9}{'x SDPA':>9}  middle half   turns")
    with torch.inference_mode():
        for case in attend_cases():
            print(report(case), flush=True)


if __name__ == "__main__":
    main()
