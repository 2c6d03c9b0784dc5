"""What `adopt` and `release` refuse, and that a model is then as it was, bit for bit."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from polyhead.errors import CheckpointError, PolyheadError, UnsupportedError
from polyhead.hf import adopt, families, release
from polyhead.hf.families import FAMILIES
from tests.hf.snapshots import snapshot
from tests.hf.tiny import rope, tiny

MIDDLE = 1  # of three layers


def llama(change: Callable[[Any], Any] = lambda attention: None, name: str = "llama", **fields: Any) -> Any:
    """Return a model of three layers whose middle one's attention was changed."""
    model = tiny(name, **{"num_hidden_layers": 3, **({} if name == "qwen3" else {"attention_bias": False}), **fields})
    change(model.model.layers[MIDDLE].self_attn)
    return model


# --- what is wrong with a tensor, a module or a config


def without(attention: Any) -> None:
    del attention.k_proj


def misshapen(attention: Any) -> None:
    attention.k_proj = nn.Linear(24, 20, bias=False)


def with_a_bias(attention: Any) -> None:
    attention.k_proj.bias = nn.Parameter(torch.zeros(12))


def with_adapter(attention: Any) -> None:
    attention.q_proj.lora_A = nn.Linear(24, 2, bias=False)


def not_a_number(attention: Any) -> None:
    attention.o_proj.weight.data[3, 4] = torch.nan


def infinite(attention: Any) -> None:
    attention.o_proj.weight.data[3, 4] = -torch.inf


def not_loaded(attention: Any) -> None:
    attention.q_proj.to("meta")


def quantised(attention: Any) -> None:
    attention.q_proj.weight = nn.Parameter(attention.q_proj.weight.to(torch.int8), requires_grad=False)


def rescaled(attention: Any) -> None:
    attention.scaling = 1.0


def patched(attention: Any) -> None:
    attention.forward = attention.forward


def patched_inside(attention: Any) -> None:
    attention.v_proj.forward = attention.v_proj.forward


def hooked(attention: Any) -> None:
    attention.v_proj.register_forward_hook(lambda *_: None)


def of_another_epsilon(attention: Any) -> None:
    attention.k_norm.variance_epsilon = 0.1


def shortened() -> Any:
    model = llama()
    del model.model.layers[MIDDLE]
    return model


def with_less(name: str, tensor: str) -> Any:
    """Return a model one of whose fused tensors lacks its last column."""
    model = tiny(name)
    owner, _, kind = tensor.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, kind, nn.Parameter(getattr(module, kind).data[..., :-1].contiguous()))
    return model


def told_otherwise(name: str, **fields: Any) -> Any:
    """Return a model whose config was changed after it was made."""
    model = tiny(name)
    for field, value in fields.items():
        setattr(model.config, field, value)
    return model


def gpt_neox() -> Any:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(vocab_size=61, **shape)).eval()


LAYER = rf"^model\.layers\.{MIDDLE}\.self_attn: "
LONGROPE = rope("longrope", short_factor=[1.0, 2.0], long_factor=[2.0, 4.0], original_max_position_embeddings=16)
FUSED = {
    "gpt2": ("transformer.h.1.attn.c_attn.weight", r"its c_attn\.weight is \[24, 71\]; its config asks for"),
    "bloom": ("transformer.h.1.self_attention.query_key_value.bias", r"query_key_value\.bias is \[71\]"),
    "falcon-new": ("transformer.h.0.self_attention.query_key_value.bias", r"query_key_value\.bias is \[39\]"),
    "deepseek-v3": ("model.layers.1.self_attn.kv_b_proj.weight", r"kv_b_proj\.weight is \[33, 9\]"),
}

