"""Masks without elements: they say what transformers' own masks say, and nobody computes with them unseen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import polyhead as ph
from polyhead.errors import UnsupportedError

masking = pytest.importorskip("transformers.masking_utils", reason="the mask functions are transformers'")

from polyhead.hf import mask_functions  # noqa: E402
from polyhead.hf.masks import Allowed, Mask, lazy_mask  # noqa: E402
from tests.hf.test_mask_functions import CAUSAL, FULL, POSITIONS, SEGMENTS  # noqa: E402

BATCH = 2
FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "causal": lambda padding: CAUSAL,
    "full": lambda padding: FULL,
    "window": lambda padding: masking.sliding_window_causal_mask_function(4),
    "two-sided window": lambda padding: masking.sliding_window_bidirectional_mask_function(2),
    "chunks": lambda padding: masking.chunked_causal_mask_function(4, padding),
}
SIZES: dict[str, dict[str, int]] = {
    "square": {"q_length": 9, "kv_length": 9},
    "short": {"q_length": 2, "kv_length": 2},
    "decoding": {"q_length": 1, "kv_length": 10, "q_offset": 9},
    "several new": {"q_length": 3, "kv_length": 10, "q_offset": 7},
    "a window's keys": {"q_length": 3, "kv_length": 6, "q_offset": 11, "kv_offset": 8},
    "one of a window": {"q_length": 1, "kv_length": 4, "q_offset": 13, "kv_offset": 10},
    "static, first": {"q_length": 5, "kv_length": 16},
    "static, later": {"q_length": 2, "kv_length": 16, "q_offset": 6},
    "static, one": {"q_length": 1, "kv_length": 16, "q_offset": 6},
}


def asked(sizes: str, function: str, *, padded: bool) -> dict[str, Any]:
    """Return what transformers asks of what makes a mask."""
    size = SIZES[sizes]
    tokens = size.get("q_offset", 0) + size["q_length"]
    left = torch.tensor([0, 3]) if padded else torch.zeros(BATCH, dtype=torch.int64)
    mask = torch.arange(tokens) >= left[:, None] if padded else None
    return {**size, "batch_size": BATCH, "mask_function": FUNCTIONS[function](left), "attention_mask": mask}


def pairs(allowed: Allowed, kv_length: int, pattern: ph.Band | Any = None) -> Tensor:
    """Return which pairs may meet, ``[batch, 1, q_len, kv_len]``."""
    pattern = allowed.pattern if pattern is None else pattern
    meet = pattern.allowed(allowed.query_positions, allowed.key_positions, kv_len=kv_length)
    meet = (meet if meet.dim() == 3 else meet[None]).expand(BATCH, -1, -1)
    meet = meet & (torch.arange(kv_length) < allowed.seen)
    if allowed.segments is not None:
        meet = meet & (allowed.segments[:, :, None] == allowed.segments[:, None, :])
    return (meet if allowed.key_mask is None else meet & allowed.key_mask[:, None])[:, None]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_mask_says_what_the_one_with_elements_does(sizes: str, function: str, padded: bool) -> None:
    given = asked(sizes, function, padded=padded)
    theirs = masking.sdpa_mask(**given, allow_is_causal_skip=False)
    mask = lazy_mask(**given)
    assert mask.shape == theirs.shape
    assert torch.equal(pairs(mask.allowed, given["kv_length"]), theirs)
    # what binds, and positions that are implied, say the same of this text
    assert torch.equal(pairs(mask.allowed, given["kv_length"], mask.allowed.binding), theirs)
    assert torch.equal(pairs(implied(mask.allowed), given["kv_length"]), theirs)


def implied(allowed: Allowed) -> Allowed:
    """Return the same with the positions that `attend` takes without any, where these may be left out."""
    if not allowed.aligned:
        return allowed
    q_len, kv_len = allowed.query_positions.shape[-1], allowed.key_positions.shape[-1]
    return dataclasses.replace(
        allowed,
        query_positions=torch.arange(allowed.seen - q_len, allowed.seen),
        key_positions=torch.arange(kv_len),
        spans=((allowed.seen - q_len, allowed.seen), (0, kv_len)),
    )


@pytest.mark.parametrize("sizes", ["square", "decoding", "several new", "static, first", "static, one"])
def test_positions_of_a_causal_mask_without_padding_are_implied(sizes: str) -> None:
    assert lazy_mask(**asked(sizes, "causal", padded=False)).allowed.aligned


@pytest.mark.parametrize(
    ("sizes", "function", "binding"),
    [
        ("square", "causal", ph.Causal()),
        ("square", "window", ph.SlidingWindow.causal(4)),
        ("short", "window", ph.Causal()),
        ("decoding", "causal", ph.Full()),
        ("one of a window", "window", ph.Full()),
        ("static, one", "causal", ph.Full()),
        ("short", "chunks", ph.Causal()),
        ("square", "chunks", ph.Chunked(size=4) & ph.Causal()),
    ],
)
def test_what_does_not_bind_is_left_out_of_the_pattern(sizes: str, function: str, binding: ph.Band) -> None:
    assert lazy_mask(**asked(sizes, function, padded=False)).allowed.binding == binding


def test_packed_sequences_are_segments_with_positions_of_their_own() -> None:
    function = masking.packed_sequence_compatibility_function(CAUSAL, POSITIONS, SEGMENTS)
    given = {"batch_size": BATCH, "q_length": 9, "kv_length": 9, "mask_function": function}
    allowed = lazy_mask(**given).allowed
    assert not allowed.aligned
    assert torch.equal(allowed.query_positions, POSITIONS)
    assert torch.equal(pairs(allowed, 9), masking.sdpa_mask(**given, allow_is_causal_skip=False))


def test_a_mask_of_no_padding_is_left_out() -> None:
    given = asked("square", "causal", padded=False) | {"attention_mask": torch.ones(BATCH, 9, dtype=torch.bool)}
    assert lazy_mask(**given).allowed.key_mask is None


def test_keys_that_a_static_cache_has_not_filled_need_no_mask() -> None:
    given = asked("static, later", "causal", padded=False)
    given["attention_mask"] = torch.ones(BATCH, 8, dtype=torch.bool)  # shorter than the cache: the rest is padding
    allowed = lazy_mask(**given).allowed
    assert allowed.seen == 8
    assert allowed.key_mask is None


def test_a_static_cache_may_count_on_after_the_mask_is_made() -> None:
    counter = torch.tensor(6)
    given = asked("static, later", "causal", padded=False)
    theirs = masking.sdpa_mask(**given, allow_is_causal_skip=False)
    mask = lazy_mask(**given | {"q_offset": counter})
    counter.add_(2)  # as its layers do when they store the new tokens, before attention looks at the mask
    assert torch.equal(pairs(mask.allowed, 16), theirs)


def test_a_window_of_no_token_shows_no_key() -> None:
    given = asked("square", "causal", padded=False) | {"mask_function": masking.sliding_window_causal_mask_function(0)}
    assert not pairs(lazy_mask(**given).allowed, 9).any()


class Largest(TorchDispatchMode):
    """Notes how many elements the largest new tensor has, of those that have any."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor) and not isinstance(tensor, Mask):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return output


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_tensor_of_all_pairs_is_made(function: str) -> None:
    tokens = 4096
    mask = torch.ones(BATCH, tokens, dtype=torch.bool)
    mask[1, :7] = False
    left = torch.tensor([0, 7])
    given = {"batch_size": BATCH, "q_length": tokens, "kv_length": tokens, "attention_mask": mask}
    with Largest() as largest:
        made = lazy_mask(**given, mask_function=FUNCTIONS[function](left))
    assert made.shape == (BATCH, 1, tokens, tokens)
    assert largest.elements <= 3 * BATCH * tokens  # the rows that are compared


