"""Sizes and ways that the kernels could have, against those they have: ``python benchmarks/tried.py``.

Each alternative takes turns with what is kept, in one process; its number is the median over the turns of its time
over that of what is kept, so above 1 it is slower. ``--json`` prints the record in place of the table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

import polyhead as ph
from polyhead.kernels import blockwise, flash, formed, linear, tiles

TURNS = 7
HEADER = {"schema": 1, "benchmark": "tried"}


@dataclasses.dataclass(frozen=True)
class Trial:
    """Alternatives in one place of the code.

    Attributes:
        what: What differs.
        kept: What is kept, in words.
        others: What could be set instead, by how the table calls it.
        where: The module and the name that are set.
        spec: The mechanism that is timed.
        length: Its number of tokens.
        training: Whether the backward pass is timed too.
    """

    what: str
    kept: str
    others: dict[str, Any]
    where: tuple[Any, str]
    spec: ph.AttentionSpec
    length: int
    training: bool = False


def heads(**choices: Any) -> ph.AttentionSpec:
    """Return a mechanism of 8 heads of 64."""
    return ph.AttentionSpec(**{"storage": ph.Grouped(num_heads=8, head_dim=64), **choices})


WINDOW = ph.SlidingWindow.causal(512)
KEEPING = ph.Causal() & (WINDOW | ph.Global(first=4))
BIGBIRD = ph.BigBird(radius=1, num_global=2, num_random=3, block=64, span="all")
ALIBI = heads(position=ph.Alibi(), pattern=ph.Causal())
LINEAR = heads(pattern=ph.Causal(), weighting=ph.Linear())
CAPPED = heads(pattern=ph.Causal(), weighting=ph.Softmax(softcap=30.0))


def sizes(where: tuple[Any, str], *others: int) -> dict[str, Any]:
    """Return what a trial of a number says of it."""
    return {"where": where, "kept": f"{getattr(*where):,}", "others": {f"{other:,}": other for other in others}}


TRIALS = (
    Trial(
        "queries in a tile of a window of 512",
        spec=heads(pattern=WINDOW),
        length=8192,
        **sizes((tiles, "BAND_ROWS"), 32, 128, 256, 384),
    ),
    Trial(
        "queries in a tile under ALiBi", spec=ALIBI, length=8192, **sizes((tiles, "WIDE_ROWS"), 256, 512, 1024, 2048)
    ),
    Trial(
        "queries in a tile under ALiBi",
        spec=ALIBI,
        length=4096,
        training=True,
        **sizes((tiles, "WIDE_ROWS"), 256, 512, 1024, 2048),
    ),
    Trial(
        "bytes of keys in one call, window of 512",
        spec=heads(pattern=WINDOW),
        length=8192,
        **sizes((tiles, "TOGETHER_BYTES"), 0, 2**21, 2**25),
    ),
    Trial(
        "first 4 tokens beside a window of 512",
        "joined by their log-sum-exps",
        {"copied to lie beside the window": lambda case: False},
        (formed, "joins_exactly"),
        heads(pattern=KEEPING),
        8192,
    ),
    Trial(
        "BigBird's keys of each head",
        "numbered all at once, gathered by runs of 64",
        {"laid out tile by tile and head by head, gathered one by one": lambda call: None},
        (formed, "_units"),
        heads(pattern=BIGBIRD),
        4096,
    ),
    Trial(
        "bytes of keys gathered for one call, BigBird",
        spec=heads(pattern=BIGBIRD),
        length=4096,
        **sizes((tiles, "GATHERED_BYTES"), 0, 2**23, 2**25),
    ),
    Trial("tokens in a chunk of linear attention", spec=LINEAR, length=32768, **sizes((linear, "CHUNK"), 32, 128, 256)),
    Trial(
        "elements of features at once in linear attention",
        spec=LINEAR,
        length=32768,
        **sizes((linear, "FEATURES_AT_ONCE"), 2**16, 2**20, 2**22),
    ),
    Trial(
        "scores in a block under softcap",
        spec=CAPPED,
        length=4096,
        **sizes((blockwise, "BLOCK_ELEMENTS"), 2**18, 2**22),
    ),
    Trial(
        "keys whose gradients are formed at once, ALiBi",
        spec=ALIBI,
        length=8192,
        training=True,
        **sizes((flash, "KEYS_AT_ONCE"), 1024, 16384),
    ),
)


def step(trial: Trial) -> Callable[[], Any]:
    """Return what a trial times."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 8, trial.length, 64, requires_grad=trial.training) for _ in range(3))
    if not trial.training:
        return lambda: ph.attend(query, key, value, trial.spec)
    cotangent = torch.randn(1, 8, trial.length, 64)
    return lambda: torch.autograd.grad(ph.attend(query, key, value, trial.spec), (query, key, value), cotangent)


def seconds(run: Callable[[], Any], setting: contextlib.AbstractContextManager[Any]) -> float:
    """Return how long one run takes with something set."""
    with setting:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def measured(trial: Trial) -> Iterator[dict[str, Any]]:
    """Yield a row for each alternative."""
    run = step(trial)
    settings = {trial.kept: contextlib.nullcontext}
    settings |= {
        name: lambda other=other: mock.patch.object(*trial.where, other) for name, other in trial.others.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in settings}
    for turn in range(TURNS + 1):  # the first warms up
        for name, setting in settings.items():
            taken[name].append(seconds(run, setting()))
            if not turn:
                taken[name].clear()
    for name in trial.others:
        ratios = [other / kept for other, kept in zip(taken[name], taken[trial.kept], strict=True)]
        yield {
            "what": trial.what,
            "tokens": trial.length,
            "direction": "training" if trial.training else "forward",
            "kept": trial.kept,
            "tried": name,
            "ratio": statistics.median(ratios),
        }


def table(record: dict[str, Any]) -> str:
    """Return a record as a Markdown table."""
    rows = record["rows"]
    cells = [("what", "tokens", "direction", "kept", "tried", "time / kept"), ("---",) * 6]
    cells += [(r["what"], f"{r['tokens']:,}", r["direction"], r["kept"], r["tried"], f"{r['ratio']:.2f}") for r in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main() -> None:
    """Time all trials and print them."""
    rows = []
    for trial in TRIALS:
        sys.stderr.write(f"{trial.what}, {trial.length:,} tokens\n")
        rows += measured(trial)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    record = {**HEADER, "machine": machine, "rows": rows}
    sys.stdout.write((json.dumps(record, indent=2) if "--json" in sys.argv else table(record)) + "\n")


if __name__ == "__main__":
    main()
