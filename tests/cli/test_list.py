"""`polyhead list`: the fifteen and the published models, as tables and as JSON."""

import json

from polyhead.catalog import mechanisms, models
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


def test_a_line_for_each_model(call: Polyhead) -> None:
    done = call("list", "--models")
    assert (done.code, done.err) == (0, "")
    heading, *lines = [line.split() for line in done.out.splitlines()]
    assert heading[:4] == ["name", "layers", "width", "heads"]
    assert [words[0] for words in lines] == [model.name for model in models()]
    shown = dict(zip((model.name for model in models()), lines, strict=True))
    assert shown["falcon-7b"][1:5] == ["32", "4,544", "71", "1"]
    assert shown["deepseek-v3"][4] == "latent"
    for model in models():
        assert shown[model.name][-2:] == [f"{model.parameters:,}", f"{model.active_parameters:,}"]


def test_json_of_models(call: Polyhead) -> None:
    data = json.loads(call("list", "--models", "--json").out)
    assert data["schema"] == 1
    sizes = ("name", "title", "model_type", "num_layers", "embed_dim", "vocab_size", "max_seq_len", "parameters")
    for row, model in zip(data["models"], models(), strict=True):
        assert {name: row[name] for name in sizes} == {name: getattr(model, name) for name in sizes}
        assert row["num_heads"] == model.layers[0].attention.num_heads
        is_latent = row["num_kv_heads"] is None
        assert is_latent == model.name.startswith("deepseek")
