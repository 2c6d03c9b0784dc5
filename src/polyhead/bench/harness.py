"""A run: each case checked, timed beside its peers, and made a row."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from polyhead.bench.case import EXPONENT, MEMORY, MEMORY_LENGTH, Case
from polyhead.bench.cases import CASES, EVERY, case as case_of
from polyhead.bench.ceilings import DTYPES, Ceilings, machine_line, measure_ceilings
from polyhead.bench.decoding import DECODING
from polyhead.bench.records import OURS, Outcome, Record, Row
from polyhead.bench.timer import Turns, computing_with, measure, seconds_of
from polyhead.errors import PolyheadError, ShapeError, UnsupportedError, require_extra

if TYPE_CHECKING:
    from polyhead.bench.contender import Contender
    from polyhead.bench.work import Outputs, Work

SECONDS = 20.0
QUICK_SECONDS = 1.5

QUICK_LIMIT = 3.0
"""Seconds after which the quick table takes what turns there are; a busy machine can stretch one a hundredfold."""

QUICK_DEADLINE = 60.0
"""Seconds after which the quick table begins no further case."""

DOCUMENTED_DTYPE = "float32"
"""The one that targets are for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How cases are timed, see `run`."""

    quick: bool
    peers: bool
    dtype: str
    threads: int
    seconds: float
    memory: bool
    decoding: bool = False

    @property
    def hurried(self) -> bool:
        """Whether the table must end in time: the quick one, unless it was given seconds of its own."""
        return self.quick and self.seconds == QUICK_SECONDS

    @property
    def limit(self) -> float:
        """Seconds after which fewer than five turns will do."""
        return QUICK_LIMIT if self.hurried else math.inf

    @property
    def deadline(self) -> float:
        """Seconds after which no further case is begun."""
        return QUICK_DEADLINE if self.hurried else math.inf

    def command(self, names: Iterable[str]) -> str:
        """Return what to type for some cases."""
        words = ["polyhead bench", *names, f"--threads {self.threads}"]
        words += ["--decode"] if self.decoding and not names else []
        words += [] if self.dtype == DOCUMENTED_DTYPE else [f"--dtype {self.dtype}"]
        words += ["--quick"] if self.quick else []
        words += [] if self.seconds == _default_seconds(self.quick) else [f"--seconds {self.seconds:g}"]
        words += ["--memory"] if self.memory else []
        return " ".join(words + ([] if self.peers else ["--no-peers"]))


class Interrupted(KeyboardInterrupt):
    """A run was interrupted when there was something to show."""

    @property
    def record(self) -> Record:
        """What had been measured by then, a row or more."""
        record: Record = self.args[0]
        return record


def run(
    cases: Iterable[str | Case] | None = None,
    *,
    quick: bool = False,
    peers: bool = True,
    dtype: str = DOCUMENTED_DTYPE,
    threads: int | None = None,
    seconds: float | None = None,
    memory: bool = False,
    decoding: bool = False,
    progress: Callable[[str], object] = lambda text: None,
) -> Record:
    """Time cases beside their peers.

    Nothing is timed that does not agree with the oracle at a small length, and with each peer that computes the same
    function at the length timed. A case that fails, in this or by itself, is no row but an entry of ``failures``.

    Args:
        cases: Cases or their names. None: the documented set, or the quick table's.
        quick: Whether to use the quick table's lengths.
        peers: Whether to run others than the base, the first peer that is there.
        dtype: Dtype of all tensors.
        threads: Threads to compute with. None: as many as torch has.
        seconds: When to stop waiting for a quiet machine, for each case. None: 20, or 1.5 if quick,
            which then ends in time on a busy machine too, with fewer turns or fewer cases.
        memory: Whether to measure peak memory too, each time in a process of its own; not in decoding.
        decoding: Whether the set without names is that of decoding.
        progress: Called with a line before each case.

    Returns:
        The record.

    Raises:
        UnknownNameError: If there is no case of a name.
        UnsupportedError: If a case is not in the quick table, or the dtype is not one of those known.
        ShapeError: If threads or seconds are not positive.
        MissingExtraError: If torch is not installed.
        Interrupted: If it is interrupted when there is a row; it holds the record so far.
    """
    chosen = selected(cases, quick=quick, decoding=decoding)
    if dtype not in DTYPES:
        raise UnsupportedError(f"dtype={dtype!r} is not timed; use {', '.join(DTYPES)}")
    seconds = _default_seconds(quick) if seconds is None else seconds
    if seconds <= 0 or (threads is not None and threads < 1):
        raise ShapeError(f"seconds={seconds} and threads={threads} must be positive")
    for module in ("torch", "jaxtyping"):
        require_extra(module, "torch", "a benchmark")

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    asked = [] if cases is None else [one.name for one in chosen]
    rows: list[Row] = []
    failures: dict[str, str] = {}
    with computing_with(threads) as used:
        options = Options(
            quick=quick, peers=peers, dtype=dtype, threads=used, seconds=seconds, memory=memory, decoding=decoding
        )
        progress("ceilings of the machine")
        ceilings = measure_ceilings(dtype)
        head = Record(
            machine=machine_line(used),
            dtype=dtype,
            command=options.command(asked),
            ceilings=ceilings,
            load=load,
            rows=(),
        )
        try:
            _run_all(chosen, options, progress, rows, failures)
        except KeyboardInterrupt:
            if not rows:
                raise
            raise Interrupted(_finished(head, ceilings, rows, failures)) from None
        if rows:
            ceilings = ceilings.or_better(measure_ceilings(dtype))
    return _finished(head, ceilings, rows, failures)


def _run_all(
    cases: list[Case],
    options: Options,
    progress: Callable[[str], object],
    rows: list[Row],
    failures: dict[str, str],
) -> None:
    """Add a row or a failure for each case to those there are, which an interrupt leaves as they are."""
    begun = time.monotonic()
    for number, one in enumerate(cases, start=1):
        if time.monotonic() - begun > options.deadline:
            why = f"not run: the quick table's time was up; type: {options.command([one.name])}"
            rows.append(dataclasses.replace(_untimed(one, options), notes=(why,)))
            continue
        progress(f"{number}/{len(cases)} {one.name}: {one.title}, {one.direction}, {one.length} keys")
        try:
            rows.append(timed(one, options))
        except (PolyheadError, RuntimeError, MemoryError) as error:  # the other cases are still worth their time
            failures[one.name] = str(error)


def _finished(head: Record, ceilings: Ceilings, rows: list[Row], failures: dict[str, str]) -> Record:
    """Fill a record, and say of each row which part of the ceiling, known when all is done, its operations reach."""
    shares = []
    for one in rows:
        done, most = (one.bytes_read, ceilings.read_bytes) if one.bytes_read else (one.operations, ceilings.flops)
        shares.append(None if one.turns is None else done / one.turns.median(OURS) / most)
    shared = tuple(dataclasses.replace(row, share=share) for row, share in zip(rows, shares, strict=True))
    return dataclasses.replace(head, ceilings=ceilings, rows=shared, failures=failures)


def selected(cases: Iterable[str | Case] | None = None, *, quick: bool = False, decoding: bool = False) -> list[Case]:
    """Return the cases asked for, at the lengths asked for; raises as `run` does."""
    every = DECODING if decoding else CASES
    named = list(every if cases is None else (case_of(one) if isinstance(one, str) else one for one in cases))
    if not quick:
        return named
    small = [(one, one.quickened()) for one in named]
    left = [one.name for one, found in small if found is None]
    if left and cases is not None:
        there = ", ".join(one.name for one in EVERY if one.quick is not None)
        raise UnsupportedError(f"{', '.join(left)} not in the quick table, which has {there}; leave quick out")
    return [found for _, found in small if found is not None]


def _default_seconds(quick: bool) -> float:
    return QUICK_SECONDS if quick else SECONDS


def timed(case: Case, options: Options) -> Row:
    """Check one case, time it, and make its row; raises DisagreementError where a check fails."""
    import torch

    from polyhead.bench.checks import check_against_oracle
    from polyhead.bench.work import Work, no_room, refusal

    dtype = getattr(torch, case.dtype or options.dtype)
    row = _untimed(case, options)
    if reason := refusal(case, dtype):
        return dataclasses.replace(row, notes=(f"not run: {reason}",))
    check_against_oracle(case, row.kernel, dtype)
    if case.model is not None:
        return _timed_model(case, row, options)
    if reason := no_room(case, dtype):
        return dataclasses.replace(row, notes=(f"not run: {reason}",))
    work = Work.of(case, dtype)
    contenders, titles, left_out = _contenders(work, options)
    base = next(iter(contenders), None)
    ours = work.ours()
    runs = {OURS: ours, **{name: made.run for name, made in contenders.items()}}
    turns = measure(runs, base=base or OURS, seconds=options.seconds, limit=options.limit)
    del work, contenders, runs, ours  # the lengths of the sweep need the room
    sweep, notes = _sweep(case, options)
    memory, without_memory = _memory(case.at(row.memory_keys), options, [OURS, *([base] if base else [])])
    row = dataclasses.replace(
        row,
        turns=turns,
        base=base,
        titles=titles,
        left_out=left_out,
        sweep=sweep,
        memory=memory,
        notes=(*notes, *without_memory),
    )
    return dataclasses.replace(row, targets=_outcomes(case, row) if options.dtype == DOCUMENTED_DTYPE else ())


def _timed_model(case: Case, row: Row, options: Options) -> Row:
    """Time a whole model, after all that run the same one have been compared."""
    from polyhead.bench.checks import DisagreementError, difference
    from polyhead.bench.models import ALLOWED, TITLES, build

    try:
        ours, peers, bytes_read = build(case)
    except PolyheadError as error:
        return dataclasses.replace(row, notes=(f"not run: {error}",))
    logits = ours()[0]
    for name in case.peers:
        if name != "floor" and not (apart := difference(logits, peers[name]()[0])) <= ALLOWED:
            raise DisagreementError(f"{case.name}: the logits are not those of {name}: {apart:.1e} apart")
    turns = measure({OURS: ours, **peers}, base=case.peers[0], seconds=options.seconds, limit=options.limit)
    row = dataclasses.replace(row, turns=turns, base=case.peers[0], titles=TITLES, bytes_read=bytes_read)
    return dataclasses.replace(row, targets=_outcomes(case, row))


def _untimed(case: Case, options: Options) -> Row:
    """Return a case's row with what is known before it runs."""
    import torch

    from polyhead.bench.counts import bytes_read, useful_operations
    from polyhead.bench.work import kernel_of
    from polyhead.cost import allowed_pairs

    dtype = getattr(torch, case.dtype or options.dtype)
    bounded = any(target.against == MEMORY for target in case.targets)
    return Row(
        case=case.name,
        title=case.title,
        direction=case.direction,
        q_len=case.q_len,
        kv_len=case.length,
        kernel=kernel_of(case, dtype),
        spec=json.loads(case.spec.to_json()),
        command=options.command([case.name]),
        pairs=allowed_pairs(case.attention, case.q_len, case.length),
        operations=useful_operations(case),
        bytes_read=bytes_read(case, dtype.itemsize),
        memory_keys=MEMORY_LENGTH if bounded else case.length,
    )


