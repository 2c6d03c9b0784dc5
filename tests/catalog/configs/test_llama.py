"""LLaMA and those built like it: biases, widths, norms, and how scores become weights."""

from __future__ import annotations

import math
from typing import Any

import pytest

from polyhead.catalog.configs import layer_specs
from polyhead.errors import CheckpointError
from polyhead.spec import Differential, Grouped, Softmax
from tests.catalog.configs.files import DIFFLLAMA, GEMMA2, GPT_OSS, LLAMA, MISTRAL, QWEN2, QWEN3, only


@pytest.mark.parametrize(
    ("config", "biases"),
    [
        (LLAMA, (False, False)),
        (LLAMA | {"attention_bias": True}, (True, True)),
        (QWEN3 | {"attention_bias": True}, (True, True)),
        (MISTRAL, (False, False)),
        (QWEN2, (True, False)),
        (MISTRAL | {"model_type": "mixtral"}, (False, False)),
        (GEMMA2 | {"num_hidden_layers": 1}, (False, False)),
        (GPT_OSS | {"num_hidden_layers": 1}, (True, True)),
    ],
)
def test_biases(config: dict[str, Any], biases: tuple[bool, bool]) -> None:
    layer = only(config)
    assert (layer.qkv_bias, layer.out_bias) == biases


def test_null_is_one_kv_head_for_each_query_head() -> None:
    assert only(QWEN2 | {"num_key_value_heads": None}).attention.num_kv_heads == 4


def test_a_stated_width_wins_over_the_derived_one() -> None:
    assert only(LLAMA | {"head_dim": 24}).attention.qk_head_dim == 24
    assert only(LLAMA | {"head_dim": None}).attention.qk_head_dim == 16


def test_qwen3_norms_queries_and_keys() -> None:
    layer = only(QWEN3 | {"rms_norm_eps": 1e-4})
    assert (layer.qk_norm, layer.norm_eps) == (True, 1e-4)
    assert not only(QWEN2).qk_norm


def test_gemma2_scales_by_its_own_scalar_and_caps() -> None:
    def weighting(**fields: Any) -> Any:
        return layer_specs(GEMMA2 | fields)[0].attention.weighting

    assert weighting() == Softmax(scale=0.25, softcap=50.0)
    assert weighting(query_pre_attn_scalar=32) == Softmax(softcap=50.0)  # the usual scale is not written out
    assert weighting(attn_logit_softcapping=None) == Softmax(scale=0.25)


def test_gpt_oss_has_sinks() -> None:
    assert {layer.attention.weighting for layer in layer_specs(GPT_OSS)} == {Softmax(sink=True)}


def test_diffllama_pairs_its_heads() -> None:
    first, second = layer_specs(DIFFLLAMA)
    assert first.attention.storage == Grouped(num_heads=2, num_kv_heads=1, head_dim=16)
    assert first.attention.v_head_dim == 32
    assert first.attention.weighting == Differential(form="diffllama", layer=1, norm_eps=1e-5)
    assert second.attention.weighting.initial_lambda == 0.8 - 0.6 * math.exp(-0.3)  # type: ignore[union-attr]


@pytest.mark.parametrize("fields", [{"num_key_value_heads": 1}, {"num_attention_heads": 7, "num_key_value_heads": 7}])
def test_diffllama_needs_pairs(fields: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match=r"are not whole pairs of maps, as a diffllama has"):
        layer_specs(DIFFLLAMA | fields)
