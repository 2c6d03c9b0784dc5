"""Our caches inside transformers' `Cache`: what moves sequences about, and what must be said of them at each call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.cache import RollingCache
from polyhead.errors import ShapeError, UnsupportedError
from polyhead.hf import adopt, release
from tests.hf.tiny import MODELS, tiny
from tests.tolerances import assert_close

LENGTH = 8

by_cache = pytest.mark.parametrize("name", ["llama", "mistral", "deepseek-v2"])  # growing, rolling, latent


def numbers(batch: int, tokens: int, seed: int = 1) -> Tensor:
    return torch.randint(61, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def read(model: Any, tokens: Tensor, past: Any = None, mask: Tensor | None = None, **more: Any) -> Any:
    """Return a model's output; without a mask all tokens are real."""
    seen = 0 if past is None else past.get_seq_length()
    mask = torch.ones(len(tokens), seen + tokens.shape[1], dtype=torch.int64) if mask is None else mask
    with torch.no_grad():
        return model(tokens, attention_mask=mask, past_key_values=past, use_cache=True, **more)


def padded() -> Tensor:
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, :3] = 0
    return mask


# --- what moves sequences about

CHANGES: dict[str, Callable[[Any], None]] = {
    "reorder": lambda past: past.reorder_cache(torch.tensor([2, 0, 0])),
    "repeat": lambda past: past.batch_repeat_interleave(2),
    "select": lambda past: past.batch_select_indices(torch.tensor([2, 1])),
    "select-some": lambda past: past.batch_select_indices(torch.tensor([True, False, True])),
    "crop": lambda past: past.crop(-3),
    "crop-nothing": lambda past: past.crop(0),
}


@by_cache
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_decoding_goes_on_as_from_transformers_own_cache(
    name: str, change: Callable[[Any], None], padded: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny(name)
    mask = torch.ones(3, LENGTH, dtype=torch.int64)
    mask[1, : 3 * padded] = 0
    logits = []
    for run in (lambda model: model, adopt):
        past = transformers.DynamicCache(config=run(model).config)
        past.activate_past_recording()
        read(model, numbers(3, LENGTH), past, mask)
        change(past)
        by_rows = transformers.DynamicCache()
        by_rows.update(*[mask[:, None, :, None].float()] * 2, 0)
        change(by_rows)
        kept = by_rows.layers[0].keys[:, 0, :, 0].long()
        step = numbers(len(kept), 2, seed=2)
        out = read(model, step, past, torch.cat([kept, torch.ones_like(step)], dim=1))
        assert past.get_seq_length() == kept.shape[1] + 2
        logits.append(out.logits)
    assert_close(logits[1], logits[0], "float32", what="logits")


@by_cache
def test_a_reset_cache_takes_another_batch(name: str) -> None:
    model = adopt(tiny(name))
    past = read(model, numbers(3, LENGTH)).past_key_values
    past.reset()
    assert past.get_seq_length() == 0
    again = read(model, numbers(2, 4, seed=5), past)
    assert torch.equal(again.logits, read(model, numbers(2, 4, seed=5)).logits)


@by_cache
def test_a_copy_of_a_cache_is_independent(name: str) -> None:
    """As users keep a prompt's cache to answer several questions."""
    model = adopt(tiny(name))
    past = read(model, numbers(1, LENGTH)).past_key_values
    twin = copy.deepcopy(past)
    once = read(model, numbers(1, 3, seed=2), past).logits
    assert twin.get_seq_length() == LENGTH
    assert torch.equal(read(model, numbers(1, 3, seed=2), twin).logits, once)


@by_cache
def test_a_cache_made_without_a_config_is_filled_layer_by_layer(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = adopt(tiny(name))
    past = transformers.DynamicCache()
    once = read(model, numbers(2, LENGTH), past).logits
    assert torch.equal(once, read(model, numbers(2, LENGTH)).logits)
    assert len(past) == 2
    assert "GrowingCache" in repr(past) or "RollingCache" in repr(past)


def test_a_cache_says_what_transformers_asks_of_it() -> None:
    model = adopt(tiny("qwen2-sliding"))
    past = read(model, numbers(2, LENGTH)).past_key_values
    assert past.is_sliding == [False, True]
    assert (past.is_compileable, past.is_croppable, past.get_max_length()) == (False, False, -1)
    assert [past.get_mask_sizes(3, layer) for layer in range(2)] == [(LENGTH + 3, 0)] * 2


def test_a_window_keeps_every_token_only_while_tokens_may_be_taken_back() -> None:
    transformers = pytest.importorskip("transformers")
    model = adopt(tiny("mistral"))
    past = transformers.DynamicCache(config=model.config)
    past.activate_past_recording()
    read(model, numbers(1, 3 * LENGTH), past)
    assert past.is_croppable
    past.crop(1 - 3 * LENGTH)
    assert past.get_seq_length() == 1
    forgetful = read(model, numbers(1, 3 * LENGTH)).past_key_values
    with pytest.raises(UnsupportedError, match=r"a rolling cache with slack=0 can lose its last 0"):
        forgetful.crop(-1)
    with pytest.raises(UnsupportedError, match=r"this cache keeps a window and has begun to forget.*pass a new cache"):
        forgetful.activate_past_recording()


# --- static caches


@pytest.mark.parametrize("name", MODELS)
def test_a_static_cache_finds_the_same_tokens_and_is_reserved_once(name: str) -> None:
    model, prompt, mask = tiny(name), numbers(2, LENGTH), padded()
    asked: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0}
    asked |= {"cache_implementation": "static", "return_dict_in_generate": True}
    theirs = model.generate(prompt, **asked).sequences  # the window of those that have one is 5 tokens
    ours = adopt(model).generate(prompt, **asked)
    assert torch.equal(ours.sequences, theirs)
    caches = [layer.cache for layer in ours.past_key_values.layers]
    assert {cache.length for cache in caches} == {2 * LENGTH - 1}
    bounded = [cache for cache in caches if not isinstance(cache, RollingCache)]
    assert {cache.max_seq_len for cache in bounded} <= {2 * LENGTH - 1}
    assert ours.past_key_values.get_max_length() == (2 * LENGTH - 1 if bounded else -1)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "deepseek-v2", "bloom"])
