"""What was measured: rows with every turn's seconds, as JSON and as tables. No torch here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

from polyhead.bench.case import EXPONENT, MEMORY
from polyhead.bench.ceilings import Ceilings
from polyhead.bench.timer import Turns, fitted_exponent
from polyhead.errors import CheckpointError

SCHEMA = 1
"""Version of the JSON form."""

BENCHMARK = "bench"
"""What the JSON form says that it is a record of; benchmarks/ holds records of other things too."""

BUSY = 0.7
"""Load average from which others are said to have shared the processors."""

HEADER = {"schema": SCHEMA, "benchmark": BENCHMARK}
"""What the JSON form begins with."""

OURS = "ours"
"""The name of ours among the contenders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A target, and what was reached.

    Attributes:
        against: The peer whose time is the unit, ``"exponent"`` or ``"memory"``.
        limit: The largest ratio, exponent or number of MiB that meets it.
        reached: What was measured. None: it was not.
    """

    against: str
    limit: float
    reached: float | None

    @property
    def met(self) -> bool | None:
        """Whether it was met; None where it was not measured."""
        return None if self.reached is None else self.reached <= self.limit

    def __str__(self) -> str:
        verdict = {True: "met", False: "not met", None: "not measured"}[self.met]
        return f"≤ {self.limit:.3g} {verdict}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What one case gave.

    Attributes:
        case: Its name.
        title: What it computes.
        direction: ``"forward"`` or ``"training"``.
        q_len: Number of queries.
        kv_len: Number of keys.
        kernel: The kernel that ours ran on.
        spec: The mechanism or layer, as the JSON form of specs has it.
        command: What to type for this row alone.
        turns: The seconds of every turn, by contender. None: it was not run.
        base: The contender that ours is compared with first. None: no peer was there.
        titles: Who each contender is, by name.
        left_out: Why a peer was not run, by name.
        sweep: The seconds of every turn by length, from which the exponent follows. None: one length alone.
        pairs: Allowed pairs of all heads.
        operations: Useful floating-point operations.
        bytes_read: Bytes that decoding cannot but read; 0 where it is no decoding.
        share: The part that these reach of the matrix-product ceiling, or in decoding of the read ceiling.
        targets: What was meant to be reached, and was or not.
        memory: Peak memory beyond inputs, outputs and gradients in MiB, by contender. Empty: not measured.
        memory_keys: Number of keys that it was measured at, or would be.
        notes: What else is to be known, such as why it, or a length, was not run.
    """

    case: str
    title: str
    direction: str
    q_len: int
    kv_len: int
    kernel: str
    spec: Mapping[str, Any]
    command: str
    turns: Turns | None = None
    base: str | None = None
    titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sweep: Turns | None = None
    pairs: int = 0
    operations: float = 0.0
    bytes_read: float = 0.0
    share: float | None = None
    targets: tuple[Outcome, ...] = ()
    memory: Mapping[str, float] = dataclasses.field(default_factory=dict)
    memory_keys: int = 0
    notes: tuple[str, ...] = ()

    @property
    def seconds_by_length(self) -> dict[int, float]:
        """The median time of ours by length."""
        return {} if self.sweep is None else {int(name): self.sweep.median(name) for name in self.sweep.seconds}

    @property
    def exponent(self) -> float | None:
        """How time grows with length, or None where one length alone was timed."""
        return None if self.sweep is None else fitted_exponent(self.seconds_by_length)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """Build a row from decoded JSON."""
        turns = {
            name: None if data[name] is None else Turns(_tuples(data[name]["seconds"]), data[name]["base"])
            for name in ("turns", "sweep")
        }
        targets = tuple(Outcome(**target) for target in data["targets"])
        return cls(**{**data, **turns, "targets": targets, "notes": tuple(data["notes"])})


class Line(NamedTuple):
    """A line of the table: ours beside one contender, or its growth. Every field is text."""

    case: str = ""
    keys: str = ""
    kernel: str = ""
    ours: str = ""
    against: str = ""
    theirs: str = ""
    ratio: str = ""
    target: str = ""
    ceiling: str = ""


