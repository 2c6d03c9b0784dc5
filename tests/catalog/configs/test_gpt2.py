"""GPT-2: its scales and biases."""

from __future__ import annotations

from polyhead.catalog.configs import layer_specs
from polyhead.spec import Softmax
from tests.catalog.configs.files import GPT2, only


def test_gpt2_scales() -> None:
    def scales(**fields: bool) -> list[float]:
        return [layer.attention.scale for layer in layer_specs(GPT2 | fields)]

    assert scales() == [0.25, 0.25, 0.25]
    assert scales(scale_attn_weights=False) == [1.0, 1.0, 1.0]
    assert scales(scale_attn_by_inverse_layer_idx=True) == [0.25, 0.125, 0.25 / 3]
    assert scales(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True) == [1.0, 0.5, 1 / 3]
    assert only(GPT2).attention.weighting == Softmax()  # the usual scale is not written out


def test_biases() -> None:
    assert (only(GPT2).qkv_bias, only(GPT2).out_bias) == (True, True)