@pytest.mark.parametrize(
    "asked", [{"num_beams": 3}, {"prefill_chunk_size": 3}, {"max_cache_len": 40}], ids=["beams", "chunks", "longer"]
)
def test_a_static_cache_goes_with_what_else_generate_does(name: str, asked: dict[str, Any]) -> None:
    model, prompt = tiny(name), numbers(2, LENGTH)
    asked = {"attention_mask": padded(), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **asked}
    theirs = model.generate(prompt, **{key: x for key, x in asked.items() if key != "max_cache_len"})
    assert torch.equal(adopt(model).generate(prompt, **asked, cache_implementation="static"), theirs)


def test_what_passes_a_static_cache_is_refused_and_a_reset_one_is_as_long_again() -> None:
    transformers = pytest.importorskip("transformers")
    model = adopt(tiny("llama"))
    past = transformers.StaticCache(model.config, max_cache_len=LENGTH + 1)
    read(model, numbers(2, LENGTH), past)
    reserved = [layer.cache.allocated_bytes for layer in past.layers]
    read(model, numbers(2, 1), past)
    with pytest.raises(ShapeError, match=rf"past max_seq_len={LENGTH + 1}; make a longer cache"):
        read(model, numbers(2, 1), past)
    assert [layer.cache.allocated_bytes for layer in past.layers] == reserved
    past.reset()
    read(model, numbers(3, 4), past)
    assert past.get_max_length() == LENGTH + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "deepseek-v2"])