HEADINGS = Line("case", "keys", "kernel", "ours ms", "against", "its ms", "ours / it", "target", "ceiling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A whole run.

    Attributes:
        machine: The machine in a line.
        dtype: Dtype of the tensors.
        command: What was typed, or would have to be.
        ceilings: What the machine can do at most.
        load: The system's load average over the minute before, or None where it has none.
        rows: A row for each case that was run or had no room.
        failures: For each case that does not compute what it should, in what.
    """

    machine: str
    dtype: str
    command: str
    ceilings: Ceilings
    load: float | None
    rows: tuple[Row, ...]
    failures: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[Line]:
        """Return the table's lines, a case's first line with what is known of ours."""
        return [line for row in self.rows for line in lines_of(row)]

    def notes(self) -> list[str]:
        """Return what the table has no column for: what was left out and why, and what was noisy."""
        found = []
        if self.load is not None and self.load > BUSY:
            found.append(
                f"the load average was {self.load:.1f} before it began: other programs shared the processors, which "
                "slows kernels of many small steps more than one large call, in quiet turns too; measure again"
            )
        restless = [row.case for row in self.rows if row.turns is not None and not row.turns.quiet]
        restless += [f"{row.case} (growth)" for row in self.rows if row.sweep is not None and not row.sweep.quiet]
        if restless:
            found.append(f"fewer than five turns were quiet, and the quickest are shown: {', '.join(restless)}")
        for row in self.rows:
            found += [f"{row.case}: {note}" for note in row.notes]
            found += [f"{row.case}: {peer} left out: {reason}" for peer, reason in row.left_out.items()]
        return found

    def to_json(self) -> str:
        """Return the record as JSON, with its schema's version."""
        return json.dumps({**HEADER, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a record from what `to_json` returned.

        Args:
            text: The JSON.

        Returns:
            The record.

        Raises:
            CheckpointError: If it is no record, or of a later schema.
        """
        try:
            data = json.loads(text)
            schema, benchmark = data.pop("schema"), data.pop("benchmark", BENCHMARK)
            if benchmark != BENCHMARK:
                raise CheckpointError(f"this is a record of {benchmark}, not of polyhead bench")
            if schema != SCHEMA:
                raise CheckpointError(f"the record has schema {schema!r}, and this version reads {SCHEMA}")
            rows = tuple(Row.from_data(row) for row in data.pop("rows"))
            return cls(**{**data, "ceilings": Ceilings(**data["ceilings"]), "rows": rows})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"this is no record of polyhead bench: {error}") from None

    def to_markdown(self) -> str:
        """Return the record as a section of a Markdown page."""
        parts = [
            f"## {self.machine}, {self.dtype}",
            "",
            f"`{self.command}`",
            "",
            f"Ceilings: {self.ceilings}.",
            "",
        ]
        rows = [[*HEADINGS, "command"]]
        commands = {row.case: row.command for row in self.rows}
        rows += [[*line, f"`{commands[line.case]}`" if line.case else ""] for line in self.lines()]
        table = [f"| {' | '.join(row)} |" for row in rows]
        parts += [table[0], f"|{'---|' * len(rows[0])}", *table[1:], ""]
        parts += [f"- {note}" for note in self.notes()]
        parts += [f"- **{name} failed:** {reason}" for name, reason in self.failures.items()]
        return "\n".join(parts).rstrip() + "\n"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from polyhead.bench.notebook import of_record

        return of_record(self)


def lines_of(row: Row) -> Iterator[Line]:
    """Yield a row's lines of the table, the first with what is known of ours."""
    head = Line(case=row.case, keys=f"{row.kv_len}", kernel=row.kernel)
    if row.turns is None:
        yield head._replace(ours="not run")
        return
    share = "" if row.share is None else f"{100 * row.share:.0f} %"
    head = head._replace(ours=_milliseconds(row.turns.median(OURS)), ceiling=share)
    targets = {target.against: str(target) for target in row.targets}
    peers = [_peer_line(row, row.turns, name, targets) for name in row.turns.seconds if name != OURS]
    first, *others = peers or [Line()]
    yield head._replace(against=first.against, theirs=first.theirs, ratio=first.ratio, target=first.target)
    yield from others
    for name, text in targets.items():
        if name not in (*row.turns.seconds, EXPONENT, MEMORY):
            yield Line(against=row.titles.get(name, name), target=text)
    if row.exponent is not None or EXPONENT in targets:
        lengths = list(row.seconds_by_length)
        against = f"growth, {lengths[0]}–{lengths[-1]} keys" if lengths else "growth"
        grows = "" if row.exponent is None else f"N^{row.exponent:.2f}"
        yield Line(against=against, ratio=grows, target=targets.get(EXPONENT, ""))
    if row.memory or MEMORY in targets:
        yield _memory_line(row, targets)


def _memory_line(row: Row, targets: Mapping[str, str]) -> Line:
    mib = {name: f"{taken:.0f} MiB" for name, taken in row.memory.items()}
    other = next((name for name in mib if name != OURS), None)
    whose = "" if other is None else f": {row.titles[other]}"
    return Line(
        ours=mib.get(OURS, ""),
        against=f"memory, {row.memory_keys} keys{whose}",
        theirs="" if other is None else mib[other],
        target=targets.get(MEMORY, ""),
    )


def _peer_line(row: Row, turns: Turns, peer: str, targets: Mapping[str, str]) -> Line:
    ratios = turns.ratios(OURS, peer)
    low, middle, high = (f"{ratio:.{2 if ratios[1] >= 1 else 3}f}" for ratio in ratios)
    return Line(
        against=row.titles[peer],
        theirs=_milliseconds(turns.median(peer)),
        ratio=f"{middle} ({low}–{high})",
        target=targets.get(peer, ""),
    )


def _milliseconds(seconds: float) -> str:
    """Return three digits or more of a time, in milliseconds."""
    milliseconds = 1e3 * seconds
    return f"{milliseconds:.{2 if milliseconds < 10 else 1 if milliseconds < 1000 else 0}f}"


def _tuples(seconds: Mapping[str, list[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(times) for name, times in seconds.items()}
