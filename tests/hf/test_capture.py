"""Captured tensors are the model's own: each family's weights come out of its spec, and errors say what is wrong."""

from __future__ import annotations

import dataclasses
import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from polyhead.catalog.configs import layer_specs
from polyhead.errors import CheckpointError, ShapeError, UnknownNameError, UnsupportedError
from polyhead.hf import Captured, Loaded, adopt, capture, load, release
from tests.hf.conftest import FAMILIES, TEXT, TOKENS, MakeCheckpoint, rope, save

torch = pytest.importorskip("torch", reason="a model runs in torch")
transformers = pytest.importorskip("transformers", reason="transformers runs the models")

ROTATING = [name for name, (model_type, _) in FAMILIES.items() if model_type != "gpt2"]


def model_of(make: MakeCheckpoint, family: str, **fields: Any) -> Loaded:
    return load(make(family, **fields))


def outputs(loaded: Loaded, layer: int, part: str) -> NDArray[np.float32]:
    """Return what a module of an attention layer puts out when the model reads the text on its own."""
    seen: list[Any] = []
    [attention] = [m for m in loaded.model.modules() if getattr(m, "layer_idx", None) == layer]
    hook = getattr(attention, part).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        loaded.model(**loaded.tokenizer(TEXT, return_tensors="pt"))
    hook.remove()
    return np.asarray(seen[0][0])


