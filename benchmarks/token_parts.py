"""Where the time of a token of SmolLM2 goes: ``python benchmarks/token_parts.py``.

The model of the case ``decode-smollm2``, adopted, decodes one token after 7,600 again and again, and functions inside
it are timed on the way: the attention layers, and in them the compiled loops and the projections. What is left of a
token is the rest of the model, which adoption leaves as it is: feed-forward layers, norms and the output's table. For
each part that reads something large it says how many bytes, and at which rate they came; beside them stands the rate
of reading memory alone. With ``--json`` it prints a record in place of the table.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from polyhead import attention
from polyhead.bench import measure_ceilings, models
from polyhead.bench.case import Case
from polyhead.bench.cases import case
from polyhead.bench.ceilings import machine_line
from polyhead.catalog import model
from polyhead.errors import require_extra
from polyhead.hf.families.base import Adopted
from polyhead.kernels import decode_numba
from polyhead.spec import retention

SCHEMA = 1
WARMUP_TURNS, TURNS = 3, 31
CASE = "decode-smollm2"
TIMED = {
    "attention layers": (Adopted, "attend"),
    "compiled loops": (decode_numba, "_in_loops"),
    "projections": (attention, "project"),
}
"""Each part that is timed, and the function whose calls it is."""


@contextlib.contextmanager
def timed(taken: dict[str, float]) -> Iterator[None]:
    """Add the seconds of each part's calls to ``taken``, for as long as the block lasts."""

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*given, **options)
            taken[name] += time.perf_counter() - start
            return result

        return call

    with contextlib.ExitStack() as stack:
        for name, (owner, member) in TIMED.items():
            stack.enter_context(mock.patch.object(owner, member, around(name, getattr(owner, member))))
        yield


def bytes_of(one: Case) -> dict[str, int]:
    """Return the bytes that parts of a token read, in float32."""
    assert one.model is not None
    found = model("smollm2-135m")
    kept = sum(retention(layer.attention).numbers(one.length) for layer in found.layers)
    projected = sum(layer.parameters for layer in found.layers)
    return {"compiled loops": 4 * kept, "projections": 4 * projected, "other": 4 * (found.parameters - projected)}


def measured(one: Case) -> list[dict[str, Any]]:
    """Return a row for each part of a token: medians over the turns."""
    run, turns = models.build(one).ours, []
    for turn in range(WARMUP_TURNS + TURNS):
        taken = dict.fromkeys(TIMED, 0.0)
        with timed(taken):
            start = time.perf_counter()
            run()
            whole = time.perf_counter() - start
        if turn >= WARMUP_TURNS:
            turns.append({"a token": whole, **taken})
    median = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    inside, sizes = median["attention layers"], bytes_of(one)
    small = inside - median["compiled loops"] - median["projections"]
    return [
        {"part": "attention: the compiled loops, which read the cache", **_row(median, "compiled loops", sizes)},
        {"part": "attention: projections of queries, keys, values, output", **_row(median, "projections", sizes)},
        {"part": "attention: rotation, checks, caches, in many small steps", "seconds": small, "bytes": None},
        {"part": "not attention", "seconds": median["a token"] - inside, "bytes": sizes["other"]},
        {"part": "a token", "seconds": median["a token"], "bytes": sum(sizes.values())},
    ]


def _row(median: dict[str, float], name: str, sizes: dict[str, int]) -> dict[str, Any]:
    return {"seconds": median[name], "bytes": sizes[name]}


def table(record: dict[str, Any]) -> str:
    """Return a record as a Markdown table."""
    whole = record["rows"][-1]["seconds"]
    cells = [("part of a token", "ms", "of it", "MB read", "GB/s"), ("---",) * 5]
    for row in record["rows"]:
        read = ("", "")
        if row["bytes"] is not None:
            read = (f"{row['bytes'] / 1e6:.0f}", f"{row['bytes'] / row['seconds'] / 1e9:.1f}")
        cells.append((row["part"], f"{1e3 * row['seconds']:.1f}", f"{100 * row['seconds'] / whole:.0f} %", *read))
    cells.append(("reading memory alone", "", "", "", f"{record['read_bytes'] / 1e9:.1f}"))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main() -> None:
    """Time the parts and print them."""
    require_extra("numba", "numba", "a token in compiled loops")
    rows = measured(case(CASE))
    threads = torch.get_num_threads()
    read = measure_ceilings(seconds=2.0).read_bytes
    record = {"schema": SCHEMA, "benchmark": "token parts", "machine": machine_line(threads), "case": CASE}
    record |= {"read_bytes": read, "rows": rows}
    sys.stdout.write((json.dumps(record, indent=2) if "--json" in sys.argv else table(record)) + "\n")


if __name__ == "__main__":
    main()
