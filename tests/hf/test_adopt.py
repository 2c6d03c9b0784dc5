"""Adopting a model and giving it back: what `generate` does with it, and what is refused when it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.errors import UnsupportedError
from polyhead.hf import adopt, release
from polyhead.hf.caches import CacheLayer
from polyhead.hf.families import Adopted
from tests.hf.snapshots import snapshot
from tests.hf.tiny import GPT2, tiny
from tests.tolerances import assert_close

PROMPT, NEW = 9, 8


def prompts() -> dict[str, Tensor]:
    """Return three prompts of unlike lengths, padded at the left."""
    numbers = torch.randint(61, (3, PROMPT), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(numbers)
    mask[1, :4] = mask[2, :1] = 0
    return {"input_ids": numbers, "attention_mask": mask}


def generated(model: Any, **asked: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**{**prompts(), "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **asked})


# --- what generate() does


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "deepseek-v2", "bloom", "gpt2"])
@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 2, "top_k": 5},
        {"do_sample": True, "num_beams": 2},
        {"use_cache": False},
        {"prefill_chunk_size": 4},
    ],
    ids=["beams", "beams-returned", "samples", "samples-returned", "sampled-beams", "no-cache", "chunks"],
)
def test_generation_finds_the_same_tokens(name: str, asked: dict[str, Any]) -> None:
    model = tiny(name)
    theirs = generated(model, **asked)
    assert torch.equal(generated(adopt(model), **asked), theirs)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "deepseek-v2"])
@pytest.mark.parametrize("by", ["assistant", "lookup"])
def test_assisted_decoding_takes_tokens_back(name: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, assistant = tiny(name), adopt(tiny(name))
    with torch.no_grad():
        for seed, parameter in enumerate(assistant.parameters()):  # often right, and often wrong
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    numbers = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
    asked: dict[str, Any] = {"input_ids": numbers, "attention_mask": torch.ones_like(numbers), "max_new_tokens": 12}
    theirs = generated(model, **asked)
    helped = {"assistant": {"assistant_model": assistant}, "lookup": {"prompt_lookup_num_tokens": 3}}
    cropped, crop = [], CacheLayer.crop
    monkeypatch.setattr(CacheLayer, "crop", lambda layer, count: (cropped.append(count), crop(layer, count)))
    assert torch.equal(generated(adopt(model), **asked, **helped[by]), theirs)
    assert any(cropped), "no token was taken back, so this shows nothing"


@pytest.mark.parametrize("name", ["llama", "mistral", "bloom"])
def test_a_second_turn_goes_on_from_the_first_ones_cache(name: str) -> None:
    model = tiny(name)
    turns = []
    for run in (lambda model: model, adopt):
        run(model)
        first = generated(model, return_dict_in_generate=True)
        numbers = torch.cat([first.sequences, prompts()["input_ids"].flip(1)], dim=1)
        mask = torch.cat([prompts()["attention_mask"], torch.ones(3, NEW + PROMPT, dtype=torch.int64)], dim=1)
        second = generated(model, input_ids=numbers, attention_mask=mask, past_key_values=first.past_key_values)
        turns.append(second)
    assert torch.equal(turns[1], turns[0])


def test_weights_and_hidden_states_are_returned_on_request() -> None:
    model = tiny("llama")
    theirs = model(**prompts(), output_attentions=True, output_hidden_states=True)
    ours = adopt(model)(**prompts(), output_attentions=True, output_hidden_states=True)
    rows = prompts()["attention_mask"].bool()
    for what in ("attentions", "hidden_states"):
        assert len(ours[what]) == len(theirs[what]) == {"attentions": 2, "hidden_states": 3}[what]
        for one, other in zip(ours[what], theirs[what], strict=True):
            one, other = (x.transpose(1, 2) if x.dim() == 4 else x for x in (one, other))
            assert_close(one[rows], other[rows], "float32", what=what)
    assert adopt(release(model))(**prompts()).attentions is None


@pytest.mark.parametrize("first", ["original", "adopted"])
def test_outputs_are_recorded_whenever_recording_begins(first: str) -> None:
    """transformers hooks a model's modules once, at the first request."""
    model = tiny("llama")
    if first == "adopted":
        adopt(model)
    model(**prompts(), output_attentions=True)
    if first == "adopted":
        release(model)
    else:
        adopt(model)
    assert len(model(**prompts(), output_attentions=True).attentions) == 2


