"""A model as a value: equal, a key, and printed by its sizes."""

from __future__ import annotations

import dataclasses

import pytest

import polyhead as ph
from polyhead.catalog.model import alike


def test_equal_models_are_one_key() -> None:
    assert {ph.model("gpt2"), ph.model("gpt2")} == {ph.model("gpt2")}
    assert ph.model("llama-3-8b") != ph.model("llama-3.1-8b")


def test_it_is_printed_by_its_sizes() -> None:
    assert repr(ph.model("gpt2")) == (
        "Model(name='gpt2', title='GPT-2', model_type='gpt2', embed_dim=768, num_layers=12, vocab_size=50257, "
        "max_seq_len=1024, parameters=124439808, active_parameters=124439808)"
    )


def test_it_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="embed_dim"):
        ph.model("gpt2").embed_dim = 1  # type: ignore[misc]


def test_another_attention_in_its_place() -> None:
    llama = ph.model("llama-3-8b")
    assert llama.with_attention(llama.layers[0].attention).parameters == llama.parameters
    spec = ph.AttentionSpec(storage=ph.Grouped(num_heads=32, head_dim=128), pattern=ph.Causal())
    other = llama.with_attention(spec)
    assert [layer.attention for layer in other.layers] == [spec] * 32
    more = 32 * 2 * 24 * 128 * 4096  # keys and values of 24 heads more
    assert other.parameters - llama.parameters == other.active_parameters - llama.active_parameters == more
    assert other.sources["layers"] == "given"
    latent = ph.model("deepseek-v2-lite").with_attention(spec)
    assert latent.layers[0].latent_norm is None


def test_other_layers_in_each_stack() -> None:
    t5 = ph.model("t5-base")
    spec = ph.AttentionSpec(storage=ph.Grouped(num_heads=12, num_kv_heads=1, head_dim=64))
    fewer = tuple(dataclasses.replace(layer, attention=spec) for layer in t5.encoder_layers)
    other = t5.with_layers(t5.layers, encoder_layers=fewer)
    assert other.encoder_layers == fewer
    assert (other.layers, other.cross_layers) == (t5.layers, t5.cross_layers)
    before, after = (sum(layer.parameters for layer in layers) for layers in (t5.encoder_layers, fewer))
    assert other.parameters - t5.parameters == after - before < 0


def test_equal_layers_are_one_object_and_counted_together() -> None:
    gemma = ph.model("gemma-2-2b")
    assert len({id(layer) for layer in gemma.layers}) == 2
    assert sorted(alike(gemma.layers).values()) == [13, 13]
    copied = [dataclasses.replace(layer) for layer in gemma.layers]
    assert alike(copied) == alike(gemma.layers)
