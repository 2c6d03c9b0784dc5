"""Every family that is adopted: the same outputs from the same weights, prefill and decoding, padded and not."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import polyhead as ph
from polyhead.hf import adopt, release
from polyhead.hf.families import FAMILIES, Adopted
from tests.hf.tiny import MODELS, WINDOW, tiny
from tests.tolerances import assert_close
from tests.walk import walk

PROMPT, NEW = 9, 10

by_model = pytest.mark.parametrize("name", MODELS)


def attention_of(model: Any) -> list[Adopted]:
    return [module for module in model.modules() if isinstance(module, Adopted)]


def tokens(*, padded: bool) -> tuple[Tensor, Tensor]:
    """Return tokens ``[2, PROMPT + NEW]`` and their mask, the second sequence's first ones being padding."""
    numbers = torch.randint(61, (2, PROMPT + NEW), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(numbers)
    mask[1, : 4 * padded] = 0
    return numbers, mask


def given(model: Any, numbers: Tensor, mask: Tensor, first: int = 0) -> dict[str, Tensor]:
    """Return what a call is given, its positions counted as `generate` does."""
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    asked = {"input_ids": numbers[:, first:], "attention_mask": mask, "position_ids": positions[:, first:]}
    return {name: x for name, x in asked.items() if name in inspect.signature(model.forward).parameters}


def decoded(model: Any, numbers: Tensor, mask: Tensor) -> Tensor:
    """Return the logits of a prompt and of ten tokens decoded one by one."""
    with torch.no_grad():
        out = model(**given(model, numbers[:, :PROMPT], mask[:, :PROMPT]), use_cache=True)
        logits = [out.logits]
        for end in range(PROMPT + 1, PROMPT + NEW + 1):
            step = given(model, numbers[:, :end], mask[:, :end], first=end - 1)
            out = model(**step, past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits)
    return torch.cat(logits, dim=1)


def whole(model: Any, numbers: Tensor, mask: Tensor) -> Tensor:
    """Return the logits of all tokens at once, without a cache."""
    with torch.no_grad():
        return model(**given(model, numbers, mask), use_cache=False).logits


@walk("run, padded, name", {"decoded": decoded, "whole": whole}, {"alike": False, "padded": True}, list(MODELS))
def test_an_adopted_model_gives_the_same_and_a_released_one_its_own_again(run: Any, padded: bool, name: str) -> None:
    model = tiny(name)
    numbers, mask = tokens(padded=padded)
    theirs = run(model, numbers, mask)
    ours = run(adopt(model), numbers, mask)
    assert_close(ours[mask.bool()], theirs[mask.bool()], "float32", what="logits")
    assert torch.equal(run(release(model), numbers, mask), theirs)


@by_model
def test_greedy_search_finds_the_same_tokens(name: str) -> None:
    model = tiny(name)
    numbers, mask = tokens(padded=True)
    asked = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    theirs = model.generate(numbers, **asked)
    assert torch.equal(adopt(model).generate(numbers, **asked), theirs)
    assert theirs.shape == (2, PROMPT + 2 * NEW)


@by_model
def test_a_module_is_called_as_the_one_that_it_replaces(name: str) -> None:
    for module in attention_of(adopt(tiny(name))):
        asked = list(inspect.signature(type(module.original).forward).parameters)
        answered = list(inspect.signature(module.forward).parameters)
        assert ["self", *answered] == asked
        assert isinstance(module, FAMILIES[module.original.config.model_type if module.config else "bloom"].replaced())


COPIED = {
    "falcon-mha": {"q_proj.weight", "k_proj.weight", "v_proj.weight"},
    "falcon-new": {f"{name}_proj.{kind}" for name in "qkv" for kind in ("weight", "bias")},
    "bloom": {f"{name}_proj.{kind}" for name in "qkv" for kind in ("weight", "bias")},
    "diffllama": {"v_proj.weight"},
}


@by_model
def test_weights_are_shared_where_a_view_can_be_a_matrix(name: str) -> None:
    for module in attention_of(adopt(tiny(name))):
        storages = {x.untyped_storage().data_ptr() for x in module.original.parameters()}
        ours = dict(module.attention.named_parameters())
        copied = {name for name, x in ours.items() if x.untyped_storage().data_ptr() not in storages}
        assert copied == COPIED.get(name, set())
        assert sum(x.numel() for x in ours.values()) == sum(x.numel() for x in module.original.parameters())


@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2"])
def test_parameters_are_the_models_own_where_both_have_the_same(name: str) -> None:
    for module in attention_of(adopt(tiny(name))):
        theirs = dict(module.original.named_parameters())
        assert {key: x is theirs[key] for key, x in module.attention.named_parameters()} == dict.fromkeys(theirs, True)


@by_model
def test_every_layer_is_told_by_the_config(name: str) -> None:
    """Beside the numbers: what a reader would look for in the spec of each."""
    specs = [module.attention.spec for module in attention_of(adopt(tiny(name)))]
    windowed = {
        "mistral": [True, True],
        "mixtral": [True, True],
        "qwen2-sliding": [False, True],
        "gemma2": [True, False],
    }
    patterns = [ph.SlidingWindow.causal(WINDOW) if slides else ph.Causal() for slides in windowed.get(name, [0, 0])]
    assert [spec.attention.pattern for spec in specs] == patterns
    assert [spec.qk_norm for spec in specs] == [name == "qwen3"] * 2
    layers = [getattr(spec.attention.weighting, "layer", None) for spec in specs]
    assert layers == ([1, 2] if name == "diffllama" else [None, None])


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v2-plain", "deepseek-v3", "deepseek-v3-half"])
def test_a_latent_cache_keeps_the_latent_and_the_rope_key_of_each_token_and_no_more(name: str) -> None:
    model = adopt(tiny(name))
    numbers, mask = tokens(padded=False)
    with torch.no_grad():
        past = model(**given(model, numbers, mask), use_cache=True).past_key_values
    config, float32 = model.config, 4
    row = config.kv_lora_rank + config.qk_rope_head_dim
    for layer in past.layers:
        assert layer.cache.used_bytes == numbers.numel() * row * float32
        assert {key: x.shape[-1] for key, x in layer.cache.saved_tensors().items()} == {"key": row}


def test_a_window_keeps_its_tokens_alone() -> None:
    model = adopt(tiny("mistral"))
    numbers, mask = tokens(padded=False)
    with torch.no_grad():
        past = model(**given(model, numbers, mask), use_cache=True).past_key_values
    for layer in past.layers:
        assert layer.get_seq_length() == PROMPT + NEW
        assert layer.cache.saved_tensors()["key"].shape[2] == WINDOW


# --- training


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-mqa", "falcon-new", "bloom", "deepseek-v2", "diffllama"])
@pytest.mark.parametrize("use_cache", [False, True])
def test_a_step_of_training_ends_at_the_same_weights(name: str, use_cache: bool) -> None:
    numbers, mask = tokens(padded=True)
    trained = {}
    for adopted in (False, True):
        model = tiny(name)
        if adopted:
            adopt(model)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        after_padding = mask.cumsum(dim=1) <= 1 - mask[:, :1]  # predicted from padding, whose rows are nobody's
        labels = numbers.masked_fill(after_padding, -100)
        model(**given(model, numbers, mask), labels=labels, use_cache=use_cache).loss.backward()
        optimiser.step()
        trained[adopted] = (release(model) if adopted else model).state_dict()
    before = tiny(name).state_dict()
    for key, theirs in trained[False].items():
        assert not torch.equal(theirs, before[key]) or "bias" in key or "k_" in key, f"{key} was not trained"
        assert_close(trained[True][key], theirs, "float32", what=key)


def test_dropout_follows_the_models_own_and_its_mode() -> None:
    model = adopt(tiny("llama", attention_dropout=0.5))
    numbers, mask = tokens(padded=False)
    one, same = (whole(model, numbers, mask) for _ in range(2))
    assert torch.equal(one, same)
    model.train()
    first, second = (whole(model, numbers, mask) for _ in range(2))
    assert not torch.equal(first, second)
    release(model)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_dropout_after_the_projection_is_the_models(name: str) -> None:
    model = adopt(tiny(name, **({"resid_pdrop": 0.5} if name == "gpt2" else {"hidden_dropout": 0.5}))).train()
    module = attention_of(model)[0]
    x, residual = torch.ones(1, 3, 24), torch.zeros(1, 3, 24)
    more = (residual, None, None) if name == "bloom" else ()
    with torch.no_grad():
        dropped = module(x, *more)[0]
    assert 0 < (dropped == 0).sum() < dropped.numel()


# --- moving, saving and copying


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "deepseek-v2"])
def test_a_model_that_is_converted_while_adopted_is_converted_when_released(name: str) -> None:
    numbers, mask = tokens(padded=False)
    model = adopt(tiny(name)).to(torch.float64)
    ours = decoded(model, numbers, mask)
    assert ours.dtype == torch.float64
    assert {x.dtype for x in release(model).parameters()} == {torch.float64}
    assert_close(decoded(model, numbers, mask), ours, "float32")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "deepseek-v2"])
