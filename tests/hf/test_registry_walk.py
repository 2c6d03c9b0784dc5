"""transformers' decoders, built small by scripts/families.py: the same with our attention as with its own."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", reason="the models are transformers'")

from polyhead.hf import interface, register
from scripts.families import (
    DECODERS,
    DIFFERENT,
    ITSELF,
    NOT_BUILT,
    PAGE,
    REFUSED,
    SAME,
    Outcome,
    examine,
    page,
    shortened,
)

RUN = (
    *("llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_oss", "phi3"),  # windows, caps, sinks
    *("llama4_text", "deepseek_v3", "qwen3_next", "bert"),  # chunks, two widths, layers without attention, biases
)
STOPPED = {
    "xlnet": (ITSELF, "XLNetRelativeAttention"),
    "gptj": (ITSELF, "transformers makes no module for another attention"),
    "doge": (REFUSED, "computes with its attention mask"),
    "inkling_text": (REFUSED, "position_bias"),
    "mamba2": (NOT_BUILT, "Inconsistent configuration"),
}


@pytest.mark.parametrize("family", RUN)
def test_a_family_is_the_same_with_our_attention(family: str) -> None:
    assert examine(family) == Outcome(family=family, result=SAME)


@pytest.mark.parametrize("family", STOPPED)
def test_a_family_that_cannot_be_the_same_says_why(family: str) -> None:
    result, why = STOPPED[family]
    outcome = examine(family)
    assert outcome.result == result
    assert why in outcome.reason


def without(*names: str) -> Any:
    """Return our attention function, deaf to some of its arguments."""
    function = interface.attention_function

    def deaf(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
        if "attention_mask" in names:
            attention_mask = None
        return function(module, query, key, value, attention_mask, **{k: x for k, x in given.items() if k not in names})

    return deaf


@pytest.mark.parametrize(
    ("family", "lost"),
    [
        ("mistral", ("attention_mask", "sliding_window")),
        ("gemma2", ("softcap",)),
        ("gpt_oss", ("s_aux",)),
        ("gemma3_text", ("scaling",)),
    ],
)
def test_a_walk_finds_what_is_lost(family: str, lost: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "attention_function", without(*lost))
    try:
        outcome = examine(family)
    finally:
        monkeypatch.undo()
        register()
    assert outcome.result == DIFFERENT
    assert "of the largest apart" in outcome.reason


@pytest.mark.slow
def test_the_page_of_families_is_what_comes_out() -> None:
    outcomes = [examine(family) for family in DECODERS]
    results = [outcome.result for outcome in outcomes]
    assert DIFFERENT not in results
    assert results.count(SAME) >= 25
    assert PAGE.read_text(encoding="utf-8") == page(outcomes), "type: python scripts/families.py"


def test_a_reason_fits_into_a_table() -> None:
    assert shortened("one | two;\n use eager; use sdpa") == r"one \| two"
    assert shortened("word " * 100).endswith(" …")
    assert len(shortened("word " * 100)) <= 162