def test_the_look_for_large_tensors_finds_one() -> None:
    with Largest() as largest:
        masking.sdpa_mask(BATCH, 64, 64, allow_is_causal_skip=False)
    assert largest.elements >= 64 * 64


# --- what models do with a mask

SLICES: dict[str, Any] = {
    "its own keys": (slice(None), slice(None), slice(None), slice(0, 9)),
    "fewer keys": (slice(None), slice(None), slice(None), slice(0, 6)),
    "later keys": (slice(None), slice(None), slice(None), slice(2, 9)),
    "last queries": (slice(None), slice(None), slice(-2, None)),
    "first queries": (slice(None), slice(None), slice(0, 4)),
    "no queries": (slice(None), slice(None), slice(4, 4)),
    "a sequence": (slice(1, 2),),
}


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("cut", SLICES)
def test_a_slice_says_what_the_slice_of_the_one_with_elements_does(cut: str, function: str, padded: bool) -> None:
    given = asked("square", function, padded=padded)
    theirs = masking.sdpa_mask(**given, allow_is_causal_skip=False)[SLICES[cut]]
    mask = lazy_mask(**given)[SLICES[cut]]
    assert isinstance(mask, Mask)
    assert mask.shape == theirs.shape
    ours = pairs(mask.allowed, mask.shape[3])[: len(theirs)]
    assert torch.equal(ours, theirs)
    assert torch.equal(pairs(implied(mask.allowed), mask.shape[3])[: len(theirs)], theirs)