def test_hooks_on_an_attention_module_stay() -> None:
    model, seen = tiny("llama"), []
    handle = model.model.layers[0].self_attn.register_forward_hook(lambda *_: seen.append("before"))
    adopt(model)
    model.model.layers[1].self_attn.register_forward_hook(lambda *_: seen.append("while"))
    model(**prompts())
    assert seen == ["before", "while"]
    release(model)
    handle.remove()
    model(**prompts())
    assert seen == ["before", "while", "while"]


# --- there and back


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "deepseek-v3"])
def test_release_gives_back_the_same_modules_bit_for_bit(name: str) -> None:
    model = tiny(name)
    before = snapshot(model)
    assert release(adopt(model)) is model
    assert snapshot(model) == before


def test_a_part_that_does_not_train_with_the_others_is_left_so() -> None:
    model = tiny("llama").train()
    model.model.layers[1].self_attn.v_proj.eval()
    before = snapshot(model)
    assert adopt(model).model.layers[1].self_attn.training
    assert snapshot(release(model)) == before


def test_a_model_without_a_head_is_adopted_and_released_within_one_with() -> None:
    model = tiny("llama")
    theirs = generated(model)
    adopt(model.model)
    assert torch.equal(generated(model), theirs)
    release(model)
    assert not [module for module in model.modules() if isinstance(module, Adopted)]
    release(adopt(model).model)
    assert torch.equal(generated(model), theirs)


# --- what is refused when a model runs


def test_cross_attention_of_a_model_made_without_is_refused() -> None:
    module = adopt(tiny("gpt2")).transformer.h[0].attn
    with pytest.raises(UnsupportedError, match="encoder_hidden_states ask for cross-attention"):
        module(torch.zeros(1, 2, GPT2["n_embd"]), encoder_hidden_states=torch.zeros(1, 3, GPT2["n_embd"]))


def test_the_weights_of_each_map_are_refused() -> None:
    model = adopt(tiny("diffllama"))
    with pytest.raises(UnsupportedError, match="output_attentions asks for the weights of each map"):
        model(**prompts(), output_attentions=True)


def test_a_mask_for_each_pair_is_refused() -> None:
    model = adopt(tiny("llama"))
    pairs = torch.ones(3, 1, PROMPT, PROMPT, dtype=torch.bool).tril()
    with pytest.raises(
        UnsupportedError, match=r"attention_mask reached layer 0 as \[3, 1, 9, 9\].*give a mask \[batch"
    ):
        model(prompts()["input_ids"], attention_mask=pairs)


def test_a_models_own_mask_function_is_refused() -> None:
    masking = pytest.importorskip("transformers.masking_utils")
    model = adopt(tiny("llama"))
    x = torch.zeros(3, PROMPT, 24)
    with pytest.raises(UnsupportedError, match="the model adds a mask of its own to the pattern"):
        masking.create_causal_mask(model.config, x, None, None, or_mask_function=lambda *where: where[2] >= 0)


def test_a_gradient_through_cached_tokens_is_refused() -> None:
    model = adopt(tiny("llama"))
    past = model(**prompts()).past_key_values
    step = prompts()["input_ids"][:, :1]
    mask = torch.cat([prompts()["attention_mask"], torch.ones_like(step)], dim=1)
    with pytest.raises(UnsupportedError, match=r"a gradient is asked for.*torch\.no_grad\(\), or with use_cache=False"):
        model(step, attention_mask=mask, past_key_values=past)
    with torch.no_grad():
        model(step, attention_mask=mask, past_key_values=past)
    assert past.get_seq_length() == PROMPT + 1
