"""The page of results, made from the records beside it: ``python -m polyhead.bench.page benchmarks``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from polyhead.bench.plot import draw, grown
from polyhead.bench.records import BENCHMARK, Record
from polyhead.errors import CheckpointError, PolyheadError
from polyhead.files import write_whole

HEAD = """\
# Results

*Made by `python -m polyhead.bench.page benchmarks` from the records in `results/`; `make bench` measures anew and
writes it.* What is timed, and how to read a row: [README.md](README.md).
"""


def write(folder: Path) -> list[Path]:
    """Write ``results.md`` and a plot beside each record with several lengths; records of other things are left alone.

    Args:
        folder: Where ``results/*.json`` lie, and the page will.

    Returns:
        What was written, the page first.

    Raises:
        CheckpointError: If there is no record, or one cannot be read.
    """
    files = [file for file in sorted((folder / "results").glob("*.json")) if not _is_of_another(file)]
    if not files:
        raise CheckpointError(f"{folder / 'results'} holds no record; type: make bench")
    parts, written = [HEAD], [folder / "results.md"]
    for file in files:
        try:
            record = Record.from_json(file.read_text(encoding="utf-8"))
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None
        section = record.to_markdown()
        if grown(record):
            plot = file.with_suffix(".png")
            draw(record, plot)
            written.append(plot)
            section += f"\n![time against length](results/{plot.name})\n"
        parts.append(section)
    write_whole(folder / "results.md", "\n".join(parts).encode())
    return written


def _is_of_another(file: Path) -> bool:
    """Whether a file says that it is the record of another benchmark."""
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("benchmark", BENCHMARK) != BENCHMARK)
    except (ValueError, AttributeError):  # whoever reads it as a record says what is wrong
        return False


def main(arguments: Sequence[str]) -> None:
    """Write the page of a folder, and name what was written on stderr."""
    try:
        written = write(Path(arguments[0]))
    except PolyheadError as error:
        raise SystemExit(f"polyhead: {error}") from None
    for path in written:
        sys.stderr.write(f"wrote {path}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
