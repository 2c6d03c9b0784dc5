"""`polyhead list`: the fifteen, as a table and as JSON."""

import json

from polyhead.catalog import mechanisms
from tests.cli.conftest import Polyhead


def test_a_line_for_each_of_the_fifteen(call: Polyhead) -> None:
    done = call("list")
    assert (done.code, done.err) == (0, "")
    heading, *lines = [line.split() for line in done.out.splitlines()]
    assert heading[:2] == ["#", "name"]
    numbered = [words for words in lines if words[0].isdecimal()]  # a long cell goes on below
    assert [(int(words[0]), words[1]) for words in numbered] == [(m.number, m.name) for m in mechanisms()]
    for entry in mechanisms():
        assert entry.title in done.out
        assert entry.time in done.out


def test_json(call: Polyhead) -> None:
    done = call("list", "--json")
    data = json.loads(done.out)
    assert (done.code, done.err, data["schema"]) == (0, "", 1)
    names = ("number", "name", "title", "year", "changes", "time", "cache")
    for row, entry in zip(data["mechanisms"], mechanisms(), strict=True):
        assert {name: row.pop(name) for name in names} == {name: getattr(entry, name) for name in names}
        assert row == {"aliases": list(entry.aliases)}
