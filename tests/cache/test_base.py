"""What every cache does alike: tokens in and output out, bytes, lengths, cropping, reordering, copies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.cache import ContextCache, GrowingCache, RollingCache, StateCache
from tests.cache.helpers import Kind, Tokens, assert_same_content, by_kind, content, held, held_bytes, of_kind
from tests.tolerances import assert_close

# --- tokens in, output out


@by_kind
@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 7], [1, 4, 1, 6], [0, 3, 0, 9]], ids=str)
def test_pieces_of_any_length_give_what_the_whole_gives(kind: Kind, pieces: list[int]) -> None:
    tokens = Tokens.draw(kind, dtype=torch.float64)
    cache = tokens.new_cache()
    ends = list(itertools.accumulate(pieces, initial=0))
    outputs = [tokens.decode(cache, *ends[n : n + 2]) for n in range(len(pieces))]
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float64)
    assert cache.lengths == (12, 12)


@by_kind
def test_a_stored_token_is_seen_like_one_that_attended(kind: Kind) -> None:
    tokens = Tokens.draw(kind, dtype=torch.float64)
    cache = tokens.new_cache()
    tokens.append(cache, 0, 4)
    tokens.append(cache, 4, 9)
    if kind.kept is ContextCache:  # what is appended to it is the context, no query
        assert cache.lengths == (0, 0)
        tokens.decode(cache, 0, 9)
    assert cache.lengths == (9, 9)
    assert_close(tokens.decode(cache, 9), tokens.expected()[:, :, 9:], torch.float64)


@of_kind("growing", "rolling", "state")
def test_attending_keeps_what_appending_keeps(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    attended, appended = tokens.new_cache(), tokens.new_cache()
    for start in (0, 5):
        tokens.decode(attended, start, start + 5)
        tokens.append(appended, start, start + 5)
    assert_same_content(content(attended), content(appended))


@by_kind
@pytest.mark.parametrize("padding", [9.0, float("nan"), float("inf")])
def test_sequences_of_unlike_lengths_go_each_their_own_way(kind: Kind, padding: float) -> None:
    """The last tokens of a piece are padding, of which nothing is kept or seen."""
    tokens = Tokens.draw(kind, dtype=torch.float64)
    cache, expected = tokens.new_cache(), tokens.expected()
    at = [0, 0]
    for counts in ([4, 2], [1, 1], [0, 3], [1, 1], [5, 4], [1, 0]):
        piece = tokens.ragged(cache, at, counts, padding=padding)
        output = ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache, lengths=counts)
        for row, count in enumerate(counts):
            assert_close(output[row, :, :count], expected[row, :, at[row] : at[row] + count], torch.float64)
            at[row] += count
        assert cache.lengths == tuple(at)
    assert cache.lengths == (12, 11)


@by_kind
@pytest.mark.parametrize("lengths", [(2, 3), torch.tensor([2, 3]), np.array([2, 3]), range(2, 4)], ids=type)
def test_lengths_may_be_a_list_a_tensor_or_an_array(kind: Kind, lengths: Any) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    tokens.decode(cache, 0, 3, lengths=lengths)
    assert cache.lengths == (2, 3)
    assert cache.length == 3


@by_kind
def test_a_masked_token_keeps_its_position_and_is_not_seen(kind: Kind) -> None:
    mask = np.random.default_rng(0).random((2, 5 if kind.source == "cross" else 12)) < 0.6
    tokens = Tokens.draw(kind, dtype=torch.float64).masked(mask)
    cache = tokens.new_cache()
    outputs = []
    for start, stop in ((0, 4), (4, 5), (5, 12)):
        rows = slice(start, stop) if kind.source == "self" else slice(5 if start else 0, 5)  # a context comes once
        outputs.append(tokens.decode(cache, start, stop, key_mask=torch.tensor(mask[:, rows])))
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float64)


@of_kind("growing", "rolling", "state")
def test_the_first_mask_may_come_late_and_the_next_not_at_all(kind: Kind) -> None:
    mask = np.ones((2, 12), dtype=bool)
    mask[0, 5] = mask[1, 6] = False
    tokens = Tokens.draw(kind, dtype=torch.float64).masked(mask)
    cache = tokens.new_cache()
    pieces = [
        tokens.decode(cache, 0, 5),
        tokens.decode(cache, 5, 7, key_mask=torch.tensor(mask[:, 5:7])),
        *(tokens.decode(cache, n, n + 1) for n in range(7, 12)),
    ]
    assert_close(torch.cat(pieces, dim=2), tokens.expected(), torch.float64)


@of_kind("growing", "rolling first", "rolling latent")
def test_a_mask_is_cropped_with_its_tokens(kind: Kind) -> None:
    tokens = Tokens.draw(kind, dtype=torch.float64)
    cache = tokens.filled(6)
    tokens.append(cache, 6, 7, key_mask=torch.zeros(2, 1, dtype=torch.bool))
    cache.crop(6)
    assert_close(tokens.decode(cache, 6), tokens.expected()[:, :, 6:], torch.float64)


@by_kind
def test_a_mask_goes_with_its_sequence(kind: Kind) -> None:
    mask = np.ones((2, 5 if kind.source == "cross" else 12), dtype=bool)
    mask[0, 3:5] = False
    tokens = Tokens.draw(kind, dtype=torch.float64).masked(mask)
    cache = tokens.new_cache()
    tokens.decode(cache, 0, 5, key_mask=torch.tensor(mask[:, :5]))
    rows = [1, 0, 0]
    cache.reorder(rows)
    beams = tokens.of_sequences(rows).masked(mask[rows])
    assert_close(beams.decode(cache, 5), beams.expected()[:, :, 5:], torch.float64)


@by_kind
def test_no_token_at_all_changes_nothing(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(7)
    before = content(cache)
    assert tokens.decode(cache, 7, 7).shape[2] == 0
    assert_same_content(content(cache), before)
    assert_close(tokens.decode(cache, 7), tokens.expected()[:, :, 7:], torch.float32)


@by_kind
def test_an_empty_batch_is_a_batch(kind: Kind) -> None:
    tokens = Tokens.draw(kind, batch=0)
    cache = tokens.new_cache()
    assert tokens.decode(cache, 0, 3).shape[:3] == (0, 4, 3)
    tokens.append(cache, 3, 4) if kind.source == "self" else None
    for change in (lambda: cache.crop(0), lambda: cache.reorder([]), cache.reset):
        change()
    assert (cache.lengths, cache.length, cache.used_bytes) == ((), 0, 0)
    assert cache.clone().batch == 0


# --- bytes


@by_kind
@pytest.mark.parametrize("longest", [None, 40])
def test_allocated_bytes_are_those_of_all_tensors_that_there_are(kind: Kind, longest: int | None) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache(max_seq_len=longest)
    for start in range(0, 12, 2):
        tokens.decode(cache, start, start + 2)
        assert cache.allocated_bytes == sum(x.numel() * x.element_size() for x in held(cache))
        assert cache.allocated_bytes == held_bytes(cache), "no tensor is a part of a larger one"
        assert cache.used_bytes <= cache.allocated_bytes


@of_kind("growing", "rolling", "context")
def test_a_mask_takes_one_byte_a_token_and_only_once_there_is_one(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(3) if kind.source == "self" else tokens.new_cache()
    unmasked = tokens.filled(6)
    tokens.decode(cache, cache.length, 6, key_mask=torch.ones(2, 3 if kind.source == "self" else 5, dtype=torch.bool))
    assert cache.allocated_bytes == unmasked.allocated_bytes + 2 * cache.slots
    assert cache.used_bytes == unmasked.used_bytes


@by_kind
def test_a_cache_says_its_lengths_and_bytes(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    assert repr(cache) == f"{kind.kept.__name__}(batch 2, length 6, {cache.used_bytes:,} bytes used)"
    tokens.decode(cache, 6, 8, lengths=[2, 1])
    assert repr(cache).startswith(f"{kind.kept.__name__}(batch 2, lengths [8, 7], ")
    if kind.kept is not RollingCache:
        assert "length 0 of 20, " in repr(tokens.new_cache(max_seq_len=20))


# --- max_seq_len


@of_kind("growing", "state", "context")
def test_the_last_token_that_fits_is_taken(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache(max_seq_len=12)
    tokens.decode(cache, 0, 11)
    assert_close(tokens.decode(cache, 11), tokens.expected()[:, :, 11:], torch.float32)
    assert cache.lengths == (12, 12)


@of_kind("rolling")
def test_a_rolling_cache_knows_no_longest_sequence(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache(max_seq_len=4)
    outputs = [tokens.decode(cache, start, start + 4) for start in (0, 4, 8)]
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float32)


# --- crop


def crops() -> Iterator[tuple[str, Callable[[int], Any]]]:
    yield "int", lambda n: n
    yield "list", lambda n: [n, n]
    yield "tuple", lambda n: (n, n)
    yield "tensor", lambda n: torch.tensor([n, n])
    yield "scalar-tensor", torch.tensor
    yield "array", lambda n: np.array([n, n])
    yield "numpy-number", np.int64
    yield "numpy-numbers", lambda n: [np.int32(n), np.int32(n)]


@of_kind("growing", "context")
@pytest.mark.parametrize("given", [c[1] for c in crops()], ids=[c[0] for c in crops()])
def test_a_length_may_come_in_any_integer_form(kind: Kind, given: Callable[[int], Any]) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(9)
    cache.crop(given(5))
    assert cache.lengths == (5, 5)
    assert all(type(length) is int for length in cache.lengths)
    assert_close(tokens.decode(cache, 5), tokens.expected()[:, :, 5:], torch.float32)


@by_kind
def test_a_crop_to_the_present_length_changes_nothing(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(9)
    before = content(cache)
    cache.crop(9)
    assert_same_content(content(cache), before)


@by_kind
def test_a_reset_cache_is_as_new_and_keeps_its_room(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(11)
    allocated = cache.allocated_bytes
    cache.reset()
    assert cache.lengths == (0, 0)
    if kind.kept is ContextCache:
        assert cache.allocated_bytes == 0, "another context may be as long as it likes"
    else:
        assert cache.allocated_bytes == allocated
    if kind.kept is not StateCache:
        assert cache.used_bytes == 0
    other = Tokens.draw(kind, seed=1)
    assert_close(other.decode(cache, 0), other.expected(), torch.float32)


@by_kind
def test_one_sequence_can_be_emptied_beside_another(kind: Kind) -> None:
    tokens = Tokens.draw(kind, dtype=torch.float64)
    cache = tokens.filled(7)
    cache.crop([0, 7])
    piece = tokens.ragged(cache, [0, 7], [5, 5])
    output = ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache)
    expected = tokens.expected()
    assert_close(output[0], expected[0, :, :5], torch.float64)
    assert_close(output[1], expected[1, :, 7:], torch.float64)


# --- reorder


ROWS = {"swapped": [1, 0], "one twice": [1, 1], "fewer": [1], "more": [1, 0, 1, 0, 0], "none": []}


@by_kind
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_reordered_cache_is_what_those_sequences_were(kind: Kind, rows: list[int]) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(7)
    tokens.decode(cache, 7, 9, lengths=[2, 1])
    alone = content(cache)
    cache.reorder(rows)
    assert cache.batch == len(rows)
    assert cache.lengths == tuple([9, 8][row] for row in rows)
    now = content(cache)
    for name, kept in alone["kept"].items():
        for place, row in enumerate(rows):
            length = cache.lengths[place] if kind.kept is GrowingCache else None
            assert torch.equal(now["kept"][name][place][:, :length], kept[row][:, :length]), name
    assert cache.allocated_bytes == held_bytes(cache)


@by_kind
@pytest.mark.parametrize("rows", [[1, 0, 1], torch.tensor([1, 0, 1]), np.array([1, 0, 1]), (1, 0, 1)], ids=type)
def test_beams_go_on_from_the_sequences_that_they_were(kind: Kind, rows: Any) -> None:
    tokens = Tokens.draw(kind, dtype=torch.float64)
    cache = tokens.filled(7)
    cache.reorder(rows)
    beams = tokens.of_sequences([1, 0, 1])
    outputs = [beams.decode(cache, n, n + 1) for n in range(7, 12)]
    assert_close(torch.cat(outputs, dim=2), beams.expected()[:, :, 7:], torch.float64)


@of_kind("growing", "rolling", "state")
def test_two_that_were_one_sequence_no_longer_touch_each_other(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(7)
    cache.reorder([0, 0])
    before = content(cache)
    tokens.decode(cache, 7, 8, lengths=[0, 1])
    assert cache.lengths == (7, 8)
    for name, rows in before["kept"].items():
        assert torch.equal(content(cache)["kept"][name][0], rows[0])


# --- clone


@by_kind
def test_a_clone_goes_its_own_way(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    twin = cache.clone()
    assert type(twin) is type(cache)
    assert_same_content(content(twin), content(cache))
    assert {x.data_ptr() for x in held(twin)}.isdisjoint(x.data_ptr() for x in held(cache))
    before = content(cache)
    for start in (6, 9):
        tokens.decode(twin, start, start + 3)
    twin.reset()
    assert_same_content(content(cache), before)
    assert_close(tokens.decode(cache, 6), tokens.expected()[:, :, 6:], torch.float32)


@by_kind
def test_the_original_of_a_clone_may_go_on_first(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    twin = cache.clone()
    tokens.decode(cache, 6)
    assert_close(tokens.decode(twin, 6), tokens.expected()[:, :, 6:], torch.float32)
