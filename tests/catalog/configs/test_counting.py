"""Parameters as they are counted against those that transformers' modules have."""

from __future__ import annotations

from typing import Any

import pytest

from polyhead.catalog.configs import describe
from tests.catalog.configs.theirs import CONFIGS, counted


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_module(name: str) -> None:
    read = describe(CONFIGS[name], name="n", title="t", source="s")
    assert (read.parameters, read.active_parameters) == counted(CONFIGS[name])


TYING: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": True}),
    ("gemma2", {"tie_word_embeddings": False}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("falcon, one key", {"tie_word_embeddings": False}),
    ("falcon, one key", {"ffn_hidden_size": 48}),
    ("bloom", {"tie_word_embeddings": False}),
    ("t5", {"num_decoder_layers": None}),
]


@pytest.mark.parametrize(("name", "fields"), TYING)
def test_parameters_follow_the_fields(name: str, fields: dict[str, Any]) -> None:
    config = CONFIGS[name] | fields
    read = describe(config, name="n", title="t", source="s")
    assert (read.parameters, read.active_parameters) == counted(config)
    assert counted(config) != counted(CONFIGS[name])


@pytest.mark.parametrize("name", ["mistral", "mixtral", "deepseek_v3"])
def test_parameters_follow_no_field_that_the_code_passes_over(name: str) -> None:
    config = CONFIGS[name] | {"mlp_bias": True}
    read = describe(config, name="n", title="t", source="s")
    assert read.parameters == counted(config)[0] == counted(CONFIGS[name])[0]
