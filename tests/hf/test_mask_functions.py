"""transformers' mask functions, read as patterns, and what is refused because no pattern says it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import polyhead as ph
from polyhead.errors import UnsupportedError

masking = pytest.importorskip("transformers.masking_utils", reason="the mask functions are transformers'")

from polyhead.hf import mask_functions  # noqa: E402
from polyhead.hf.mask_functions import Reading, check, read  # noqa: E402

BATCH, TOKENS = 2, 9
LEFT_PADDING = torch.tensor([0, 2])
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * TOKENS])
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1], list(range(TOKENS))])
PADDING = torch.arange(TOKENS) >= LEFT_PADDING[:, None]
NO_BLOCKS = torch.full((BATCH, TOKENS), -1)

CAUSAL, FULL = masking.causal_mask_function, masking.bidirectional_mask_function
READ: dict[str, tuple[Any, ph.Band | Any]] = {
    "causal": (CAUSAL, ph.Causal()),
    "bidirectional": (FULL, ph.Full()),
    "window": (masking.sliding_window_overlay(3), ph.SlidingWindow(left=2)),
    "causal window": (masking.sliding_window_causal_mask_function(3), ph.SlidingWindow.causal(3)),
    "two-sided window": (masking.sliding_window_bidirectional_mask_function(3), ph.SlidingWindow.symmetric(3)),
    "chunks": (masking.chunked_causal_mask_function(4, LEFT_PADDING), ph.Chunked(size=4) & ph.Causal()),
    "segments": (masking.packed_sequence_mask_function(SEGMENTS), ph.Full()),
    "packed": (masking.packed_sequence_compatibility_function(CAUSAL, POSITIONS, SEGMENTS), ph.Causal()),
    "packed window": (
        masking.packed_sequence_compatibility_function(
            masking.sliding_window_causal_mask_function(2), POSITIONS, SEGMENTS
        ),
        ph.SlidingWindow.causal(2),
    ),
    "packed chunks": (
        masking.packed_sequence_compatibility_function(
            masking.chunked_causal_mask_function(2, torch.zeros(BATCH, dtype=torch.int64)), POSITIONS, SEGMENTS
        ),
        ph.Chunked(size=2) & ph.Causal(),
    ),
    "padding": (masking.and_masks(CAUSAL, masking.padding_mask_function(PADDING)), ph.Causal()),
    "padding of numbers": (masking.and_masks(CAUSAL, masking.padding_mask_function(PADDING.long())), ph.Causal()),
    "either": (masking.or_masks(CAUSAL, masking.sliding_window_bidirectional_overlay(2)), ph.SlidingWindow(right=2)),
    "no blocks": (masking.or_masks(CAUSAL, masking.blockwise_overlay(NO_BLOCKS)), ph.Causal()),
}


def pairs(function: Callable[..., Any]) -> torch.Tensor:
    """Return what a mask function says of every pair, ``[batch, tokens, tokens]``."""
    index = torch.arange(TOKENS)
    answer = function(torch.arange(BATCH)[:, None, None, None], torch.zeros(1), index[:, None], index)
    return answer.expand(BATCH, 1, TOKENS, TOKENS)[:, 0].bool()


@pytest.mark.parametrize("name", READ)
def test_a_mask_function_is_read_as_its_pattern(name: str) -> None:
    function, pattern = READ[name]
    reading = read(function)
    assert reading is not None
    assert reading.pattern == pattern


@pytest.mark.parametrize("name", READ)
def test_a_reading_allows_the_pairs_that_the_function_does(name: str) -> None:
    function, _ = READ[name]
    reading, index = read(function), torch.arange(TOKENS)
    assert reading is not None
    assert torch.equal(reading.allowed(index, index).expand(BATCH, -1, -1), pairs(function))


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("gemma3.modeling_gemma3", lambda m: m._bidirectional_window_overlay(3)),
        ("gemma4.modeling_gemma4", lambda m: m.sliding_window_mask_function((4, 2))),
        ("gemma4.modeling_gemma4", lambda m: m.sliding_window_mask_function((4, 0))),
        ("t5gemma2.modeling_t5gemma2", lambda m: m.sliding_window_mask_function(5, is_causal=False)),
        ("t5gemma2.modeling_t5gemma2", lambda m: m.sliding_window_mask_function(5)),
    ],
    ids=["both sides", "sides", "one side", "halves", "causal"],
)
def test_windows_that_single_models_define_are_read(module: str, call: Callable[[Any], Any]) -> None:
    function = call(pytest.importorskip(f"transformers.models.{module}"))
    reading, index = read(function), torch.arange(TOKENS)
    assert reading is not None
    assert isinstance(reading.pattern, ph.Band)
    assert torch.equal(reading.allowed(index, index).expand(BATCH, -1, -1), pairs(function))


@pytest.mark.parametrize(
    "function",
    [
        masking.sliding_window_causal_mask_function(0),
        masking.or_masks(masking.sliding_window_overlay(0), masking.blockwise_overlay(NO_BLOCKS)),
        masking.packed_sequence_compatibility_function(masking.sliding_window_overlay(0), POSITIONS, SEGMENTS),
    ],
    ids=["window", "neither", "packed"],
)
def test_a_window_of_no_token_allows_no_pair(function: Callable[..., Any]) -> None:
    assert read(function) is None


def my_mask(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return key <= query


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (my_mask, "test_mask_functions:my_mask is not read"),
        (masking.and_masks(CAUSAL, my_mask), "my_mask is not read"),
        (masking.or_masks(CAUSAL, lambda *indices: True), "<lambda> is not read"),
        (masking.add_offsets_to_mask_function(CAUSAL, 1, 0), "add_offsets_to_mask_function"),
        (masking.or_masks(CAUSAL, masking.blockwise_overlay(NO_BLOCKS + 1)), "blockwise_overlay lets the tokens"),
        (masking.or_masks(CAUSAL, masking.packed_sequence_mask_function(SEGMENTS)), "depend on more than positions"),
        (
            masking.and_masks(*(masking.packed_sequence_mask_function(SEGMENTS.clone()) for _ in range(2))),
            "two mask functions with segments of their own",
        ),
        (
            masking.and_masks(CAUSAL, masking.remap_positions_for_packed_sequence(CAUSAL, POSITIONS)),
            "remapped positions with one on indices",
        ),
        (
            masking.remap_positions_for_packed_sequence(masking.padding_mask_function(PADDING), POSITIONS),
            "tensors of its own",
        ),
    ],
    ids=["own", "own and", "own or", "offsets", "blocks", "or segments", "two segments", "two positions", "remapped"],
)
def test_what_no_pattern_says_is_refused_by_name(function: Callable[..., Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        read(function)


def test_a_name_alone_makes_no_mask_function_of_transformers() -> None:
    def causal_mask_function(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return key >= query

    causal_mask_function.__qualname__ = "causal_mask_function"
    with pytest.raises(UnsupportedError, match="is not read"):
        read(causal_mask_function)


def test_a_mask_function_that_closes_over_other_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "sliding_window_overlay.<locals>.inner_mask"
    monkeypatch.setitem(mask_functions._READERS, name, lambda closure: closure["width"])
    with pytest.raises(UnsupportedError, match=r"by what it calls 'width', .* closes over \['sliding_window'\]"):
        read(masking.sliding_window_overlay(3))


@pytest.mark.parametrize("pattern", [ph.SlidingWindow.causal(3), ph.SlidingWindow.causal(5), ph.Causal()])
def test_rows_are_compared_with_the_function_itself(pattern: ph.Band) -> None:
    function, index = masking.sliding_window_causal_mask_function(4), torch.arange(TOKENS)
    with pytest.raises(UnsupportedError, match="its own rows differ"):
        check(function, Reading(pattern=pattern), batch=BATCH, queries=index, keys=index)
    check(function, Reading(pattern=ph.SlidingWindow.causal(4)), batch=BATCH, queries=index, keys=index)


def test_without_a_query_there_is_no_row_to_compare() -> None:
    index = torch.arange(TOKENS)
    check(CAUSAL, Reading(pattern=ph.Causal()), batch=BATCH, queries=index[:0], keys=index)