@pytest.mark.parametrize(
    "use",
    [lambda m: m.contiguous(), lambda m: m.detach(), lambda m: m.clone(), lambda m: m.to("cpu"), lambda m: m.bool()],
    ids=["contiguous", "detach", "clone", "to", "bool"],
)
def test_a_mask_is_handed_on_as_a_mask_is(use: Callable[[Mask], Any]) -> None:
    mask = lazy_mask(**asked("square", "window", padded=True))
    handed = use(mask)
    assert isinstance(handed, Mask)
    assert (handed.shape, handed.dtype, handed.ndim, handed.dim()) == (mask.shape, torch.bool, 4, 4)
    assert torch.equal(pairs(handed.allowed, 9), pairs(mask.allowed, 9))


def test_a_mask_takes_its_tensors_to_another_device() -> None:
    moved = lazy_mask(**asked("square", "window", padded=True)).to("meta")
    assert isinstance(moved, Mask)
    assert moved.allowed.key_mask is not None
    assert {moved.device.type, moved.allowed.key_mask.device.type, moved.allowed.key_positions.device.type} == {"meta"}


def test_a_mask_prints_what_it_says() -> None:
    assert repr(lazy_mask(**asked("square", "causal", padded=False))) == "Mask(Causal(), shape=[2, 1, 9, 9])"


SCORES = torch.zeros(BATCH, 3, 9, 9)


@pytest.mark.parametrize(
    "use",
    [
        lambda m: SCORES + m,
        lambda m: m + SCORES,
        lambda m: SCORES.masked_fill(m, -1.0),
        lambda m: torch.where(m, SCORES, -1.0),
        lambda m: m & (SCORES > 0),
        lambda m: ~m,
        lambda m: m[:, 0],
        lambda m: m.any(),
        lambda m: m.to(torch.float32),
        lambda m: torch.nn.functional.pad(m, (0, 1)),
        lambda m: torch.cat([m, m], dim=-1),
        lambda m: m.expand(-1, 3, -1, -1),
        lambda m: torch.nn.functional.scaled_dot_product_attention(*(SCORES,) * 3, attn_mask=m),
    ],
    ids=["+", "r+", "fill", "where", "&", "~", "index", "any", "float", "pad", "cat", "expand", "sdpa"],
)
def test_a_model_that_computes_with_a_mask_is_told(use: Callable[[Mask], Any]) -> None:
    mask = lazy_mask(**asked("square", "causal", padded=False))
    with pytest.raises(UnsupportedError, match=r"adopt\(model\)"):
        use(mask)


def test_a_mask_is_the_same_for_all_heads() -> None:
    with pytest.raises(UnsupportedError, match="dim 1 of its mask"):
        lazy_mask(**asked("square", "causal", padded=False))[:, 1:]


def test_a_mask_is_sliced_without_gaps() -> None:
    with pytest.raises(UnsupportedError, match="step 2"):
        lazy_mask(**asked("square", "causal", padded=False))[:, :, ::2]


def test_a_mask_over_packed_sequences_is_not_cut() -> None:
    function = masking.packed_sequence_compatibility_function(CAUSAL, POSITIONS, SEGMENTS)
    mask = lazy_mask(batch_size=BATCH, q_length=9, kv_length=9, mask_function=function)
    assert mask[:1].shape[0] == 1
    with pytest.raises(UnsupportedError, match="over packed sequences cannot be cut"):
        mask[:, :, 1:]


def test_a_mask_function_that_is_misread_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mask_functions._READERS, "causal_mask_function", lambda closure: mask_functions.Reading())
    with pytest.raises(UnsupportedError, match=r"was read as Full\(\), and its own rows differ"):
        lazy_mask(**asked("square", "causal", padded=False))


def test_a_question_that_is_not_known_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="with flavour"):
        lazy_mask(**asked("square", "causal", padded=False), flavour=1)


def test_padding_is_given_by_sequence() -> None:
    given = asked("square", "causal", padded=False) | {"attention_mask": torch.ones(BATCH, 9, 9)}
    with pytest.raises(UnsupportedError, match=r"give \[batch, tokens\]"):
        lazy_mask(**given)