Make = Callable[[], Any]
TENSORS: Mapping[Callable[[Any], None], str] = {
    without: "it lacks k_proj.weight, which its config asks for",
    misshapen: r"its k_proj.weight is \[20, 24\]; its config asks for \[12, 24\]",
    with_a_bias: "it has k_proj.bias, which its config does not ask for",
    with_adapter: "it has q_proj.lora_A.weight, which its config does not ask for; merge adapters",
    not_a_number: "its o_proj.weight has values that are not finite; fetch the weights again",
    infinite: "its o_proj.weight has values that are not finite; fetch the weights again",
    not_loaded: "its q_proj.weight has no values, being on the meta device; load the weights first",
    quantised: "its q_proj.weight is torch.int8; load the model without quantisation",
}
MODULES: Mapping[Callable[[Any], None], str] = {
    rescaled: "it multiplies scores by 1, and its config says 0.5",
    patched: "the forward of its own is patched, as offloading does",
    patched_inside: "the forward of its v_proj is patched, as offloading does",
    hooked: "its v_proj has hooks, which would not run; remove them first",
}
OTHERS: Mapping[str, tuple[Make, type[PolyheadError], str]] = {
    "another ε": (
        lambda: llama(of_another_epsilon, "qwen3"),
        UnsupportedError,
        LAYER + r"it has a Qwen3RMSNorm with ε = 0\.1, and its config says 1e-06",
    ),
    "a layer less": (
        shortened,
        UnsupportedError,
        r"the config has 3 layers, and the model's modules llama\.LlamaAttention are numbered \[0, 2\]",
    ),
    "a type not on the list": (
        gpt_neox,
        UnsupportedError,
        rf"model_type='gpt_neox' is not adopted; what is adopted: {', '.join(FAMILIES)}$",
    ),
    "dynamic NTK": (
        lambda: tiny("llama", **rope("dynamic", factor=3.0)),
        UnsupportedError,
        "DynamicNTKScaling depends on the length",
    ),
    "LongRoPE": (
        lambda: tiny("llama", **LONGROPE, factor=4.0),
        UnsupportedError,
        "LongRopeScaling depends on the length",
    ),
    "no causality": (
        lambda: tiny("llama", is_causal=False),
        UnsupportedError,
        r"is_causal of config\.json stands in the way",
    ),
    "both directions": (
        lambda: tiny("gemma2", use_bidirectional_attention=True),
        UnsupportedError,
        r"use_bidirectional_attention of config\.json stands in the way",
    ),
    "rounded biases": (
        lambda: tiny("falcon-mqa", alibi=True),
        UnsupportedError,
        r"alibi of its config stands in the way.*bfloat16",
    ),
    "cross-attention": (
        lambda: tiny("gpt2", add_cross_attention=True),
        UnsupportedError,
        r"add_cross_attention of config\.json stands in the way",
    ),
    "no attention": (
        lambda: told_otherwise("gemma2", attn_logit_softcapping=-1.0),
        CheckpointError,
        r"config\.json describes no attention that is defined: softcap=-1",
    ),
}


def cases() -> list[Any]:
    """Return every refusal of `adopt`: how the model is made, the error and its message."""
    of_modules = {**dict.fromkeys(TENSORS, CheckpointError), **dict.fromkeys(MODULES, UnsupportedError)}
    messages = {**TENSORS, **MODULES}
    found = [
        pytest.param(functools.partial(llama, change), error, LAYER + messages[change], id=change.__name__)
        for change, error in of_modules.items()
    ]
    for name, (tensor, match) in FUSED.items():
        make = functools.partial(with_less, name, tensor)
        found.append(pytest.param(make, CheckpointError, match, id=f"fused {name}"))
    return found + [pytest.param(*case, id=name) for name, case in OTHERS.items()]


@pytest.mark.parametrize(("make", "error", "match"), cases())
def test_a_model_that_is_not_adopted_is_as_it_was(make: Make, error: type[PolyheadError], match: str) -> None:
    model = make()
    before = snapshot(model)
    with pytest.raises(error, match=match):
        adopt(model)
    assert snapshot(model) == before


# --- what comes at the wrong time, or breaks half-way


def test_adopting_twice_is_refused_and_leaves_the_model_adopted() -> None:
    model = adopt(llama())
    before = snapshot(model)
    for again in (model, model.model):
        with pytest.raises(UnsupportedError, match=r"adopted already; release\(model\) first"):
            adopt(again)
    assert snapshot(model) == before


def test_releasing_what_is_not_adopted_is_refused() -> None:
    model = llama()
    before = snapshot(model)
    for model_or_part in (model, model.model):
        with pytest.raises(UnsupportedError, match=r"this model is not adopted.*adopt\(model\) first"):
            release(model_or_part)
    assert snapshot(model) == before


@pytest.mark.parametrize("function", [adopt, release])
def test_what_is_no_model_of_transformers_is_refused(function: Callable[[Any], Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"a Linear is no model of transformers; give what from_pretrained"):
        function(nn.Linear(2, 2))


class Broken(Exception):  # noqa: N818 - an interrupt is no error
    """What nothing here raises by itself."""


@contextlib.contextmanager
def third_call_breaks(owner: Any, name: str) -> Iterator[None]:
    """Let the third call of a function fail, as memory may run out at any."""
    function, calls = getattr(owner, name), []

    def broken(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == 3:
            raise Broken
        return function(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, broken)
        yield
    assert len(calls) == 3, f"{name} was called {len(calls)} times, so this shows nothing"


@pytest.mark.parametrize("step", ["stand_in", "set_submodule"])
@pytest.mark.parametrize("name", ["llama", "deepseek-v2"])
def test_adopting_that_breaks_at_the_third_layer_leaves_nothing_half_done(name: str, step: str) -> None:
    model = tiny(name, num_hidden_layers=3)
    before = snapshot(model)
    with third_call_breaks(families if step == "stand_in" else nn.Module, step), pytest.raises(Broken, match=r"^$"):
        adopt(model)
    assert snapshot(model) == before
    release(adopt(model))
    assert snapshot(model) == before


@pytest.mark.parametrize("step", ["write_back", "set_submodule"])
def test_releasing_that_breaks_at_the_third_layer_leaves_the_model_adopted(step: str) -> None:
    model = tiny("bloom", n_layer=3)
    first = snapshot(model)
    adopt(model)
    before = snapshot(model)
    with (
        third_call_breaks(families.Adopted if step == "write_back" else nn.Module, step),
        pytest.raises(Broken, match=r"^$"),
    ):
        release(model)
    assert snapshot(model) == before
    assert snapshot(release(model)) == first
