"""The cache of a window: the same bytes at any length, what it can still crop, and what it has forgotten for good."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.cache import RollingCache, new_cache
from tests.cache.helpers import SINKS, Kind, Tokens, assert_same_content, content, held, held_bytes, of_kind
from tests.inputs import spec
from tests.tolerances import assert_close

FAR = 1_000_000
GIVEN = {
    "window": ph.SlidingWindow.causal(3),
    "itself": ph.SlidingWindow.causal(1),
    "kept first": SINKS,
    "kept first alone": ph.Global(first=2) & ph.Causal(),
    "chunks": ph.Chunked(size=4) & ph.Causal(),
    "chunks and one before": ph.Chunked(size=2, left=1) & ph.Causal(),
    "random in a window": ph.RandomLinks(per_query=2, seed=3) & ph.SlidingWindow.causal(4),
    "window in chunks": ph.SlidingWindow.causal(3) & ph.Chunked(size=5),
}
by_pattern = pytest.mark.parametrize("pattern", GIVEN.values(), ids=[name.replace(" ", "-") for name in GIVEN])


def rolling(pattern: ph.spec.Pattern, slack: int = 0, **choices: Any) -> Kind:
    return Kind(spec("gqa", pattern=pattern, **choices), RollingCache, slack)


# --- bytes


@pytest.mark.parametrize(
    ("pattern", "slots"),
    [
        (ph.SlidingWindow.causal(3), 3),
        (ph.SlidingWindow.causal(1), 1),
        (SINKS, 5),
        (ph.Global(first=2) & ph.Causal(), 3),
        (ph.Chunked(size=4, left=2) & ph.Causal(), 12),
        (ph.RandomLinks(per_query=2, seed=3) & ph.SlidingWindow.causal(4), 4),
    ],
    ids=repr,
)
@pytest.mark.parametrize("slack", [0, 3])
def test_room_is_the_window_and_kept_first_tokens_and_slack(pattern: Any, slots: int, slack: int) -> None:
    cache = new_cache(spec("gqa", pattern=pattern), batch=2, slack=slack)
    assert cache.slots == slots + slack
    a_token = 2 * (8 + 8) * 4
    assert (cache.allocated_bytes, cache.used_bytes) == (2 * (slots + slack) * a_token, 0)
    cache.append(torch.zeros(2, 2, 200, 8), torch.zeros(2, 2, 200, 8))
    assert (cache.allocated_bytes, cache.used_bytes) == (2 * (slots + slack) * a_token, 2 * slots * a_token)


def test_used_bytes_count_each_sequences_own_tokens() -> None:
    cache = new_cache(spec("gqa", pattern=SINKS), batch=3)
    cache.append(torch.zeros(3, 2, 9, 8), torch.zeros(3, 2, 9, 8), lengths=[1, 4, 9])
    assert cache.used_bytes == (1 + 4 + 5) * 2 * (8 + 8) * 4


def test_tokens_within_the_slack_are_written_in_place() -> None:
    tokens = Tokens.draw(rolling(SINKS, 2), 30)
    cache = tokens.new_cache()
    where = [x.data_ptr() for x in held(cache)]
    for start in range(0, 30, 3):
        tokens.decode(cache, start, start + 3)
        assert [x.data_ptr() for x in held(cache)] == where


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_same_bytes_hold_a_thousand_tokens_and_a_hundred_thousand(chunk: int) -> None:
    storage = ph.Grouped(num_heads=1, head_dim=2)
    whole = ph.AttentionSpec(storage=storage, pattern=SINKS, position=ph.Rotary())
    cache = new_cache(whole, batch=1, slack=2)
    most = 100_000 if chunk == 1000 else 300  # each step costs the same
    token = torch.ones(1, 1, chunk, 2)
    seen = set()
    for _ in range(0, most, chunk):
        cache.append(token, token)
        if cache.length > 10:
            seen.add((cache.used_bytes, cache.allocated_bytes, held_bytes(cache)))
    assert cache.length >= most
    assert len(seen) == 1
    assert cache.used_bytes == 5 * 2 * 2 * 4


# --- decoding


@by_pattern
@pytest.mark.parametrize("slack", [0, 1, 4])
@pytest.mark.parametrize("chunk", [1, 2, 3, 8])
def test_what_has_left_the_window_is_not_missed(pattern: Any, slack: int, chunk: int) -> None:
    tokens = Tokens.draw(rolling(pattern, slack), 24, dtype=torch.float64)
    cache = tokens.new_cache()
    outputs = [tokens.decode(cache, start, start + chunk) for start in range(0, 24, chunk)]
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float64)


@by_pattern
def test_what_has_left_the_window_is_overwritten(pattern: Any) -> None:
    """Numbers that tell their tokens: those in the cache are the kept first ones and the last."""
    cache = new_cache(spec("mqa", pattern=pattern), batch=1)
    for token in range(40):
        cache.append(torch.full((1, 1, 1, 8), float(token)), torch.full((1, 1, 1, 8), float(token)))
    first, left = pattern.reach.first, pattern.reach.left
    there = sorted({int(n) for x in held(cache) for n in x.unique()})
    assert there == [*range(first), *range(40 - left - 1, 40)]


@by_pattern
@pytest.mark.parametrize("chunk", [1, 6])
def test_nothing_is_left_of_a_nan_that_has_left_the_window(pattern: Any, chunk: int) -> None:
    first, left = pattern.reach.first, pattern.reach.left
    tokens = Tokens.draw(rolling(pattern), 24)
    cache, expected = tokens.new_cache(), tokens.expected()
    bad = 6
    for start in range(0, 24, chunk):
        piece = tokens.piece(cache, start, start + chunk)
        if start <= bad < start + chunk:
            piece["key"][:, :, bad - start] = piece["value"][:, :, bad - start] = torch.nan
        output = ph.attend(**piece, spec=tokens.kind.spec, cache=cache)
        for n in range(start, start + chunk):
            if not bad <= n <= bad + left:
                assert_close(output[:, :, n - start], expected[:, :, n], torch.float32)
    assert bad >= first
    assert all(x.isfinite().all() for x in held(cache))


@pytest.mark.parametrize("slack", [0, 3])
def test_a_nan_reaches_the_rows_whose_window_has_it(slack: int) -> None:
    tokens = Tokens.draw(rolling(ph.SlidingWindow.causal(3), slack), 12)
    cache = tokens.filled(6)
    piece = tokens.piece(cache, 6, 7)
    piece["value"][1] = torch.inf
    outputs = [ph.attend(**piece, spec=tokens.kind.spec, cache=cache)]
    outputs += [tokens.decode(cache, n, n + 1) for n in range(7, 12)]
    output = torch.cat(outputs, dim=2)
    assert output[1].isnan().all(dim=-1).all(dim=0).tolist() == [True, True, True, False, False, False]
    assert_close(output[0], tokens.expected()[0, :, 6:], torch.float32)


def test_a_row_with_neither_window_nor_kept_token_gives_zeros() -> None:
    """A link table that ends leaves later queries nothing but what the ring holds and they may not see."""
    pattern = ph.Links(table=[[[0], [0, 1], [1, 2]]]) & ph.SlidingWindow.causal(2)
    tokens = Tokens.draw(rolling(pattern), 6)
    cache = tokens.new_cache()
    outputs = [tokens.decode(cache, n, n + 1) for n in range(6)]
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float32)
    assert not torch.cat(outputs[3:], dim=2).any()


@of_kind("rolling")
def test_weights_are_refused_and_said_why(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    before = content(cache)
    with pytest.raises(ph.UnsupportedError, match="return_weights=True: a rolling cache has forgotten keys"):
        tokens.decode(cache, 6, return_weights=True)
    assert_same_content(content(cache), before)


# --- crop


@pytest.mark.parametrize("pattern", [ph.SlidingWindow.causal(3), SINKS], ids=repr)
@pytest.mark.parametrize("slack", [1, 2, 4])
@pytest.mark.parametrize("length", [10, 14, 40])
def test_slack_tokens_can_be_cropped_and_one_more_cannot(pattern: Any, slack: int, length: int) -> None:
    tokens, other = Tokens.draw(rolling(pattern, slack), 48), Tokens.draw(rolling(pattern, slack), 48, seed=1)
    cache = tokens.filled(length - slack)
    for n in range(length - slack, length):  # tokens that turn out wrong
        other.decode(cache, n, n + 1)
    assert length > cache.slots, "else nothing is forgotten yet"
    before = content(cache)
    with pytest.raises(
        ph.UnsupportedError,
        match=f"crop cannot leave {length - slack - 1} tokens of sequence 0, once {length} long.*slack={slack} .*"
        f"leave {length - slack} or more",
    ):
        cache.crop(length - slack - 1)
    assert_same_content(content(cache), before)
    cache.crop(length - slack)
    assert cache.lengths == (length - slack,) * 2
    outputs = [tokens.decode(cache, n, n + 1) for n in range(length - slack, 48)]
    assert_close(torch.cat(outputs, dim=2), tokens.expected()[:, :, length - slack :], torch.float32)


@pytest.mark.parametrize("pattern", [ph.SlidingWindow.causal(3), SINKS], ids=repr)
@pytest.mark.parametrize("slack", [0, 2])
def test_before_anything_is_forgotten_any_number_can_be_cropped(pattern: Any, slack: int) -> None:
    tokens, other = Tokens.draw(rolling(pattern, slack), 20), Tokens.draw(rolling(pattern, slack), 20, seed=1)
    cache = tokens.new_cache()
    for left in range(cache.slots + 1):
        cache.reset()
        tokens.append(cache, 0, left)
        other.append(cache, left, cache.slots)
        cache.crop(left)
        assert cache.lengths == (left, left)
        outputs = [tokens.decode(cache, n, n + 1) for n in range(left, 20)]
        assert_close(torch.cat(outputs, dim=2), tokens.expected()[:, :, left:], torch.float32)


def test_one_token_past_the_room_and_the_first_is_forgotten() -> None:
    tokens = Tokens.draw(rolling(ph.SlidingWindow.causal(3)), 12)
    cache = tokens.filled(3)
    cache.clone().crop(1)
    tokens.decode(cache, 3, 4)
    with pytest.raises(ph.UnsupportedError, match="crop cannot leave 1 tokens of sequence 0, once 4 long"):
        cache.crop(1)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_kept_first_tokens_are_there_however_long_the_sequence_was(left: int) -> None:
    tokens, other = Tokens.draw(rolling(SINKS, 1), 16), Tokens.draw(rolling(SINKS, 1), 16, seed=1)
    cache = tokens.filled(left)
    other.append(cache, left)
    cache.crop(left)
    outputs = [tokens.decode(cache, n, n + 1) for n in range(left, 16)]
    assert_close(torch.cat(outputs, dim=2), tokens.expected()[:, :, left:], torch.float32)


def test_past_the_kept_first_tokens_what_came_next_is_gone() -> None:
    tokens = Tokens.draw(rolling(SINKS, 1), 16)
    with pytest.raises(ph.UnsupportedError, match="crop cannot leave 3 tokens of sequence 0, once 15 long"):
        tokens.filled(15).crop(3)


def test_crops_do_not_add_up_to_more_than_the_slack() -> None:
    tokens = Tokens.draw(rolling(ph.SlidingWindow.causal(3), 2), 30)
    cache = tokens.filled(20)
    cache.crop(19)
    cache.crop(18)
    with pytest.raises(ph.UnsupportedError, match="crop cannot leave 17 tokens of sequence 0, once 20 long"):
        cache.crop(17)
    tokens.append(cache, 18, 19)
    with pytest.raises(ph.UnsupportedError, match="crop cannot leave 17 tokens"):
        cache.crop(17)
    tokens.append(cache, 19, 22)
    cache.crop(20)
    with pytest.raises(ph.UnsupportedError, match="crop cannot leave 19 tokens of sequence 0, once 22 long"):
        cache.crop(19)
    assert_close(tokens.decode(cache, 20), tokens.expected()[:, :, 20:], torch.float32)


@pytest.mark.parametrize("pattern", [ph.SlidingWindow.causal(3), SINKS], ids=repr)
@pytest.mark.parametrize("seed", range(5))
def test_after_any_run_of_appends_and_crops_decoding_is_right(pattern: Any, seed: int) -> None:
    """As in speculative decoding: some tokens are tried, and a part of them is taken back."""
    rng = np.random.default_rng(seed)
    slack = 3
    tokens, other = Tokens.draw(rolling(pattern, slack), 60), Tokens.draw(rolling(pattern, slack), 60, seed=1)
    cache, at, outputs = tokens.new_cache(), 0, []
    while at < 50:
        taken = int(rng.integers(1, 7))
        outputs.append(tokens.decode(cache, at, at + taken))
        at += taken
        tried = int(rng.integers(0, slack + 1))
        other.decode(cache, at, at + tried)
        cache.crop(at)
    assert_close(torch.cat(outputs, dim=2), tokens.expected()[:, :, :at], torch.float32)


def test_each_sequence_is_cropped_by_its_own_history() -> None:
    tokens = Tokens.draw(rolling(ph.SlidingWindow.causal(3), 1), 20)
    cache = tokens.new_cache()
    tokens.decode(cache, 0, 12, lengths=[12, 4])
    before = content(cache)
    with pytest.raises(ph.UnsupportedError, match="crop cannot leave 4 tokens of sequence 0, once 12 long"):
        cache.crop([4, 1])
    assert_same_content(content(cache), before)
    cache.crop([11, 1])
    cache.reorder([1, 0])
    with pytest.raises(ph.UnsupportedError, match="crop cannot leave 10 tokens of sequence 1, once 12 long"):
        cache.crop([1, 10])
    cache.crop([0, 11])
    piece = tokens.of_sequences([1, 0]).ragged(cache, [0, 11], [8, 8])
    output = ph.attend(**piece, spec=tokens.kind.spec, cache=cache)
    expected = tokens.expected()
    assert_close(output[0], expected[1, :, :8], torch.float32)
    assert_close(output[1], expected[0, :, 11:19], torch.float32)


def test_a_reset_forgets_what_was_forgotten() -> None:
    tokens = Tokens.draw(rolling(ph.SlidingWindow.causal(3)), 12)
    cache = tokens.filled(12)
    cache.reset()
    tokens.append(cache, 0, 3)
    cache.crop(1)  # all that there is since the reset is still there
    assert_close(tokens.decode(cache, 1), tokens.expected()[:, :, 1:], torch.float32)


# --- far along


POSITIONS = [ph.Alibi(), ph.Rotary(theta=50.0), ph.RelativeBias.t5(num_buckets=8, max_distance=7)]


@pytest.mark.parametrize("position", POSITIONS, ids=repr)
@pytest.mark.parametrize("pattern", [ph.SlidingWindow.causal(4), SINKS], ids=repr)
def test_a_token_at_a_million_sees_its_window(position: Any, pattern: Any) -> None:
    storage = ph.Grouped(num_heads=2, head_dim=4)
    kind = Kind(ph.AttentionSpec(storage=storage, pattern=pattern, position=position), RollingCache)
    tokens = Tokens.draw(kind, 8, batch=1)  # the first two tokens of all, three in the window, three to decode
    places = np.array([0, 1, *range(FAR - 3, FAR + 3)])
    cache = tokens.new_cache()
    tokens.append(cache, 0, 2)
    between = FAR - 3 - 2
    zeros = torch.zeros(1, 2, 1, 4)
    for start in range(0, between, 333_333):
        some = zeros.expand(1, 2, min(333_333, between - start), 4)
        cache.append(some, some, params=tokens.params())
    tokens.append(cache, 2, 5)
    assert cache.length == FAR
    output = torch.cat([tokens.decode(cache, n, n + 1) for n in range(5, 8)], dim=2)
    given = tokens.inputs.giving(query_positions=places, key_positions=places)
    assert_close(output, given.oracle()[:, :, 5:], torch.float32)
    assert_close(given.attend(torch.float32)[:, :, 5:], given.oracle()[:, :, 5:], torch.float32)
