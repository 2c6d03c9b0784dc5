"""The cases of decoding: each computes what the oracle says, through its cache; so do peers of the same function."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from polyhead.bench import checks, counts, harness
from polyhead.bench.case import Case
from polyhead.bench.cases import case
from polyhead.bench.decoding import CACHED, DECODING, RAGGED
from polyhead.bench.peers import PEERS
from polyhead.bench.work import Work, kernel_of, refusal
from polyhead.cache import GrowingCache
from polyhead.errors import UnsupportedError
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("short_ceilings")

NO_NUMBA = importlib.util.find_spec("numba") is None
NAMES = [
    pytest.param(
        one.name, marks=pytest.mark.skipif(NO_NUMBA and one.kernel == "numba", reason="numba is not installed")
    )
    for one in DECODING
]
MECHANISMS = [name for name in NAMES if case(str(name.values[0])).layer is None]


def tiny(name: str, length: int = 150) -> Case:
    return case(name).at(length)


def dtype(one: Case) -> torch.dtype:
    found: torch.dtype = getattr(torch, one.dtype or "float32")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_case_gives_what_the_oracle_does(name: str) -> None:
    one = tiny(name)
    checks.check_against_oracle(one, kernel_of(one, dtype(one)), dtype(one))


@pytest.mark.parametrize("name", MECHANISMS)
def test_each_call_takes_its_token_back_and_gives_the_same(name: str) -> None:
    one = tiny(name)
    run = Work.of(one, dtype(one)).ours()
    first, second = run()[0], run()[0]
    if one.name not in ("decode-window", "decode-linear"):  # what they keep cannot be taken back
        assert torch.equal(first, second)


def test_a_batch_of_sequences_is_each_of_them_alone() -> None:
    one = tiny("decode-ragged-torch", 400)
    work = Work.of(one, torch.float32)
    together = work.ours()()[0]
    assert len(one.sequences) == len(together) == 8
    for row, length in enumerate(one.sequences):
        alone = dataclasses.replace(one, length=length, sequences=())
        tensors = {
            name: x[row : row + 1] if name == "query" else x[row : row + 1, :, :length]
            for name, x in work.tensors.items()
        }
        assert_close(
            dataclasses.replace(work, case=alone, tensors=tensors).ours()()[0], together[row : row + 1], "float32"
        )


PAIRS = [(one.name, peer) for one in DECODING for peer in one.peers if one.layer is None and one.kernel == "decode"]


@pytest.mark.parametrize(("name", "peer"), PAIRS)
def test_each_peer_runs_and_agrees_where_it_computes_the_same(name: str, peer: str) -> None:
    one = tiny(name, 120)
    work = Work.of(one, dtype(one))
    made = PEERS[peer].build(work)
    assert not isinstance(made, str)
    theirs = made.run()[0]
    assert theirs.isfinite().all()
    assert made.same == (peer == "sdpa-cached")
    if made.same:
        assert_close(work.ours()()[0], theirs, dtype(one))


def test_a_peer_that_cannot_says_why() -> None:
    assert "no bias" in str(PEERS["sdpa-cached"].build(Work.of(tiny("decode-alibi-torch"), torch.float32)))


def test_bytes_are_those_of_what_a_cache_keeps() -> None:
    assert counts.bytes_read(case("decode-gqa"), 4) == CACHED * 2 * 8 * 128 * 4
    assert counts.bytes_read(case("decode-ragged"), 4) == sum(RAGGED) * 2 * 8 * 128 * 4
    assert counts.bytes_read(case("decode-window"), 4) == 1024 * 2 * 8 * 128 * 4
    assert counts.bytes_read(case("full"), 4) == 0
    work = Work.of(tiny("decode-gqa-torch"), torch.float32)
    cache = work.filled_cache()
    assert isinstance(cache, GrowingCache)
    assert cache.used_bytes == counts.bytes_read(dataclasses.replace(work.case, length=149), 4)


def test_a_row_says_which_part_of_the_read_rate_it_reaches() -> None:
    record = harness.run([tiny("decode-gqa-torch", 500)], threads=1, seconds=0.2)
    (row,) = record.rows
    assert (row.kernel, row.base, set(row.titles)) == ("decode", "sdpa-cached", {"sdpa-cached", "read"})
    assert row.turns is not None
    expected = row.bytes_read / row.turns.median("ours") / record.ceilings.read_bytes
    assert row.share == pytest.approx(expected)


def test_a_kernel_that_is_not_there_is_a_note_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.kernels.compiled.unavailable", lambda: "numba is not installed")
    assert "numba is not installed" in (refusal(case("decode-gqa"), torch.float32) or "")
    record = harness.run([tiny("decode-gqa")], threads=1, seconds=0.2)
    assert not record.failures
    assert record.rows[0].turns is None
    assert "not run: kernel='numba' does not run this: numba is not installed" in record.rows[0].notes[0]


def test_the_set_without_names_is_that_of_decoding() -> None:
    assert harness.selected(decoding=True) == list(DECODING)
    with pytest.raises(UnsupportedError, match="decode-gqa not in the quick table"):
        harness.selected(["decode-gqa"], quick=True)


@pytest.mark.model
def test_a_whole_model_gives_the_same_however_it_is_run() -> None:
    from polyhead.bench.models import ALLOWED, build

    ours, peers, bytes_read = build(case("decode-smollm2").at(200))
    logits = ours()[0]
    for name in ("transformers", "transformers-static", "implementation"):
        for _ in range(2):  # each takes its token back
            assert checks.difference(peers[name]()[0], logits) <= ALLOWED
    assert peers["floor"]()[0].shape == logits.shape
    assert bytes_read > 4 * 134e6