def _contenders(work: Work, options: Options) -> tuple[dict[str, Contender], dict[str, str], dict[str, str]]:
    """Build the peers that are there and compare those that compute the same; say why the others are left out."""
    from polyhead.bench.checks import check_same
    from polyhead.bench.peers import PEERS

    contenders: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    for name in work.case.peers:
        if contenders and not options.peers:
            left_out[name] = "only the base was asked for"
            continue
        made = PEERS[name].build(work)
        theirs = made if isinstance(made, str) else _outputs_of(made)
        if isinstance(made, str) or isinstance(theirs, str):
            left_out[name] = str(theirs)
            continue
        contenders[name] = made
        if made.same:
            ours = work.ours() if made.spec is None else work.ours(made.spec)
            check_same(ours(), theirs, work.dtype, f"{work.case.name} at {work.case.length} keys", name)
    return contenders, {name: PEERS[name].title for name in work.case.peers}, left_out


def _outputs_of(contender: Contender) -> Outputs | str:
    """Run a peer once, and return what it returns or why it fails: that is no failure of ours."""
    try:
        return contender.run()
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"it fails here: {lines[0]}"


def _sweep(case: Case, options: Options) -> tuple[Turns | None, list[str]]:
    """Time ours at several lengths, all of them in each turn, so that a slow minute of the machine is slow for all."""
    import torch

    from polyhead.bench.work import Work, no_room

    dtype = getattr(torch, case.dtype or options.dtype)
    runs, notes = {}, []
    for length in case.lengths:
        at_length = case.at(length)
        if reason := no_room(at_length, dtype):
            notes.append(f"not run at {length} keys: {reason}")
            continue
        run = Work.of(at_length, dtype).ours()
        if (taken := seconds_of(run)) > options.seconds:
            limit = f"all that a case may take is {options.seconds:g} s"
            notes.append(f"not timed from {length} keys on: one run takes {taken:.2g} s, and {limit}")
            break
        runs[str(length)] = run
    if len(runs) < 2:
        return None, notes
    base = str(case.length) if str(case.length) in runs else next(iter(runs))
    return measure(runs, base=base, seconds=options.seconds, limit=options.limit), notes


def _outcomes(case: Case, row: Row) -> tuple[Outcome, ...]:
    assert row.turns is not None
    found = []
    for target in case.targets:
        limit = target.at_most
        if target.share_of_pairs:  # of those that a peer with a query for each key has
            limit *= row.pairs / (case.attention.num_heads * case.length * (case.length + 1) / 2)
        if target.against == EXPONENT:
            reached = row.exponent
        elif target.against == MEMORY:
            reached = row.memory.get(OURS)
        else:
            reached = row.turns.ratios(OURS, target.against)[1] if target.against in row.turns.seconds else None
        found.append(Outcome(against=target.against, limit=limit, reached=reached))
    return tuple(found)


def _memory(case: Case, options: Options, names: Iterable[str]) -> tuple[dict[str, float], list[str]]:
    """Measure contenders' peak memory; a process that fails leaves its figure out and says so."""
    from polyhead.bench.memory import peak_memory

    found: dict[str, float] = {}
    notes: list[str] = []
    for name in names if options.memory and not case.decoding else ():
        try:
            found[name] = peak_memory(case, name, dtype=options.dtype, threads=options.threads)
        except PolyheadError as error:
            notes.append(str(error))
    return found, notes