def heads(rows: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Cut ``[tokens, heads · head_dim]`` or ``[tokens, heads, head_dim]`` into ``[heads, tokens, head_dim]``."""
    return rows.reshape(rows.shape[0], -1, head_dim).transpose(1, 0, 2)


# --- what is captured -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_spec_reproduces_the_models_weights(checkpoint: MakeCheckpoint, family: str) -> None:
    loaded = model_of(checkpoint, family)
    for layer, spec in enumerate(layer_specs(loaded.config)):
        read = capture(loaded, TEXT, layer=layer)
        assert read.max_error < 1e-6
        assert (read.spec, read.layer, read.tokens) == (spec, layer, TOKENS)
        assert read.num_layers == len(layer_specs(loaded.config))
        shapes = spec.attention.input_shapes()
        for name in ("query", "key", "value"):
            count, width = shapes[name] or (0, 0)
            assert getattr(read, name).shape == (count, len(read.tokens), width)
            assert getattr(read, name).dtype == np.float32
        assert read.weights.std() > 0.1  # far from even, so that agreement says something


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_a_pass_that_nobody_watches(checkpoint: MakeCheckpoint, family: str) -> None:
    loaded = model_of(checkpoint, family)
    with torch.no_grad():
        report = loaded.model(**loaded.tokenizer(TEXT, return_tensors="pt"), output_attentions=True)
    for layer, expected in enumerate(report.attentions):
        # not to the last bit: GPT-2 may compute its own attention in another order (reorder_and_upcast_attn)
        weights = capture(loaded, TEXT, layer=layer).weights
        np.testing.assert_allclose(weights, np.asarray(expected[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", [name for name in ROTATING if name != "qwen3"])
def test_queries_and_keys_are_those_before_rotation(checkpoint: MakeCheckpoint, family: str) -> None:
    loaded = model_of(checkpoint, family)
    read = capture(loaded, TEXT, layer=1)
    width = read.spec.attention.qk_head_dim
    for name, part in {"query": "q_proj", "key": "k_proj", "value": "v_proj"}.items():
        np.testing.assert_allclose(getattr(read, name), heads(outputs(loaded, 1, part), width), atol=1e-5)


def test_qwen3_queries_are_those_after_its_norm(checkpoint: MakeCheckpoint) -> None:
    loaded = model_of(checkpoint, "qwen3")
    read = capture(loaded, TEXT, layer=1)
    np.testing.assert_allclose(read.query, heads(outputs(loaded, 1, "q_norm"), 8), atol=1e-5)
    np.testing.assert_allclose(read.key, heads(outputs(loaded, 1, "k_norm"), 8), atol=1e-5)
    assert np.abs(read.query - heads(outputs(loaded, 1, "q_proj"), 8)).max() > 0.1


def test_gpt2_queries_are_a_third_of_its_projection(checkpoint: MakeCheckpoint) -> None:
    loaded = model_of(checkpoint, "gpt2")
    read = capture(loaded, TEXT, layer=1)
    thirds = np.split(outputs(loaded, 1, "c_attn"), 3, axis=-1)
    for rows, third in zip((read.query, read.key, read.value), thirds, strict=True):
        np.testing.assert_allclose(rows, heads(third, 8), atol=1e-5)


def test_a_partial_rotation_leaves_the_other_widths_alone() -> None:
    unrotated = importlib.import_module("polyhead.hf.capture")._unrotated
    rows, angles = np.random.default_rng(0).normal(size=(2, 5, 6)), np.arange(5.0)[:, None] * [1.0, 0.1, 1.0, 0.1]
    cos, sin = 1.3 * np.cos(angles), 1.3 * np.sin(angles)
    half = np.concatenate([-rows[..., 2:4], rows[..., :2]], axis=-1)
    rotated = np.concatenate([rows[..., :4] * cos + half * sin, rows[..., 4:]], axis=-1)
    np.testing.assert_allclose(unrotated(rotated, (cos, sin)), rows, atol=1e-12)


def test_negative_layers_count_from_the_last(checkpoint: MakeCheckpoint) -> None:
    loaded = model_of(checkpoint, "llama")
    last = capture(loaded, TEXT, layer=-1)
    assert last.layer == 1
    np.testing.assert_array_equal(last.query, capture(loaded, TEXT, layer=1).query)


def test_one_token_is_a_text(checkpoint: MakeCheckpoint) -> None:
    read = capture(model_of(checkpoint, "llama"), "cat", layer=0)
    assert (read.tokens, read.weights.tolist()) == (("cat",), [[[1.0]]] * 4)


def test_large_scores_are_no_error_of_the_spec(checkpoint: MakeCheckpoint) -> None:
    def with_a_large_key_bias(model: Any) -> None:
        # Qwen2's own biases reach the hundreds in slow planes: scores so large that float32 rounds them coarsely
        for bias, size in (
            (model.model.layers[1].self_attn.k_proj.bias, 3000.0),
            (model.model.layers[1].self_attn.q_proj.bias, 3.0),
        ):
            bias.data.view(-1, 8)[:, 3] = size

    read = capture(model_of(checkpoint, "qwen2", change=with_a_large_key_bias), TEXT, layer=1)
    assert 1e-5 < read.max_error < 1e-3


# --- what it leaves behind ------------------------------------------------------------------------


def registered() -> list[str]:
    modeling = importlib.import_module("transformers.modeling_utils")
    masking = importlib.import_module("transformers.masking_utils")
    return [*modeling.ALL_ATTENTION_FUNCTIONS, *masking.ALL_MASK_ATTENTION_FUNCTIONS]


def hooks(loaded: Loaded) -> int:
    return sum(len(module._forward_pre_hooks) for module in loaded.model.modules())


@pytest.mark.parametrize("attention", ["eager", "sdpa", "polyhead"])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_the_model_is_left_as_it_was(checkpoint: MakeCheckpoint, family: str, attention: str) -> None:
    loaded = load(checkpoint(family), attention=attention)
    names = registered()
    assert capture(loaded, TEXT, layer=0).max_error < 1e-6
    assert (registered(), hooks(loaded)) == (names, 0)
    assert loaded.model.config._attn_implementation == attention


def test_the_model_is_left_as_it_was_after_an_error(
    checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, names = model_of(checkpoint, "llama"), registered()

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.models.llama.modeling_llama.eager_attention_forward", broken)
        with pytest.raises(RuntimeError, match="planted"):
            capture(loaded, TEXT, layer=1)
    assert (registered(), hooks(loaded), loaded.model.config._attn_implementation) == (names, 0, "sdpa")
    assert capture(loaded, TEXT, layer=1).max_error < 1e-6


def test_the_pass_ends_at_the_layer(checkpoint: MakeCheckpoint) -> None:
    loaded = model_of(checkpoint, "llama")

    def fail(module: Any, args: Any) -> None:
        raise AssertionError("the pass went on")

    loaded.model.model.layers[1].register_forward_pre_hook(fail)
    capture(loaded, TEXT, layer=0)


def test_threads_take_turns(checkpoint: MakeCheckpoint) -> None:
    loaded = model_of(checkpoint, "llama")
    alone = [capture(loaded, TEXT, layer=layer) for layer in (0, 1)]
    with ThreadPoolExecutor(4) as pool:
        together: list[Captured] = list(pool.map(lambda layer: capture(loaded, TEXT, layer=layer), [0, 1] * 8))
    for index, read in enumerate(together):
        np.testing.assert_array_equal(read.query, alone[index % 2].query)


# --- what is refused ------------------------------------------------------------------------------

WRONG = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 1100.0}},
    "llama-linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.1}},
    "llama-yarn": rope("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.1),
    "mistral": {"sliding_window": 4},
    "qwen2-sliding": {"max_window_layers": 0, "layer_types": None},
    "gpt2-inverse": {"scale_attn_by_inverse_layer_idx": False},
    "gpt2-unscaled": {"scale_attn_weights": True},
}


@pytest.mark.parametrize("family", WRONG)
def test_a_spec_that_is_not_the_models_is_found(checkpoint: MakeCheckpoint, family: str) -> None:
    loaded = model_of(checkpoint, family)
    layer = 0 if family == "qwen2-sliding" else 1
    wrong = dataclasses.replace(loaded, config=loaded.config | WRONG[family])
    with pytest.raises(UnsupportedError, match=rf"does not describe layer {layer}: .* by \d.\de[+-]0\d, of which"):
        capture(wrong, TEXT, layer=layer)
    assert capture(wrong, TEXT, layer=layer, check=False).max_error > 1e-4
    assert capture(loaded, TEXT, layer=layer).max_error < 1e-6


def test_weights_that_are_no_numbers_are_found(checkpoint: MakeCheckpoint) -> None:
    loaded = model_of(checkpoint, "llama")
    loaded.model.model.layers[0].self_attn.q_proj.weight[3, 3] = float("nan")
    with pytest.raises(UnsupportedError, match=r"does not describe layer 0: .* by nan"):
        capture(loaded, TEXT, layer=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adopted_model_is_refused_until_it_is_released(checkpoint: MakeCheckpoint, family: str) -> None:
    loaded = model_of(checkpoint, family)
    adopt(loaded.model)
    with pytest.raises(
        UnsupportedError, match=rf"^{family} is adopted, and capture .*; polyhead.hf.release\(loaded.mo"
    ):
        capture(loaded, TEXT, layer=0)
    release(loaded.model)
    assert capture(loaded, TEXT, layer=0).max_error < 1e-6


def test_a_type_that_is_not_followed_is_refused(tmp_path: Path) -> None:
    shape = {"vocab_size": 80, "hidden_size": 16, "n_layer": 1, "n_head": 2}
    loaded = load(save(transformers.BloomForCausalLM(transformers.BloomConfig(**shape)), tmp_path / "bloom"))
    with pytest.raises(UnsupportedError, match="model_type='bloom' is not captured; what is captured: llama, mistral"):
        capture(loaded, TEXT, layer=0)


def test_a_model_without_a_head_is_captured_too(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    whole = model_of(checkpoint, "llama")
    headless = load(save(whole.model.model, tmp_path / "headless"))
    for name in ("query", "key", "value", "weights"):
        same = getattr(capture(headless, TEXT, layer=1), name)
        np.testing.assert_array_equal(same, getattr(capture(whole, TEXT, layer=1), name))


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_is_not_there(checkpoint: MakeCheckpoint, layer: int) -> None:
    with pytest.raises(UnknownNameError, match=f"no layer {layer} among 2; use 0 to 1, or -1 to -2 from the last"):
        capture(model_of(checkpoint, "llama"), TEXT, layer=layer)


@pytest.mark.parametrize("text", ["", "?!"])
def test_a_text_without_a_token(checkpoint: MakeCheckpoint, text: str) -> None:
    with pytest.raises(ShapeError, match="has no token; give at least one word"):
        capture(model_of(checkpoint, "llama"), text, layer=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_text_longer_than_the_positions(checkpoint: MakeCheckpoint, family: str) -> None:
    loaded = model_of(checkpoint, family)
    assert len(capture(loaded, " cat" * 64, layer=0).tokens) == 64
    with pytest.raises(ShapeError, match="has 65 tokens and the model positions for 64"):
        capture(loaded, " cat" * 65, layer=0)


@pytest.mark.parametrize(("family", "trained"), [("llama-dynamic", 64), ("llama-longrope", 16)])
def test_a_text_past_the_trained_length(checkpoint: MakeCheckpoint, family: str, trained: int) -> None:
    loaded = model_of(checkpoint, family)
    assert capture(loaded, " the cat sat on" * (trained // 4), layer=1).max_error < 1e-5
    with pytest.raises(UnsupportedError, match=rf"past the trained {trained}, transformers rotates all of a call"):
        capture(loaded, " cat" * (trained + 1), layer=1)


def test_weights_that_would_not_fit(checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("polyhead.hf.capture"), "_MAX_WEIGHT_BYTES", 4 * 4 * 10 * 10)
    loaded = model_of(checkpoint, "llama")
    assert len(capture(loaded, " cat" * 10, layer=0).tokens) == 10
    with pytest.raises(ShapeError, match=r"has 11 tokens; the weights of 4 heads fit into .* at most 10; shorten"):
        capture(loaded, " cat" * 11, layer=0)


def test_a_tokenizer_of_another_model(checkpoint: MakeCheckpoint) -> None:
    loaded = model_of(checkpoint, "llama", vocab_size=5)
    with pytest.raises(CheckpointError, match=r"gives token \d+, and the model has embeddings for 5"):
        capture(loaded, "the dog", layer=0)


# --- a real model ---------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2_reads_a_sentence(smollm2: Loaded) -> None:
    for layer in (0, 9, 29):
        read = capture(smollm2, "The cat sat on the mat", layer=layer)
        assert read.max_error < 1e-6
        assert read.tokens == ("The", "Ġcat", "Ġsat", "Ġon", "Ġthe", "Ġmat")
        assert (read.query.shape, read.key.shape, read.value.shape) == ((9, 6, 64), (3, 6, 64), (3, 6, 64))


@pytest.mark.model
def test_smollm2_reads_a_page(smollm2: Loaded) -> None:
    read = capture(smollm2, "The quick brown fox jumps over the lazy dog, and away it runs. " * 45, layer=1)
    assert len(read.tokens) > 600
    assert 1e-6 < read.max_error < 1e-4  # the model's float32 angles, which a fixed 1e-5 would call a wrong spec
