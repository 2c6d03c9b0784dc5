"""Peak memory beyond inputs, outputs and gradients, in a process for each case: ``python -m polyhead.bench.memory``."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from polyhead.bench.case import SHORTEST, Case
from polyhead.bench.cases import CASES, case as case_of
from polyhead.bench.records import OURS
from polyhead.errors import PolyheadError, UnsupportedError

MIB = 2**20

MMAP_THRESHOLD = 1_000_000
"""Bytes from which glibc takes a block of memory from the system, and gives it back when it is freed."""

WARM_UP_LENGTH = 768
"""Keys of the run that loads libraries and starts threads before memory is looked at; BigBird needs twelve blocks."""


def peak_memory(case: Case, contender: str = OURS, *, dtype: str = "float32", threads: int = 1) -> float:
    """Run one call in a fresh process and return its peak resident memory beyond inputs, outputs and gradients.

    Args:
        case: One of the documented cases, at any length.
        contender: ``"ours"``, or the name of one of the case's peers.
        dtype: Dtype of the tensors.
        threads: Threads to compute with.

    Returns:
        MiB.

    Raises:
        UnsupportedError: If the case is not a documented one, which alone the process finds by its name.
        PolyheadError: If the process fails, with the end of what it wrote.
    """
    known = next((one for one in CASES if one.name == case.name), None)
    if known is None or (known.spec, known.training) != (case.spec, case.training):
        raise UnsupportedError(f"memory is measured of the documented cases, and {case.name!r} as given is none")
    command = [sys.executable, "-m", "polyhead.bench.memory", case.name, contender, str(case.length), dtype]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD)}
    done = subprocess.run([*command, str(threads)], check=False, env=env, capture_output=True, encoding="utf-8")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PolyheadError(f"measuring the memory of {contender} at {case.length} keys failed: {last}")
    return float(json.loads(done.stdout)["mib"])


def measured(case: Case, contender: str, dtype: str) -> float:
    """Return in MiB how far one call raises this process's peak resident memory beyond what it returns."""
    import torch

    from polyhead.bench.work import Run, Work, no_room

    if contender == OURS and (reason := no_room(case, getattr(torch, dtype))):
        raise UnsupportedError(f"{case.name} at {case.length} keys {reason}")

    def build(sized: Case) -> Run:
        work = Work.of(sized, getattr(torch, dtype))
        if contender == OURS:
            return work.ours()
        from polyhead.bench.peers import PEERS

        made = PEERS[contender].build(work)
        if isinstance(made, str):
            raise UnsupportedError(f"{contender} does not run {sized.name}: {made}")
        return made.run

    build(case.at(min(case.length, max(SHORTEST, WARM_UP_LENGTH))))()
    run = build(case)
    _forget_peak()
    before = _peak_bytes()
    outputs = run()
    returned = sum(output.numel() * output.itemsize for output in outputs)
    return max(0.0, (_peak_bytes() - before - returned) / MIB)


def _peak_bytes() -> int:
    """Return the most memory that this process has held.

    Linux's ``VmHWM`` is preferred to getrusage, which counts what the parent held before it started this process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        raise UnsupportedError("peak memory is read from getrusage, which this system does not have") from None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    """Let the peak count from now on; elsewhere than on Linux what making the inputs took hides as much of a run."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main(arguments: Sequence[str]) -> None:
    """Measure one call and write ``{"mib": ...}``.

    Args:
        arguments: Case, contender, number of keys, dtype, threads.
    """
    name, contender, length, dtype, threads = arguments
    import torch

    torch.set_num_threads(int(threads))
    mib = measured(case_of(name).at(int(length)), contender, dtype)
    sys.stdout.write(json.dumps({"mib": mib}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
