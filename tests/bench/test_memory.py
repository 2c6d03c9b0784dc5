"""Peak memory, in a process of its own: what a call takes beyond its inputs and outputs."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from polyhead import bench
from polyhead.bench import memory
from polyhead.bench.case import Case, Target
from polyhead.bench.cases import case
from polyhead.bench.memory import peak_memory
from polyhead.errors import PolyheadError, UnsupportedError

pytestmark = pytest.mark.usefixtures("short_ceilings")

LENGTH = 512
MATRIX = 8 * LENGTH**2 * 4 / 2**20  # MiB of float32 scores of all heads


def small(name: str) -> Case:
    return case(name).at(LENGTH)


@pytest.mark.slow
def test_a_float_mask_beside_the_scores_shows_and_inputs_do_not() -> None:
    """SDPA forms no matrix; with unequal widths PyTorch forms one of all 16 heads, and more beside it."""
    assert peak_memory(small("full"), "sdpa") < MATRIX
    assert peak_memory(small("mla"), "sdpa") > 2 * MATRIX


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot reset its peak")
def test_what_was_held_before_the_run_is_forgotten() -> None:
    torch.ones(2**26)  # 256 MiB, freed at once
    before = memory._peak_bytes()
    memory._forget_peak()
    assert memory._peak_bytes() < before - 2**26


def test_what_the_process_says_is_passed_on() -> None:
    with pytest.raises(PolyheadError, match=r"memory of flex- at 512 keys failed: KeyError: 'flex-'"):
        peak_memory(small("full"), "flex-")


def test_what_has_no_room_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.bench.work.free_memory", lambda: 1000.0)
    with pytest.raises(UnsupportedError, match=r"full at 512 keys needs 0\.1 GiB"):
        memory.measured(small("full"), "ours", "float32")


def test_a_bound_on_memory_is_for_its_own_length(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str]] = []
    monkeypatch.setattr(memory, "peak_memory", lambda case, name, **given: asked.append((case.length, name)) or 65.0)
    bounded = dataclasses.replace(case("full").at(64), targets=(Target(against="memory", at_most=64),))
    row = bench.run([bounded], seconds=0.01, threads=1, memory=True).rows[0]
    assert asked == [(16384, "ours"), (16384, "sdpa")]
    assert (row.memory_keys, row.targets[0].reached, row.targets[0].met) == (16384, 65.0, False)


@pytest.mark.slow
def test_a_row_has_the_memory_of_ours_and_the_base() -> None:
    row = bench.run([case("full").at(64)], seconds=0.01, threads=1, memory=True).rows[0]
    assert set(row.memory) == {"ours", "sdpa"}
    assert min(row.memory.values()) >= 0.0


def test_memory_that_cannot_be_measured_leaves_the_times() -> None:
    mine = dataclasses.replace(case("full").at(64), name="mine")
    row = bench.run([mine], seconds=0.01, threads=1, memory=True).rows[0]
    assert row.turns is not None
    assert row.memory == {}
    assert row.notes[0] == "memory is measured of the documented cases, and 'mine' as given is none"


def test_a_documented_name_with_another_mechanism_is_refused() -> None:
    mine = dataclasses.replace(case("full").at(64), spec=case("causal").spec)
    with pytest.raises(UnsupportedError, match="'full' as given is none"):
        peak_memory(mine)


@pytest.mark.slow
def test_the_memory_of_bigbirds_layer_is_measured_after_a_warm_up_that_it_takes() -> None:
    pytest.importorskip("transformers", reason="the peer is transformers, which is not installed")
    assert peak_memory(case("bigbird-layer").at(768), "bigbird") > 0.0
