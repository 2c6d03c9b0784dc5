"""A token's rows as data, and in the forms that people paste elsewhere, each read back."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest

import polyhead as ph
from polyhead.compare import Row, Table
from polyhead.errors import UnknownNameError
from tests.compare.arrays import draw, grouped, heads

MESSY = "<b>a|b\n&"


@pytest.fixture
def table() -> Table:
    comparison = ph.AttentionComparison(*heads(), tokens=["a", "<i>", "猫", "$", '"', "a,b"])
    return comparison.add(MESSY, grouped(4, 8, num_kv_heads=2, pattern=ph.Causal())).table()


class Cells(HTMLParser):
    """The texts of an HTML table, a list per row, and its caption."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.caption = ""
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1] == "caption":
            self.caption += data
        else:
            self.rows[-1][-1] += data


# --- as data --------------------------------------------------------------------------------------


def test_rows_are_found_by_name_and_by_number(table: Table) -> None:
    assert table["gqa"] is table[6] is list(table)[4]
    assert table[MESSY] is list(table)[-1]
    assert len(table) == len(list(table)) == 15


def test_a_row_that_is_not_there_says_why(table: Table) -> None:
    with pytest.raises(UnknownNameError, match="cross is not in this table: cross-attention needs a second sequence"):
        table["cross"]
    with pytest.raises(UnknownNameError, match="no row is called 'gqaa'; did you mean gqa"):
        table["gqaa"]


def test_top_is_the_largest_weight_and_its_token(table: Table) -> None:
    for row in table:
        token, weight = row.top
        assert weight == row.weights.max()
        assert row.weights[table["mha"].key_tokens.index(token)] == weight


def with_weights(row: Row, weights: list[float]) -> Row:
    return dataclasses.replace(row, weights=np.array(weights))


def test_entropy_in_nats(table: Table) -> None:
    row = table["mha"]
    assert with_weights(row, [0.25] * 4).entropy == pytest.approx(np.log(4))
    assert with_weights(row, [0.0, 1.0, 0.0]).entropy == 0
    assert with_weights(row, [0.5, 0.25, 0.25]).entropy == pytest.approx(1.5 * np.log(2))


@pytest.mark.parametrize("weights", [[0.6, -0.1, 0.5], [0.2, 0.3]])
def test_weights_that_are_no_distribution_have_no_entropy(table: Table, weights: list[float]) -> None:
    assert with_weights(table["mha"], weights).entropy is None


# --- in other forms -------------------------------------------------------------------------------


def test_markdown(table: Table) -> None:
    lines = [[cell.strip() for cell in line.split(" | ")] for line in table.to_markdown().splitlines()]
    assert [cell.strip("| ") for cell in lines[0]] == ["#", "mechanism", *(f"dim {i}" for i in range(8))]
    assert {cell.strip("| ") for cell in lines[1]} == {"---"}
    assert len(lines) == 2 + 15
    for cells, row in zip(lines[2:], table, strict=True):
        assert cells[0].strip("| ") == str(row.number or "+")
        numbers = [float(cell.strip("| ")) for cell in cells[2:]]
        np.testing.assert_allclose(numbers, row.output, rtol=0, atol=0.5e-4 + 1e-12)
    assert lines[-1][1] == r"<b>a\|b &"


def test_csv_holds_every_digit(table: Table) -> None:
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(lines) == 15
    for line, row in zip(lines, table, strict=True):
        assert (line["name"], line["changes"], line["is_own"]) == (row.name, row.changes, "False")
        assert line["number"] == ("" if row.number is None else str(row.number))
        assert float(line["distance"]) == row.distance
        assert [float(line[f"weight_{i}"]) for i in range(6)] == row.weights.tolist()
        assert [float(line[f"output_{i}"]) for i in range(8)] == row.output.tolist()


def test_csv_leaves_weights_empty_that_a_row_does_not_have(table: Table) -> None:
    shorter = with_weights(table["mha"], [0.5, 0.5])
    text = dataclasses.replace(table, rows=(shorter, table["gqa"])).to_csv()
    first, second = csv.DictReader(io.StringIO(text))
    assert [first[f"weight_{i}"] for i in range(6)] == ["0.5", "0.5", "", "", "", ""]
    assert float(first["output_0"]) == shorter.output[0]
    assert all(second[f"weight_{i}"] for i in range(6))


def test_json_holds_everything(table: Table) -> None:
    data = json.loads(table.to_json())
    assert (data["schema"], data["title"], data["token"], data["position"]) == (1, "own arrays, head 0", "a,b", 5)
    assert data["absent"] == table.absent
    for entry, row in zip(data["rows"], table, strict=True):
        assert {name: entry[name] for name in ("number", "name", "changes", "is_own", "distance", "note")} == {
            "number": row.number,
            "name": row.name,
            "changes": row.changes,
            "is_own": False,
            "distance": row.distance,
            "note": row.note,
        }
        assert (entry["output"], entry["weights"]) == (row.output.tolist(), row.weights.tolist())
        assert tuple(entry["key_tokens"]) == row.key_tokens
        assert ph.AttentionSpec.from_json(json.dumps({"schema": 1, **entry["spec"]})) == row.spec


def test_json_may_be_indented_and_keeps_letters_as_they_are(table: Table) -> None:
    assert json.loads(table.to_json(indent=2)) == json.loads(table.to_json())
    assert "猫" in table.to_json()


def test_html_is_a_table_whose_texts_are_escaped(table: Table) -> None:
    cells = Cells(table.to_html())
    assert cells.rows[0] == ["#", "mechanism", "most on", "weight", "distance", *(f"dim {i}" for i in range(8))]
    assert cells.caption == "own arrays, head 0: query “a,b”"
    assert not {"b", "i"} & set(cells.tags)
    for texts, row in zip(cells.rows[1:], table, strict=True):
        token, weight = row.top
        numbers = [f"{weight:.3f}", f"{row.distance:.3f}", *(f"{x:.4f}" for x in row.output)]
        assert texts == [str(row.number or "+"), row.name, token, *numbers]
    assert table._repr_html_() == table.to_html()


def test_html_shows_the_first_eight_widths() -> None:
    table = ph.AttentionComparison(*draw((3, 64), (3, 64), (3, 64))).table()
    assert Cells(table.to_html()).rows[0][-1] == "dim 7"
