"""DeepSeek-V2 and V3: the latent's widths, the pairs that turn, and YaRN's mscale in the scale."""

from __future__ import annotations

import math
from typing import Any

import pytest

from polyhead.catalog.configs import layer_specs
from polyhead.errors import UnsupportedError
from polyhead.spec import Latent, LayerSpec, Softmax
from tests.catalog.configs.files import DEEPSEEK, only, rotary, without

V2 = DEEPSEEK | {"model_type": "deepseek_v2"}
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 0.707}


@pytest.mark.parametrize("config", [V2, DEEPSEEK], ids=["deepseek_v2", "deepseek_v3"])
def test_widths(config: dict[str, Any]) -> None:
    storage = Latent(
        num_heads=4, kv_lora_rank=16, q_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=4, v_head_dim=10
    )
    layer = only(config)
    assert layer.attention.storage == storage
    assert (layer.latent_norm, layer.norm_eps) == (True, 1e-6)
    assert only(config | {"rms_norm_eps": 1e-3}) == layer  # the latents' norms have an ε of their own
    assert only(config | {"q_lora_rank": None}).attention.storage.q_lora_rank is None  # type: ignore[union-attr]


def biases(layer: LayerSpec) -> set[str]:
    return {name.partition(".")[0] for name in layer.parameter_shapes() if name.endswith(".bias")}


def test_which_widths_turn_together() -> None:
    assert rotary(V2).pairs == rotary(DEEPSEEK).pairs == "interleaved"
    assert rotary(DEEPSEEK | {"rope_interleave": False}).pairs == "half"
    assert rotary(V2 | {"rope_interleave": False}).pairs == "interleaved"  # which V2's code does not look at


def test_yarn_raises_the_scale_by_mscale_squared() -> None:
    raised = (0.1 * 0.707 * math.log(40) + 1) ** 2 / 4
    assert only(V2 | {"rope_scaling": YARN}).attention.scale == pytest.approx(raised, rel=1e-15)
    assert only(V2).attention.weighting == Softmax()
    assert only(V2 | {"rope_scaling": without(YARN, "mscale_all_dim")}).attention.weighting == Softmax()
    assert only(V2 | {"rope_scaling": YARN | {"type": "default"}}).attention.weighting == Softmax()


def test_what_goes_into_a_latent_has_the_bias_and_so_has_the_output() -> None:
    biased = DEEPSEEK | {"attention_bias": True}
    assert biases(only(biased)) == {"q_a_proj", "kv_a_proj", "o_proj"}
    assert biases(only(biased | {"q_lora_rank": None})) == {"kv_a_proj", "o_proj"}
    assert biases(only(DEEPSEEK)) == set()


def test_a_latent_has_keys_for_every_head() -> None:
    assert only(DEEPSEEK | {"num_key_value_heads": 4}) == only(DEEPSEEK)
    with pytest.raises(UnsupportedError, match=r"num_key_value_heads .*: a latent is expanded for each of the 4 heads"):
        layer_specs(DEEPSEEK | {"num_key_value_heads": 2})
