"""What was measured, as a Markdown table: ``python scripts/bench_table.py window window-first``.

Rows are those of the records of `polyhead bench` in benchmarks/results, for the cases named; ``tried`` instead prints
the record of ``benchmarks/tried.py``.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from polyhead.bench.records import Line, Record, lines_of

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TRIED = BENCHMARKS / "results" / "tried.json"
HEADER = ("case", "tokens", "ours, ms", "of the ceiling", "beside", "ours / it", "meant to be")


def table(names: Sequence[str]) -> str:
    """Return the table of some cases, or of what was tried."""
    if list(names) == ["tried"]:
        rows = json.loads(TRIED.read_text(encoding="utf-8"))["rows"]
        tried: str = runpy.run_path(str(BENCHMARKS / "tried.py"))["table"](rows)
        return tried
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