def test_a_state_dict_is_the_models_own(name: str) -> None:
    expected, other = tiny(name).state_dict(), tiny(name, seed=7)
    model = adopt(tiny(name))
    state = model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], x) for key, x in expected.items())
    assert model.load_state_dict(other.state_dict()) == ([], [])
    numbers, mask = tokens(padded=False)
    assert_close(decoded(model, numbers, mask), decoded(other, numbers, mask), "float32")


def test_a_state_dict_that_does_not_fit_is_told_as_ever() -> None:
    model = adopt(tiny("gpt2"))
    state = model.state_dict()
    key = "transformer.h.1.attn.c_attn.weight"
    assert model.load_state_dict({k: x for k, x in state.items() if k != key}, strict=False).missing_keys == [key]
    stray = "transformer.h.1.attn.q.weight"
    assert model.load_state_dict({**state, stray: state[key]}, strict=False).unexpected_keys == [stray]
    with pytest.raises(RuntimeError, match=r"transformer\.h\.1\.attn: [^:]*:\s*size mismatch for c_attn\.weight"):
        model.load_state_dict({**state, key: state[key].mT})


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_a_checkpoint_saved_while_adopted_is_the_models(name: str, tmp_path: Any) -> None:
    model = adopt(tiny(name))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    numbers, mask = tokens(padded=False)
    assert_close(decoded(again, numbers, mask), decoded(model, numbers, mask), "float32")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_copy_of_an_adopted_model_is_one(name: str) -> None:
    numbers, mask = tokens(padded=False)
    model = adopt(tiny(name))
    twin = copy.deepcopy(model)
    expected = decoded(model, numbers, mask)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(decoded(twin, numbers, mask), expected)
    assert_close(decoded(release(twin), numbers, mask), expected, "float32")
