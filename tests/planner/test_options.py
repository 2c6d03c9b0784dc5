"""What a model could have in each of the four places, and how it is called."""

from __future__ import annotations

import dataclasses

import pytest

import polyhead as ph
from polyhead.cost import cache_bytes
from polyhead.errors import SpecError
from polyhead.planner.evidence import CHOICES
from polyhead.planner.options import NAMES, ONE_IN, Variant, changed, kinds, reference, variants

LLAMA = ph.model("llama-3-8b")
NAMED = (
    "llama-3-8b",
    "deepseek-v2",
    "gpt-oss-120b",
    "gemma-2-2b",
    "t5-base",
    "falcon-7b",
    "bigbird-base",
    "diffllama-1b",
)
"""Models that differ in kind."""


def of(name: str, **options: bool) -> list[Variant]:
    return list(variants(ph.model(name), window=4096, **options))


def by_kinds(name: str, **wanted: str) -> Variant:
    own = kinds(ph.model(name)) | wanted
    return next(one for one in of(name) if one.kinds == own)


@pytest.mark.parametrize("name", NAMED)
def test_every_model_comes_first_as_it_is_and_nothing_twice(name: str) -> None:
    model = ph.model(name)
    found = list(variants(model, window=4096))
    assert (found[0].model.layers, found[0].changed) == (model.layers, ())
    assert len({one.model.layers for one in found}) == len(found)
    counts = [len(one.changed) for one in found]
    assert counts == sorted(counts)
    for one in found:
        before, after = kinds(model), one.kinds
        assert set(after.items()) <= NAMES.keys()
        assert {choice for choice in CHOICES if before[choice] != after[choice]} <= set(one.changed)


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("llama-3-8b", "GQA-8 + RoPE + causal + softmax"),
        ("mistral-7b-v0.1", "GQA-8 + RoPE + window of 4,096 + softmax"),
        ("gemma-2-9b", "GQA-8 + RoPE + mostly windows of 4,096 + softmax"),
        ("deepseek-v2", "MLA 512 + 64 + RoPE + causal + softmax"),
        ("gpt-oss-120b", "GQA-8 + RoPE + mostly windows of 128 + softmax with sinks"),
        ("falcon-7b", "MQA + RoPE + causal + softmax"),
        ("bloom-7b1", "MHA + ALiBi + causal + softmax"),
        ("t5-base", "MHA + T5 bias + causal + softmax"),
        ("bigbird-base", "MHA + no position in it + BigBird + softmax"),
        ("diffllama-1b", "GQA-4 + RoPE + causal + differential"),
    ],
)
def test_published_models_are_called_what_they_have(name: str, called: str) -> None:
    assert of(name)[0].name == called


def test_a_latent_has_deepseeks_proportions() -> None:
    storage = by_kinds("llama-3-8b", storage="mla").model.layers[0].attention.storage
    published = ph.model("deepseek-v2").layers[0].attention.storage
    assert isinstance(storage, ph.Latent)
    assert isinstance(published, ph.Latent)
    assert (storage.kv_lora_rank, storage.qk_rope_head_dim) == (published.kv_lora_rank, published.qk_rope_head_dim)


@pytest.mark.parametrize("name", ["llama-3-8b", "smollm2-135m", "falcon-7b"])
def test_two_maps_take_what_one_did(name: str) -> None:
    model, other = ph.model(name), by_kinds(name, weighting="differential").model
    assert other.layers[0].attention.num_maps == 2
    shapes = other.layers[0].parameter_shapes()
    assert shapes["q_proj.weight"] == model.layers[0].parameter_shapes()["q_proj.weight"]
    if model.layers[0].attention.num_kv_heads % 2 == 0:
        assert cache_bytes(other.layers, 100) == cache_bytes(model.layers, 100)


def test_one_layer_in_six_sees_all_where_most_have_windows() -> None:
    found = by_kinds("llama-3-8b", pattern="mostly-window").model
    bounded = [layer.attention.pattern.reach.left is not None for layer in found.layers]
    assert [n for n, is_bounded in enumerate(bounded) if not is_bounded] == list(range(ONE_IN - 1, 32, ONE_IN))


def test_a_models_own_patterns_stay_where_something_else_changes() -> None:
    own = ph.model("gpt-oss-120b")
    other = by_kinds("gpt-oss-120b", storage="mha").model
    assert [one.attention.pattern for one in other.layers] == [one.attention.pattern for one in own.layers]


def test_an_encoder_and_its_decoder_change_together_but_for_what_cross_attention_keeps() -> None:
    own, other = ph.model("t5-base"), by_kinds("t5-base", storage="mla").model
    for stack in ("layers", "encoder_layers", "cross_layers"):
        assert isinstance(getattr(other, stack)[0].attention.storage, ph.Latent)
    assert other.cross_layers[0].attention.position == own.cross_layers[0].attention.position
    rotated = by_kinds("t5-base", position="rope").model
    assert rotated.cross_layers == own.cross_layers
    assert isinstance(rotated.encoder_layers[0].attention.position, ph.Rotary)


@pytest.mark.parametrize(("name", "groups"), [("gpt2", 6), ("llama-3-70b", 8), ("qwen2-7b", 4), ("bloom-7b1", 8)])
def test_groups_divide_heads(name: str, groups: int) -> None:
    found = [one for one in of(name) if one.kinds["storage"] == "gqa"]
    assert {one.model.layers[0].attention.num_kv_heads for one in found if one.kinds["weighting"] == "softmax"} == {
        groups
    }


def test_windows_that_would_see_everything_are_left_out() -> None:
    found = list(variants(LLAMA, window=None))
    assert {one.kinds["pattern"] for one in found} == {"causal"}


def test_a_window_is_called_by_all_that_it_holds() -> None:
    t5 = variants(ph.model("bigbird-base"), window=64)
    assert "window of 65" in next(one.name for one in t5 if one.kinds["pattern"] == "window")  # 32 on either side


def test_parameters_follow() -> None:
    for one in of("llama-3-8b"):
        more = sum(layer.parameters for layer in one.model.layers) - sum(layer.parameters for layer in LLAMA.layers)
        assert one.model.parameters == LLAMA.parameters + more


def test_bigbird_is_for_those_that_read_all_at_once() -> None:
    assert not any(one.kinds["pattern"] == "bigbird" for one in of("llama-3-8b"))
    t5 = of("t5-base", sees_later=True)
    assert any(one.kinds["pattern"] == "bigbird" for one in t5)
    assert not any(one.kinds["pattern"] == "window-first" for one in t5)


def test_the_reference_is_multi_head_attention_with_rope() -> None:
    for model in ph.models():
        found = kinds(reference(model))
        expected = {"storage": "mha", "position": "rope", "weighting": "softmax"}
        assert expected.items() <= found.items()
        assert found["pattern"] in {"causal", "full"}


def test_what_is_not_defined_is_left_out() -> None:
    window = ph.SlidingWindow.causal(10)
    with pytest.raises(SpecError, match="running sum"):
        changed(LLAMA, lambda spec, _: dataclasses.replace(spec, pattern=window, weighting=ph.Linear()))
    assert not any(one.kinds["weighting"] == "linear" and one.kinds["pattern"] != "causal" for one in of("llama-3-8b"))
