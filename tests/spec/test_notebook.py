"""A spec in a notebook: picture, table, and the page with the one answer that a spec can give."""

from __future__ import annotations

import json

import pytest

import polyhead as ph
from polyhead.spec.composed import SIZE, composed, parts_of
from polyhead.spec.notebook import ASKED, LONGEST, draw
from tests.frames import taken_apart, without_matplotlib

SPEC = ph.AttentionSpec(
    storage=ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8), position=ph.Rotary(), pattern=ph.Causal()
)


def test_a_spec() -> None:
    found = SPEC._repr_mimebundle_()
    assert found["text/plain"] == repr(SPEC)
    cells, held = taken_apart(found)
    assert len(cells.images) == 1
    assert [row[0] for row in cells.rows] == [
        *("choice", "storage", "position", "pattern", "weighting", "cached", "learned")
    ]
    assert cells.rows[3] == ["pattern", "Causal()", "a query sees itself and all before it"]
    assert cells.rows[5] == ["cached", "growing, 32 numbers a token", ""]
    asked = {"spec": parts_of(SPEC), **ASKED}
    assert held["state"] == {"screen": "compose", "compose": asked}
    assert held["answers"] == [{"path": "compose", "body": asked, "json": composed(SPEC)}]


def test_what_is_asked_is_what_the_page_asks_at_first() -> None:
    msgspec = pytest.importorskip("msgspec", reason="the dashboard reads requests with it")
    from polyhead.dashboard.requests import ComposeRequest
    from polyhead.dashboard.state import defaults

    assert {name: value for name, value in defaults()["compose"].items() if name != "spec"} == ASKED
    msgspec.json.decode(json.dumps({"spec": parts_of(SPEC), **ASKED}), type=ComposeRequest)


@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v2", "t5-base"])
def test_a_layer(name: str) -> None:
    model = ph.model(name)
    for layer in (model.layers[0], *model.cross_layers[:1]):
        found = layer._repr_mimebundle_()
        assert found["text/plain"] == repr(layer)
        cells, held = taken_apart(found)
        rows = {row[0]: row[1:] for row in cells.rows}
        assert rows["width"][0] == str(layer.embed_dim)
        assert rows["source"][0] == repr(layer.source)
        assert rows["learned"][0] == f"{layer.parameters:,} numbers"
        assert "o_proj.weight" in rows["learned"][1]
        assert rows["cached"][0].split(",")[0] == ("context" if layer.source == "cross" else "growing")
        assert held["answers"][0]["json"] == composed(layer.attention)
    assert ("latent_norm" in rows["besides"][0]) == (name == "deepseek-v2")


def test_a_long_table_of_links_is_cut_short_in_the_table_alone() -> None:
    spec = ph.AttentionSpec(
        storage=ph.Grouped(num_heads=1, head_dim=4), pattern=ph.Links(table=(tuple((i,) for i in range(999)),))
    )
    found = spec._repr_mimebundle_()
    assert found["text/plain"] == repr(spec)
    cells, held = taken_apart(found)
    assert len(cells.rows[3][1]) == LONGEST + 1
    assert held["answers"][0]["json"]["spec_repr"] == repr(spec)


def test_a_picture_says_where_heads_differ() -> None:
    assert draw(ph.Causal()).axes[0].get_title() == "keys that each query sees"
    figure = draw(ph.RandomLinks(per_query=1, seed=0))
    assert figure.axes[0].get_title() == "keys that each query sees in head 0"
    (image,) = figure.axes[0].get_images()
    assert image.get_array().shape == (SIZE, SIZE)


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    without_matplotlib(monkeypatch)
    cells, _ = taken_apart(SPEC._repr_mimebundle_())
    assert (cells.images, len(cells.rows)) == ([], 7)
