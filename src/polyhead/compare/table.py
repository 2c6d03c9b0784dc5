"""One token's row under every mechanism, as data and in the forms that people paste elsewhere."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from polyhead.compare.inputs import Array
from polyhead.errors import UnknownNameError, unknown_name
from polyhead.page.notebook import NUMBER, table as html_table
from polyhead.spec import AttentionSpec

SCHEMA = 1
"""Version of the JSON form."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """What one mechanism does for one token.

    Attributes:
        number: The mechanism's number, or None for a spec of one's own.
        name: Its name.
        title: Its name to read.
        changes: What it changes.
        spec: The spec that ran.
        output: The output, ``[width]``.
        weights: The weight on each key token, ``[kv_len]``; averaged where the token's width was split over heads.
        key_tokens: The key tokens.
        distance: L2 distance of the output from the baseline's (#1).
        is_own: Whether this is the model's own mechanism; of other inputs, none is.
        note: What was done to the inputs.
    """

    number: int | None
    name: str
    title: str
    changes: str
    spec: AttentionSpec
    output: Array
    weights: Array
    key_tokens: tuple[str, ...]
    distance: float
    is_own: bool
    note: str

    @property
    def top(self) -> tuple[str, float]:
        """The key token with the largest weight, and the weight."""
        index = int(np.argmax(self.weights))
        return self.key_tokens[index], float(self.weights[index])

    @property
    def entropy(self) -> float | None:
        """Entropy of the weights in nats; None where they are no distribution."""
        if self.weights.min() < 0 or abs(self.weights.sum() - 1) > 1e-6:
            return None
        some = self.weights[self.weights > 0]
        return float(-(some * np.log(some)).sum())

    def to_data(self) -> dict[str, Any]:
        """Return the row as JSON-ready data."""
        return {
            "number": self.number,
            "name": self.name,
            "changes": self.changes,
            "is_own": self.is_own,
            "output": self.output.tolist(),
            "weights": self.weights.tolist(),
            "key_tokens": list(self.key_tokens),
            "distance": self.distance,
            "note": self.note,
            "spec": self.spec.to_data(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What one mechanism does for every token: the attributes of `Row`, whose arrays have a row per token here.

    Attributes:
        number: The mechanism's number, or None for a spec of one's own.
        name: Its name.
        title: Its name to read.
        changes: What it changes.
        spec: The spec that ran.
        output: The outputs, ``[q_len, width]``.
        weights: The weights, ``[q_len, kv_len]``.
        key_tokens: The key tokens.
        is_own: Whether this is the model's own mechanism.
        note: What was done to the inputs.
    """

    number: int | None
    name: str
    title: str
    changes: str
    spec: AttentionSpec
    output: Array
    weights: Array
    key_tokens: tuple[str, ...]
    is_own: bool
    note: str

    def distances(self, baseline: Array) -> Array:
        """Return the L2 distance of each token's output from its baseline's."""
        return np.asarray(np.linalg.norm(self.output - baseline, axis=-1))

    def row(self, position: int, baseline: Array) -> Row:
        """Return a token's row.

        Args:
            position: The token's position.
            baseline: The baseline's outputs, ``[q_len, width]``.

        Returns:
            The row.
        """
        return Row(
            number=self.number,
            name=self.name,
            title=self.title,
            changes=self.changes,
            spec=self.spec,
            output=self.output[position],
            weights=self.weights[position],
            key_tokens=self.key_tokens,
            distance=float(self.distances(baseline)[position]),
            is_own=self.is_own,
            note=self.note,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """One token's rows.

    Attributes:
        token: The token.
        position: Its position.
        rows: A row per mechanism, in the textbook's order, then one's own.
        absent: Why each mechanism that is not in the table is not, by name.
        title: What the input is.
    """

    token: str
    position: int
    rows: tuple[Row, ...]
    absent: dict[str, str]
    title: str

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str | int) -> Row:
        for row in self.rows:
            if name in (row.name, row.number):
                return row
        if name in self.absent:
            raise UnknownNameError(f"{name} is not in this table: {self.absent[str(name)]}")
        raise unknown_name("row", name, [row.name for row in self.rows])

    def to_markdown(self) -> str:
        """Return the outputs as a Markdown table, to four decimals."""
        width = max(len(row.output) for row in self.rows)
        header = ["#", "mechanism", *(f"dim {i}" for i in range(width))]
        lines = [" | ".join(header), " | ".join(["---"] * len(header))]
        for row in self.rows:
            name = " ".join(row.name.split()).replace("|", r"\|")
            cells = [str(row.number or "+"), name, *(f"{x:.4f}" for x in row.output)]
            lines.append(" | ".join(cells))
        return "".join(f"| {line} |\n" for line in lines)

    def to_csv(self) -> str:
        """Return a line per mechanism: its name, its weight on each key position, its output, at full precision.

        Weights are numbered by key position; cross-attention's are those of the other sequence.
        """
        columns = max(len(row.weights) for row in self.rows), max(len(row.output) for row in self.rows)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        header = ["number", "name", "changes", "is_own", "distance"]
        writer.writerow(
            [*header, *(f"weight_{i}" for i in range(columns[0])), *(f"output_{i}" for i in range(columns[1]))]
        )
        for row in self.rows:
            weights = [*row.weights.tolist(), *[""] * (columns[0] - len(row.weights))]
            lead = [row.number, row.name, row.changes, row.is_own, row.distance]
            writer.writerow([*lead, *weights, *row.output.tolist()])
        return text.getvalue()

    def to_json(self, *, indent: int | None = None) -> str:
        """Return everything as JSON, with the schema's version."""
        return json.dumps(self.to_data(), indent=indent, ensure_ascii=False)

    def to_data(self) -> dict[str, Any]:
        """Return everything as JSON-ready data, with the schema's version."""
        return {
            "schema": SCHEMA,
            "title": self.title,
            "token": self.token,
            "position": self.position,
            "rows": [row.to_data() for row in self.rows],
            "absent": self.absent,
        }

    def to_html(self) -> str:
        """Return the outputs as an HTML table with inline style, which untrusted notebooks keep."""
        shown = min(8, max(len(row.output) for row in self.rows))
        head = ["#", "mechanism", "most on", "weight", "distance", *(f"dim {i}" for i in range(shown))]
        body = []
        for row in self.rows:
            token, weight = row.top
            texts = [str(row.number or "+"), row.name, token, f"{weight:.3f}", f"{row.distance:.3f}"]
            body.append([*texts, *(f"{x:.4f}" for x in row.output[:shown])])
        return html_table(head, body, f"{self.title}: query “{self.token}”", cell=NUMBER)

    def _repr_html_(self) -> str:
        return self.to_html()
