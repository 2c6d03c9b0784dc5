"""A real model's heads: its own mechanism is exact, and each of the fifteen is its substitution in its spec."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyhead as ph
from polyhead.compare import Table
from polyhead.errors import CheckpointError, UnknownNameError, UnsupportedError
from polyhead.hf import Loaded, capture, load
from polyhead.oracle import attend
from tests.hf.conftest import TEXT, TOKENS, MakeCheckpoint, save

pytest.importorskip("transformers", reason="transformers runs the models")

FAMILIES = ("llama", "llama-yarn", "mistral", "qwen2", "qwen3", "gpt2")
SECOND = "the house ran to the dog"

compare = ph.AttentionComparison.from_model


@pytest.fixture
def llama(checkpoint: MakeCheckpoint) -> Loaded:
    return load(checkpoint("llama"))


@pytest.fixture
def gpt2(checkpoint: MakeCheckpoint) -> Loaded:
    return load(checkpoint("gpt2"))


def own(table: Table) -> set[int | None]:
    return {row.number for row in table if row.is_own}


def check_own_rows(loaded: Loaded, comparison: ph.AttentionComparison, layer: int, text: str = TEXT) -> None:
    """#1 is the model's own spec: every head's weights are those of its eager attention."""
    read = capture(loaded, text, layer=layer)
    result = comparison.result("scaled-dot-product")
    assert result.fitted.spec == read.spec.attention
    np.testing.assert_allclose(result.weights, read.weights, rtol=0, atol=1e-5)
    assert comparison.flash_error() < 1e-13


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_row_is_the_models_own_attention(checkpoint: MakeCheckpoint, family: str, engine: str) -> None:
    loaded = load(checkpoint(family))
    comparison = compare(loaded, TEXT, layer=1, engine=engine)
    check_own_rows(loaded, comparison, 1)
    assert comparison.tokens == TOKENS
    assert comparison.table().absent.keys() == {"cross"}

    assert comparison.table().absent.keys() == {"cross"}
    assert (comparison.inputs.layer, comparison.inputs.num_layers) == (1, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_engines_agree_on_all_fifteen(checkpoint: MakeCheckpoint, family: str) -> None:
    loaded = load(checkpoint(family))
    ours, theirs = (compare(loaded, TEXT, second_text=SECOND, engine=engine) for engine in ("numpy", "torch"))
    for entry in ph.mechanisms():
        for one, other in zip(ours.result(entry.name)[1:], theirs.result(entry.name)[1:], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12, err_msg=entry.name)


# --- what runs ------------------------------------------------------------------------------------

WINDOW, BIGBIRD = ph.SlidingWindow.symmetric(2), ph.BigBird(radius=2, num_global=1, num_random=1)
LAST = len(TOKENS) - 1
CLIPPED = ph.Differential(form="clipped", lambda_init=0.5)

SUBSTITUTES: dict[str, dict[str, Any]] = {
    "scaled-dot-product": {},
    "causal": {},
    "cross": {"pattern": ph.Full()},
    "relative-bias": {"position": ph.RelativeBias.clipped(max_distance=LAST)},
    "alibi": {"position": ph.Alibi()},
    "linear": {"pattern": ph.Causal(), "weighting": ph.Linear()},
    "flash": {},
}
"""What each mechanism of the table replaces in the own spec of any causal model of four heads of width 8."""


def differential(num_kv_heads: int) -> dict[str, Any]:
    storage = ph.Grouped(num_heads=4, num_kv_heads=num_kv_heads, head_dim=4, v_head_dim=8)
    return {"storage": storage, "position": ph.NoPosition(), "weighting": CLIPPED}


def storage(num_kv_heads: int) -> dict[str, Any]:
    return {"storage": ph.Grouped(num_heads=4, num_kv_heads=num_kv_heads, head_dim=8)}


def check_substitutes(loaded: Loaded, expected: dict[str, dict[str, Any]]) -> ph.AttentionComparison:
    comparison = compare(loaded, TEXT, second_text=SECOND)
    base = comparison.result(1).fitted.spec
    table = comparison.table()
    assert [row.number for row in table] == list(range(1, 16))
    for name, choices in (SUBSTITUTES | expected).items():
        assert table[name].spec == dataclasses.replace(base, **choices), name
    latent = table["mla"].spec
    assert isinstance(latent.storage, ph.Latent)
    assert (latent.storage.qk_rope_head_dim, latent.position) == (0, ph.NoPosition())
    assert (latent.pattern, latent.weighting) == (base.pattern, base.weighting)
    return comparison


def test_each_mechanism_replaces_its_choice_in_llamas_spec(llama: Loaded) -> None:
    comparison = check_substitutes(
        llama,
        {
            "mha": storage(4),
            "mqa": storage(1),
            "gqa": storage(2),  # as it is: 2 has no proper divisor above 1
            "rope": {},
            "sliding-window": {"pattern": ph.Causal() & WINDOW},
            "bigbird": {"pattern": ph.Causal() & BIGBIRD},
            "differential": differential(2),
        },
    )
    table = comparison.table()
    assert own(table) == {1, 3, 6, 8, 13}
    assert {table[n].note for n in (3, 6, 8)} == {"what the model has"}
    assert table["mha"].note == "2 key/value heads repeated to 4, which changes nothing"
    assert table["mqa"].note == "2 key/value heads averaged to 1"
    assert table["differential"].note == "maps are the even and odd planes of RoPE"
    assert table["mla"].note.startswith("joint SVD of keys and values at rank ")
    same = {d.second: d.reason for d in comparison.differences() if d.first == "scaled-dot-product" and not d.differ}
    assert set(same) == {"mha", "causal", "gqa", "rope", "flash"}
    assert same["mha"] == "every head still meets the same keys and values"


def test_each_mechanism_replaces_its_choice_in_gpt2s_spec(gpt2: Loaded) -> None:
    """Nothing rotates there, so #8 brings the usual base and #14 cuts heads in halves; 4 heads pool to 2."""
    table = check_substitutes(
        gpt2,
        {
            "mha": {},
            "mqa": storage(1),
            "gqa": storage(2),
            "rope": {"position": ph.Rotary(theta=10_000.0)},
            "sliding-window": {"pattern": ph.Causal() & WINDOW},
            "bigbird": {"pattern": ph.Causal() & BIGBIRD},
            "differential": differential(4),
        },
    ).table()
    assert own(table) == {1, 2, 3, 13}
    assert table["differential"].note == "maps are the halves"
    assert table["gqa"].note == "4 key/value heads averaged to 2"


def test_patterns_meet_the_window_that_a_model_has(checkpoint: MakeCheckpoint) -> None:
    """Mistral's own window of 3 is within #11's of 2 on either side, so that nothing more is hidden."""
    loaded = load(checkpoint("mistral"))
    table = compare(loaded, TEXT).table()
    assert table["causal"].spec.pattern == table["sliding-window"].spec.pattern == ph.SlidingWindow.causal(3)
    assert table["linear"].spec.pattern == ph.Causal()
    wider = compare(loaded, TEXT, settings=ph.Settings(window=ph.SlidingWindow.symmetric(1))).table()
    assert wider["sliding-window"].spec.pattern == ph.SlidingWindow.causal(2)
    assert 11 not in own(wider)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_cross_attention_reads_the_second_text_whole(checkpoint: MakeCheckpoint, family: str) -> None:
    loaded = load(checkpoint(family))
    row = compare(loaded, TEXT, layer=1, head=2, second_text=SECOND).run("cross", 3)
    first, second = (capture(loaded, text, layer=1) for text in (TEXT, SECOND))
    spec = dataclasses.replace(first.spec.attention, pattern=ph.Full())
    positions = {"query_positions": np.arange(3, 4), "key_positions": np.arange(len(second.tokens))}
    output, weights = attend(
        first.query[None, :, 3:4], second.key[None], second.value[None], spec, **positions, return_weights=True
    )
    np.testing.assert_allclose(row.output, output[0, 2, 0], atol=1e-12)
    np.testing.assert_allclose(row.weights, weights[0, 2, 0], atol=1e-12)
    assert row.key_tokens == second.tokens
    assert not row.is_own


def test_weights_of_two_texts_share_a_file_and_a_picture(llama: Loaded) -> None:
    comparison = compare(llama, TEXT, second_text="the cat")
    lines = [line.split(",") for line in comparison.table().to_csv().splitlines()]
    assert {len(line) for line in lines} == {5 + len(TOKENS) + 8}
    assert lines[4][7 : 5 + len(TOKENS)] == [""] * (len(TOKENS) - 2)
    axes = comparison.plot().axes[0]
    assert [label.get_text() for label in axes.child_axes[0].xaxis.get_ticklabels()] == ["the", "cat"]


# --- the textbook's form --------------------------------------------------------------------------


def test_bare_is_full_softmax_attention_without_position(llama: Loaded) -> None:
    comparison = compare(llama, TEXT, bare=True)
    base = comparison.result(1).fitted.spec
    assert base == ph.AttentionSpec(storage=ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8))
    assert comparison.run("rope").spec.position == ph.Rotary()
    assert "textbook's form" in comparison.title
    read = capture(llama, TEXT, layer=0)
    scores = np.einsum("hqd,hkd->hqk", read.query, np.repeat(read.key, 2, axis=0)) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(comparison.result(1).weights, weights, atol=1e-6)


