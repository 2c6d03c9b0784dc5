"""What was measured, as a Markdown table: ``python scripts/bench_table.py window window-first``.

Rows are those of the records of `polyhead bench` in benchmarks/results, for the cases named; ``tried``,
``token_parts`` and ``dashboard`` instead print the record of the script of that name, and ``plan`` that of
`polyhead bench --check-plan`.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from polyhead.bench import calibrate
from polyhead.bench.records import Line, Record, lines_of

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = ("tried", "token_parts", "dashboard")
"""Scripts that have a record and a table of their own."""

HEADER = ("case", "tokens", "ours, ms", "of the ceiling", "beside", "ours / it", "meant to be")


def table(names: Sequence[str]) -> str:
    """Return the table of some cases, of a script's record, or of what was planned."""
    if list(names) == ["plan"]:
        return calibrate.table(json.loads((BENCHMARKS / "results" / "plan.json").read_text(encoding="utf-8")))
    if len(names) == 1 and names[0] in SCRIPTS:
        record = json.loads((BENCHMARKS / "results" / f"{names[0]}.json").read_text(encoding="utf-8"))
        own: str = runpy.run_path(str(BENCHMARKS / f"{names[0]}.py"))["table"](record)
        return own
    lines = [HEADER, ("---",) * len(HEADER), *(cells(line) for name in names for line in measured(name))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured(name: str) -> Iterator[Line]:
    """Yield the lines of a case, of every record that has it."""
    found = False
    for file in sorted((BENCHMARKS / "results").glob("*-threads.json")):
        record = Record.from_json(file.read_text(encoding="utf-8"))
        for row in record.rows:
            if row.case == name:
                found = True
                yield from lines_of(row)
    if not found:
        raise SystemExit(f"no record has a case {name!r}; type: make bench")


def cells(line: Line) -> tuple[str, ...]:
    """Return a line's cells, of those in the header."""
    return (line.case, line.keys, line.ours, line.ceiling, line.against, line.ratio, line.target)


if __name__ == "__main__":
    sys.stdout.write(table(sys.argv[1:]) + "\n")
