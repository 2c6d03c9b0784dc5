"""Adopting a model and giving it back: what is refused before anything changes, and what `generate` does with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyhead.errors import CheckpointError, UnsupportedError
from polyhead.hf import adopt, release
from polyhead.hf.caches import CacheLayer
from polyhead.hf.families import FAMILIES, Adopted
from tests.hf.tiny import GPT2, rope, tiny
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
    before, state = modules(model), {key: x.clone() for key, x in model.state_dict().items()}
    assert release(adopt(model)) is model
    assert modules(model) == before
    assert all(torch.equal(x, state[key]) for key, x in model.state_dict().items())
    assert model.config._attn_implementation == "eager"


def test_a_model_without_a_head_is_adopted_and_released_within_one_with() -> None:
    model = tiny("llama")
    theirs = generated(model)
    adopt(model.model)
    assert torch.equal(generated(model), theirs)
    release(model)
    assert not [module for module in model.modules() if isinstance(module, Adopted)]
    release(adopt(model).model)
    assert torch.equal(generated(model), theirs)


def test_adopting_twice_and_releasing_what_is_not_adopted_are_errors() -> None:
    model = tiny("llama")
    with pytest.raises(UnsupportedError, match=r"this model is not adopted.*adopt\(model\) first"):
        release(model)
    before = modules(adopt(model))
    for again in (model, model.model):
        with pytest.raises(UnsupportedError, match=r"adopted already; release\(model\) first"):
            adopt(again)
    assert modules(model) == before


@pytest.mark.parametrize("function", [adopt, release])
def test_what_is_no_model_of_transformers_is_refused(function: Callable[[Any], Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"a Linear is no model of transformers; give what from_pretrained"):
        function(nn.Linear(2, 2))


# --- what is refused before anything changes


def modules(model: Any) -> dict[str, int]:
    return {name: id(module) for name, module in model.named_modules()}


def assert_refused(model: Any, error: type[Exception], match: str) -> None:
    """Assert that a model is refused, and is as it was."""
    before, named = modules(model), model.config._attn_implementation
    with pytest.raises(error, match=match):
        adopt(model)
    assert modules(model) == before
    assert model.config._attn_implementation == named


def test_a_type_that_is_not_on_the_list_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=20
    )
    listed = ", ".join(FAMILIES)
    assert_refused(
        transformers.GPTNeoXForCausalLM(config),
        UnsupportedError,
        rf"model_type='gpt_neox' is not adopted; what is adopted: {listed}$",
    )


LONGROPE = rope("longrope", short_factor=[1.0, 2.0], long_factor=[2.0, 4.0], original_max_position_embeddings=16)


@pytest.mark.parametrize(
    ("name", "fields", "match"),
    [
        ("llama", rope("dynamic", factor=3.0), r"DynamicNTKScaling depends on the length"),
        ("llama", {**LONGROPE, "factor": 4.0}, r"LongRopeScaling depends on the length"),
        ("llama", {"is_causal": False}, r"is_causal of config\.json stands in the way"),
        (
            "gemma2",
            {"use_bidirectional_attention": True},
            r"use_bidirectional_attention of config\.json stands in the way",
        ),
        ("falcon-mqa", {"alibi": True}, r"alibi of its config stands in the way.*bfloat16"),
        (
            "deepseek-v2",
            {"q_lora_rank": None, "attention_bias": True},
            r"attention_bias of config\.json stands in the way",
        ),
        ("gpt2", {"add_cross_attention": True}, r"add_cross_attention of config\.json stands in the way"),
    ],
)
def test_what_cannot_be_as_before_is_refused(name: str, fields: dict[str, Any], match: str) -> None:
    assert_refused(tiny(name, **fields), UnsupportedError, match)


def attention(model: Any) -> Any:
    return model.model.layers[1].self_attn


def without(model: Any) -> None:
    del attention(model).k_proj


def misshapen(model: Any) -> None:
    attention(model).k_proj = nn.Linear(24, 20, bias=False)


def not_a_number(model: Any) -> None:
    attention(model).o_proj.weight.data[3, 4] = torch.nan


def infinite(model: Any) -> None:
    attention(model).o_proj.weight.data[3, 4] = -torch.inf


def not_loaded(model: Any) -> None:
    attention(model).q_proj.to("meta")


def quantised(model: Any) -> None:
    weight = attention(model).q_proj.weight
    attention(model).q_proj.weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)


def with_adapter(model: Any) -> None:
    attention(model).q_proj.lora_A = nn.Linear(24, 2, bias=False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without, "it lacks k_proj.weight, which its config asks for"),
        (misshapen, r"its k_proj.weight is \[20, 24\]; its config asks for \[12, 24\]"),
        (not_a_number, "its o_proj.weight has values that are not finite; fetch the weights again"),
        (infinite, "its o_proj.weight has values that are not finite; fetch the weights again"),
        (not_loaded, "its q_proj.weight has no values, being on the meta device; load the weights first"),
        (quantised, "its q_proj.weight is torch.int8; load the model without quantisation"),
        (with_adapter, "it has q_proj.lora_A.weight, which its config does not ask for; merge adapters"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change: Callable[[Any], None], match: str) -> None:
    model = tiny("llama", attention_bias=False)
    change(model)
    assert_refused(model, CheckpointError, rf"^model\.layers\.1\.self_attn: {match}")


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("gpt2", "transformer.h.1.attn.c_attn.weight", r"its c_attn\.weight is \[24, 71\]; its config asks for"),
        ("bloom", "transformer.h.1.self_attention.query_key_value.bias", r"query_key_value\.bias is \[71\]"),
        ("falcon-new", "transformer.h.0.self_attention.query_key_value.bias", r"query_key_value\.bias is \[39\]"),
        ("deepseek-v3", "model.layers.1.self_attn.kv_b_proj.weight", r"kv_b_proj\.weight is \[33, 9\]"),
    ],
)
def test_a_fused_tensor_of_another_shape_is_refused(name: str, tensor: str, match: str) -> None:
    model = tiny(name)
    owner, _, kind = tensor.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, kind, nn.Parameter(getattr(module, kind).data[..., :-1]))
    assert_refused(model, CheckpointError, match)


def rescaled(model: Any) -> None:
    attention(model).scaling = 1.0


def patched(model: Any) -> None:
    attention(model).forward = attention(model).forward


def patched_inside(model: Any) -> None:
    attention(model).v_proj.forward = attention(model).v_proj.forward


def hooked(model: Any) -> None:
    attention(model).v_proj.register_forward_hook(print)


def shortened(model: Any) -> None:
    del model.model.layers[1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (rescaled, "it multiplies scores by 1, and its config says 0.5"),
        (patched, "the forward of its own is patched, as offloading does"),
        (patched_inside, "the forward of its v_proj is patched, as offloading does"),
        (hooked, "its v_proj has hooks, which would not run; remove them first"),
        (shortened, r"the config has 2 layers, and the model's modules llama\.LlamaAttention are numbered \[0\]"),
    ],
)
def test_a_model_that_was_changed_is_refused(change: Callable[[Any], None], match: str) -> None:
    model = tiny("llama")
    change(model)
    assert_refused(model, UnsupportedError, match)


def test_a_norm_of_another_epsilon_is_refused() -> None:
    model = tiny("qwen3")
    attention(model).k_norm.variance_epsilon = 0.1
    assert_refused(model, UnsupportedError, r"it has a Qwen3RMSNorm with ε = 0\.1, and its config says 1e-06")


def test_a_config_that_describes_no_attention_is_refused() -> None:
    model = tiny("gemma2")
    model.config.attn_logit_softcapping = -1.0
    assert_refused(model, CheckpointError, r"config\.json describes no attention that is defined: softcap=-1")


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