def test_what_the_model_has_is_not_what_the_textbook_has(llama: Loaded) -> None:
    """LLaMA turns and hides, so nothing of the textbook's form is its own; GPT-2 only hides."""
    table = compare(llama, TEXT, bare=True).table()
    assert own(table) == set()
    assert "what the model has" not in {row.note for row in table}


def test_causal_in_the_textbooks_form_is_gpt2s_own(gpt2: Loaded) -> None:
    table = compare(gpt2, TEXT, bare=True).table()
    assert own(table) == {3}
    assert table["causal"].note == "what the model has"


@pytest.mark.parametrize("bare", [False, True])
def test_a_models_own_scale_is_kept(checkpoint: MakeCheckpoint, bare: bool) -> None:
    spec = compare(load(checkpoint("gpt2-unscaled")), TEXT, bare=bare).result(1).fitted.spec
    assert spec.weighting == ph.Softmax(scale=1.0)


# --- which model, layer and head ------------------------------------------------------------------


def test_a_path_is_loaded_and_named_in_the_title(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("llama")
    comparison = compare(path, TEXT, layer=-1)
    assert comparison.title.startswith("llama, layer 1, as the model runs it; weights equal the model's to ")
    np.testing.assert_array_equal(comparison.result(1).output, compare(str(path), TEXT, layer=1).result(1).output)


def test_the_head_shown_is_one_of_all(llama: Loaded) -> None:
    rows = [compare(llama, TEXT, head=head).run("alibi") for head in (0, 3, -1)]
    outputs = compare(llama, TEXT).result("alibi").output
    assert outputs.shape == (4, len(TOKENS), 8)
    for row, head in zip(rows, (0, 3, 3), strict=True):
        np.testing.assert_array_equal(row.output, outputs[head, -1])


def test_a_spec_of_ones_own_runs_on_a_models_heads(llama: Loaded) -> None:
    comparison = compare(llama, TEXT)
    spec = dataclasses.replace(comparison.result("differential").fitted.spec, position=ph.Rotary())
    row = comparison.add("with RoPE", spec).run("with RoPE")
    assert (row.number, row.is_own, row.note) == (None, False, "maps are the even and odd planes of RoPE")
    assert row.distance > 0


def test_one_word(llama: Loaded) -> None:
    table = compare(llama, "cat").table()
    assert len(table) == 14
    assert all(row.weights == pytest.approx([1.0]) for row in table)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"head": 4}, "head=4 does not exist; the input has heads 0 to 3"), ({"layer": 2}, "there is no layer 2 among 2")],
)
def test_a_head_or_layer_that_is_not_there(llama: Loaded, options: dict[str, int], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        compare(llama, TEXT, **options)


def test_the_engine_is_checked_before_the_model_is_read() -> None:
    with pytest.raises(UnknownNameError, match="no engine is called 'jax'"):
        compare("/nowhere", TEXT, engine="jax")
    with pytest.raises(CheckpointError, match="'/nowhere' does not exist, and nothing is downloaded"):
        compare("/nowhere", TEXT)


def test_a_model_that_cannot_be_compared_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 80, "hidden_size": 16, "n_layer": 1, "n_head": 2}
    path = save(transformers.BloomForCausalLM(transformers.BloomConfig(**shape)), tmp_path / "bloom")
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="model_type='bloom' is not captured; what is captured: llama"):
        compare(path, TEXT)


def test_a_field_that_cannot_be_expressed_is_refused_before_the_weights_are_read(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="is_causal"):
        compare(path, TEXT)


@pytest.mark.model
@pytest.mark.parametrize("layer", [0, 29])
def test_smollm2(smollm2: Loaded, layer: int) -> None:
    text = "The cat sat on the mat because it was tired."
    comparison = compare(smollm2, text, layer=layer, head=8, second_text="Le chat s'est assis.")
    check_own_rows(smollm2, comparison, layer, text)
    table = comparison.table()
    assert [row.number for row in table] == list(range(1, 16))
    assert own(table) == {1, 3, 6, 8, 13}
    assert table["gqa"].spec.storage == ph.Grouped(num_heads=9, num_kv_heads=3, head_dim=64)
    unchanged = {"scaled-dot-product", "mha", "causal", "gqa", "rope", "flash"}
    assert {row.name for row in table if row.distance < 1e-9} == unchanged
    assert min(row.distance for row in table if row.name not in unchanged) > 0.01
