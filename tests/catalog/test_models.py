"""Published models: looked up by name, and counted against transformers' modules and against what is published."""

from __future__ import annotations

import json

import pytest

import polyhead as ph
from polyhead.catalog.published import PUBLISHED, Published
from polyhead.errors import UnknownNameError
from polyhead.spec import Causal, Latent, SlidingWindow, Softmax
from tests.catalog.configs.theirs import counted

NAMES = [
    *("llama-3-8b", "llama-3-70b", "llama-3.1-8b", "mistral-7b-v0.1", "mistral-7b-v0.3", "mixtral-8x7b"),
    *("qwen2-7b", "qwen2-72b", "deepseek-v2", "deepseek-v2-lite", "deepseek-v3"),
    *("gemma-2-2b", "gemma-2-9b", "gemma-2-27b", "t5-base", "bigbird-base", "gpt2", "gpt-oss-120b"),
    *("falcon-7b", "bloom-7b1", "diffllama-1b", "smollm2-135m"),
]


def test_names() -> None:
    assert [model.name for model in ph.models()] == NAMES
    assert len({model.title for model in ph.models()}) == len(NAMES)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_a_model_is_read_from_its_fields(entry: Published) -> None:
    model = ph.model(entry.name)
    assert model.config == json.loads(entry.config)
    assert model.sources.items() >= entry.sources.items()
    assert entry.source in model.sources.values()
    assert {name for name in model.sources if not hasattr(model, name)} == set()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_module(name: str) -> None:
    model = ph.model(name)
    assert (model.parameters, model.active_parameters) == counted(model.config)


# from papers and model cards, in billions and to the digits given there: all parameters, and those of one token
STATED = {
    "mixtral-8x7b": (46.7, 12.9),  # mistral.ai, on the model's release
    "deepseek-v2": (236, 21),  # arXiv 2405.04434
    "deepseek-v2-lite": (15.7, None),  # arXiv 2405.04434, appendix B; its 2.4 active leave out the embeddings
    "deepseek-v3": (671, None),  # arXiv 2412.19437; its 37 active leave out a table
    "gpt-oss-120b": (116.83, None),  # arXiv 2508.10925, whose active parameters leave out the embeddings
    "gpt2": (0.124, None),
    "bloom-7b1": (7.069016064, None),  # the model card
    "gemma-2-9b": (9.24, None),
}


@pytest.mark.parametrize("name", STATED)
def test_parameters_are_what_is_stated(name: str) -> None:
    model = ph.model(name)
    for counted_here, stated in zip((model.parameters, model.active_parameters), STATED[name], strict=True):
        if stated is not None:
            digits = len(str(stated).partition(".")[2])
            assert round(counted_here / 1e9, digits) == stated


def test_windows() -> None:
    def patterns(name: str) -> list[object]:
        return [layer.attention.pattern for layer in ph.model(name).layers]

    assert set(patterns("mistral-7b-v0.1")) == {SlidingWindow.causal(4096)}
    assert set(patterns("mistral-7b-v0.3")) == {Causal()}
    assert patterns("gemma-2-9b") == [SlidingWindow.causal(4096), Causal()] * 21
    assert patterns("gpt-oss-120b") == [SlidingWindow.causal(128), Causal()] * 18


def test_heads() -> None:
    def heads(name: str) -> tuple[int, int]:
        spec = ph.model(name).layers[0].attention
        return spec.num_heads, spec.num_kv_heads

    assert heads("llama-3-8b") == (32, 8)
    assert heads("falcon-7b") == (71, 1)  # though its file says num_kv_heads: 71
    assert heads("gpt2") == (12, 12)
    storage = ph.model("deepseek-v2").layers[0].attention.storage
    assert isinstance(storage, Latent)
    assert storage.kv_lora_rank + storage.qk_rope_head_dim == 576


def test_weightings() -> None:
    assert ph.model("gemma-2-9b").layers[0].attention.weighting == Softmax(softcap=50.0)
    assert ph.model("gemma-2-27b").layers[0].attention.weighting == Softmax(scale=1 / 12, softcap=50.0)
    assert ph.model("gpt-oss-120b").layers[0].attention.weighting == Softmax(sink=True)


@pytest.mark.parametrize("name", ["LLAMA-3-8B", " llama-3-8b "])
def test_names_in_any_case(name: str) -> None:
    assert ph.model(name) == ph.model("llama-3-8b")


def test_a_name_that_is_none() -> None:
    with pytest.raises(UnknownNameError, match=r"no model is called 'llama-3-8'; did you mean llama-3-8b or llama-3"):
        ph.model("llama-3-8")
    with pytest.raises(UnknownNameError, match=r"no model is called 'zzz'; use one of llama-3-8b, llama-3-70b, "):
        ph.model("zzz")