def test_generating_with_a_compiled_model_finds_the_same_tokens(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model, prompt = tiny(name), numbers(2, LENGTH)
    asked: dict[str, Any] = {"attention_mask": padded(), "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    theirs = model.generate(prompt, **asked)
    compiling = transformers.CompileConfig(backend="eager", mode=None)
    compiling._compile_all_devices = True  # which it does by itself on a GPU alone
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        ours = adopt(model).generate(prompt, **asked, cache_implementation="static", compile_config=compiling)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    finally:
        torch._dynamo.reset()
    assert torch.equal(ours, theirs)
    assert 0 < compiled < 20, "nothing was compiled, or something for each token"


# --- what is refused


def test_more_tokens_than_there_are_cannot_be_cropped() -> None:
    past = read(adopt(tiny("llama")), numbers(1, LENGTH)).past_key_values
    with pytest.raises(ShapeError, match=r"crop cannot leave -1 tokens"):
        past.crop(-LENGTH - 1)
    with pytest.raises(ShapeError, match=r"crop\(3\) says nothing; give minus the number of tokens to remove"):
        past.crop(3)
    assert past.get_seq_length() == LENGTH


def test_a_cache_of_another_kind_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    model = adopt(tiny("llama"))
    quantised = transformers.QuantizedCache("fp8", model.config)
    with pytest.raises(UnsupportedError, match=r"a Fp8QuantizedLayer cannot hold what an adopted layer keeps.*Static"):
        read(model, numbers(1, LENGTH), quantised)
    asked: dict[str, Any] = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    with pytest.raises(UnsupportedError, match=r"a Fp8QuantizedLayer cannot hold.*'dynamic' or 'static'"):
        model.generate(numbers(1, LENGTH), max_new_tokens=2, pad_token_id=0, **asked)
    both = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
    with pytest.raises(UnsupportedError, match=r"EncoderDecoderCache cannot hold what adopted layers keep"):
        read(model, numbers(1, LENGTH), both)


def test_an_offloaded_cache_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    model = adopt(tiny("llama"))
    past = transformers.DynamicCache()
    past.offloading = True  # which its own constructor does only where there is a GPU
    with pytest.raises(UnsupportedError, match=r"an offloaded cache cannot hold what adopted layers keep"):
        read(model, numbers(1, LENGTH), past)
    filled = read(model, numbers(1, LENGTH)).past_key_values
    with pytest.raises(UnsupportedError, match=r"an adopted layer's cache is not offloaded"):
        filled.layers[0].offload()


def test_a_model_and_an_adopted_one_do_not_go_on_from_each_others_cache() -> None:
    model = tiny("llama")
    theirs = read(model, numbers(1, LENGTH)).past_key_values
    adopt(model)
    with pytest.raises(UnsupportedError, match=r"the cache holds 8 tokens of the model's own attention.*a new one"):
        read(model, numbers(1, 1), theirs)
    ours = read(model, numbers(1, LENGTH)).past_key_values
    release(model)
    with pytest.raises(UnsupportedError, match=r"filled by an adopted model.*begin with a new cache after release"):
        read(model, numbers(1, 1), ours)


# --- what must be said at each call


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("then", ["no padding", "other padding", "none at all"])
def test_a_mask_that_changes_its_word_of_earlier_tokens_is_refused(name: str, then: str) -> None:
    model = adopt(tiny(name))
    past = read(model, numbers(2, LENGTH), mask=padded()).past_key_values
    mask = torch.cat([padded(), torch.ones(2, 1, dtype=torch.int64)], dim=1)
    if then == "other padding":
        mask[1, 2] = 1
    elif then == "no padding":
        mask[:] = 1
    with (
        pytest.raises(UnsupportedError, match=r"attention_mask hides other earlier tokens than it did"),
        torch.no_grad(),
    ):
        model(
            numbers(2, 1), attention_mask=None if then == "none at all" else mask, past_key_values=past, use_cache=True
        )
    assert past.get_seq_length() == LENGTH


def test_padding_that_comes_to_light_later_is_refused() -> None:
    model = adopt(tiny("llama"))
    past = read(model, numbers(2, LENGTH)).past_key_values
    mask = torch.cat([padded(), torch.ones(2, 1, dtype=torch.int64)], dim=1)
    with pytest.raises(UnsupportedError, match=r"attention_mask hides other earlier tokens than it did"):
        read(model, numbers(2, 1), past, mask)


def test_a_mask_of_the_new_tokens_alone_is_refused() -> None:
    model = adopt(tiny("gpt2"))
    past = read(model, numbers(2, LENGTH), mask=padded()).past_key_values
    with pytest.raises(ShapeError, match=r"attention_mask has 3 columns for 8 earlier tokens and 3 new ones; give 11"):
        read(model, numbers(2, 3), past, padded()[:, 2:5])


def test_positions_that_leave_padding_out_are_refused_where_attention_depends_on_them() -> None:
    """A hole in the middle: transformers counts on from before it, and an index does not."""
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, 3:5] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    for name in ("llama", "mistral", "falcon-mqa", "deepseek-v2"):
        with pytest.raises(UnsupportedError, match="positions do not count on by one from each real token"):
            read(adopt(tiny(name)), numbers(2, LENGTH), mask=mask, position_ids=positions)
    with pytest.raises(UnsupportedError, match="positions do not count on by one from each real token"):
        read(adopt(tiny("bloom")), numbers(2, LENGTH), mask=mask)


def test_padding_in_the_middle_is_only_masked_where_positions_run_on() -> None:
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, 3:5] = 0
    for name in ("llama", "gpt2"):  # whose default counts every token
        model = tiny(name)
        theirs = read(model, numbers(2, LENGTH), mask=mask).logits
        ours = read(adopt(model), numbers(2, LENGTH), mask=mask).logits
        assert_close(ours[mask.bool()], theirs[mask.bool()], "float32", what="logits")


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_hole_between_two_calls_is_refused(name: str) -> None:
    """Padding at the right of a prompt, and then its answer."""
    model = adopt(tiny(name))
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, -2:] = 0
    positions = {} if name == "bloom" else {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
    past = read(model, numbers(2, LENGTH), mask=mask, **positions).past_key_values
    longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], dim=1)
    positions = {} if name == "bloom" else {"position_ids": longer.cumsum(dim=1)[:, -1:] - 1}
    with pytest.raises(UnsupportedError, match="positions do not count on by one from each real token"):
        read(model, numbers(2, 1), past, longer, **positions)


def test_sequences_packed_into_one_are_refused() -> None:
    model = adopt(tiny("llama"))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    with pytest.raises(UnsupportedError, match="or where sequences are packed into one"):
        model(numbers(1, LENGTH), position_ids=positions, use_cache=False)


def test_a_shift_of_all_positions_changes_nothing() -> None:
    model = tiny("llama")
    theirs = read(model, numbers(1, LENGTH)).logits
    positions = torch.arange(20, 20 + LENGTH)[None]
    assert_close(read(adopt(model), numbers(1, LENGTH), position_ids=positions).logits, theirs, "float32")
