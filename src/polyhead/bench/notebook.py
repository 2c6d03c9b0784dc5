"""A record in a notebook: its plot and table, and the page on which each case's turns can be looked at."""

from __future__ import annotations

from polyhead.bench.data import to_page
from polyhead.bench.plot import draw
from polyhead.bench.records import HEADINGS, Record
from polyhead.page import SCHEMA, Answer
from polyhead.page.notebook import NUMBER, bundle, picture, table


def of_record(record: Record) -> dict[str, str]:
    """Return a record's forms for a notebook, by media type."""
    caption = f"{record.machine}, {record.dtype}"
    still = picture(lambda: draw(record), "time against length") + table(HEADINGS, record.lines(), caption, cell=NUMBER)
    if record.failures:
        still += table(("failed", "in what"), record.failures.items(), "What does not compute what it should")
    content = {"schema": SCHEMA, "records": [{"name": record.machine, "record": to_page(record)}]}
    state = {"screen": "measure", "measure": {"record": record.machine, "case": ""}}
    return bundle(record.to_markdown(), still, state, [Answer(path="records", body=None, content=content)])
