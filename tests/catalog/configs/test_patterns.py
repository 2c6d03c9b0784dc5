"""Windows and layer types of a config.json."""

from __future__ import annotations

from typing import Any

import pytest

from polyhead.catalog.configs import layer_specs
from polyhead.errors import CheckpointError, UnsupportedError
from polyhead.spec import Causal, SlidingWindow
from tests.catalog.configs.files import GEMMA2, GPT_OSS, LLAMA, MISTRAL, QWEN2, QWEN3, SLIDING, patterns, without

MIXTRAL = MISTRAL | {"model_type": "mixtral"}
TYPES = FULL, SLIDE = "full_attention", "sliding_attention"


def test_mistral_windows() -> None:
    assert patterns(MISTRAL) == [Causal()] * 2
    assert patterns(MISTRAL | {"sliding_window": 8}) == [SlidingWindow.causal(8)] * 2
    assert patterns(without(MISTRAL, "sliding_window")) == [SlidingWindow.causal(4096)] * 2
    types = {"layer_types": [SLIDE] * 2}
    assert patterns(MISTRAL | types | {"sliding_window": 8}) == [SlidingWindow.causal(8)] * 2


def test_mixtral_windows() -> None:
    assert patterns(MIXTRAL) == [Causal()] * 2
    assert patterns(MIXTRAL | {"sliding_window": 8}) == [SlidingWindow.causal(8)] * 2


@pytest.mark.parametrize("base", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_qwen_windows(base: dict[str, Any]) -> None:
    full, slide = Causal(), SlidingWindow.causal(8)
    assert patterns(base | {"sliding_window": 8, "max_window_layers": 0}) == [full] * 4
    assert patterns(base | SLIDING | {"max_window_layers": 3}) == [full, full, full, slide]
    assert patterns(base | SLIDING | {"max_window_layers": 28}) == [full] * 4
    assert patterns(base | SLIDING | {"sliding_window": None}) == [full] * 4
    assert patterns(base | SLIDING | {"layer_types": [SLIDE, FULL] * 2}) == [slide, full, slide, full]


@pytest.mark.parametrize("base", [GEMMA2, GPT_OSS | {"num_hidden_layers": 3}], ids=["gemma2", "gpt_oss"])
def test_windows_alternate_beginning_with_the_first_layer(base: dict[str, Any]) -> None:
    full, slide = Causal(), SlidingWindow.causal(8)
    assert patterns(base) == [slide, full, slide]
    assert patterns(base | {"layer_types": [FULL, FULL, SLIDE]}) == [full, full, slide]
    assert patterns(base | {"layer_types": [FULL] * 3, "sliding_window": None}) == [full] * 3


IN_THE_WAY = [
    (LLAMA | {"layer_types": [FULL, SLIDE]}, "layer_types .* a llama .* as 'full_attention'"),
    (MISTRAL | {"layer_types": [SLIDE] * 2}, "layer_types .* a mistral .* as 'full_attention'"),
    (QWEN2 | {"layer_types": ["linear_attention"] * 4}, "layer_types .*: 'linear_attention' is not read; what is r"),
    (GEMMA2 | {"layer_types": ["chunked_attention"] * 3}, "layer_types .*: 'chunked_attention' is not read"),
]


@pytest.mark.parametrize(("config", "message"), IN_THE_WAY)
def test_types_that_cannot_be_expressed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        layer_specs(config)


BROKEN = [
    (MISTRAL | {"sliding_window": 0}, "no attention that is defined: sliding_window=0 is not allowed"),
    (QWEN2 | SLIDING | {"layer_types": [FULL]}, "layer_types=.* does not give each of the 4 layers its"),
    (QWEN2 | {"layer_types": [SLIDE] * 4}, "layer_types has 'sliding_attention', .* gives no window"),
    (GEMMA2 | {"sliding_window": None}, "layer_types has 'sliding_attention', .* gives no window"),
]


@pytest.mark.parametrize(("config", "message"), BROKEN)
def test_windows_that_do_not_fit(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        layer_specs(config)
