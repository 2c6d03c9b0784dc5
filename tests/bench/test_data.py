"""A record as the page shows it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest

import polyhead as ph
from polyhead.bench.ceilings import Ceilings
from polyhead.bench.data import derived, to_page
from polyhead.bench.records import Outcome, Record, Row
from polyhead.bench.timer import Turns

MET = Outcome(against="sdpa", limit=0.75, reached=0.5)
SQUARE = {"16": (2.0,) * 5, "32": (8.0,) * 5, "64": (32.0,) * 5}


WIDTHS = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 0, "v_head_dim": 16}


def row(*, seconds: Mapping[str, tuple[float, ...]] | None = None, **more: object) -> Row:
    turns = None if seconds is None else Turns(seconds, "ours")
    fields = {"title": "a", "direction": "forward", "q_len": 8, "kv_len": 8, "kernel": "dense", "spec": {}, **more}
    return Row(case="full", command="polyhead bench full", turns=turns, **fields)  # type: ignore[arg-type]


TIMED = row(
    seconds={"ours": (1.0, 1.0, 1.1, 1.1, 1.1), "sdpa": (2.0, 2.0, 2.2, 2.2, 4.4)},
    targets=(MET,),
    titles={"sdpa": "PyTorch's SDPA"},
)


@pytest.mark.parametrize(
    ("parts", "changes"),
    [
        ({}, "nothing"),
        ({"pattern": ph.Causal(), "position": ph.Rotary()}, "nothing"),
        ({"storage": ph.Grouped(num_heads=8, num_kv_heads=2, head_dim=64)}, "storage"),
        (
            {
                "storage": ph.Latent(
                    num_heads=8, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=0, v_head_dim=16
                )
            },
            "storage",
        ),
        ({"position": ph.Alibi()}, "position"),
        ({"pattern": ph.SlidingWindow.causal(512), "position": ph.Rotary()}, "pattern"),
        ({"weighting": ph.Linear(), "pattern": ph.Causal()}, "weighting"),
    ],
)
def test_a_row_says_which_choice_it_is_about(parts: dict[str, Any], changes: str) -> None:
    spec = ph.AttentionSpec(**{"storage": ph.Grouped(num_heads=8, head_dim=64), **parts})
    layer = ph.LayerSpec(attention=spec, embed_dim=512)
    assert [derived(row(spec=json.loads(one.to_json())))["changes"] for one in (spec, layer)] == [changes, changes]


@pytest.mark.parametrize("spec", [{}, {"type": "Softmax"}, {"type": "NewSpec"}])
def test_a_row_whose_spec_is_none_is_about_nothing(spec: dict[str, Any]) -> None:
    assert derived(row(spec=spec))["changes"] == "nothing"


def test_medians_and_ratios_are_those_of_the_turns_that_count() -> None:
    found = derived(TIMED)["contenders"]
    assert found["ours"] == {"seconds": (1.0, 1.1, 1.1), "ratio": None, "turns": 5}
    assert found["sdpa"]["seconds"] == (2.0, 2.2, 2.2)
    assert found["sdpa"]["ratio"] == pytest.approx((0.5, 0.5, 0.5))


def test_a_turn_in_which_others_computed_does_not_count() -> None:
    busy = {"ours": (1.0, 1.0, 1.0, 1.0, 1.0, 9.0), "sdpa": (2.0, 2.0, 2.0, 2.0, 2.0, 9.0)}
    found = derived(row(seconds=busy))
    assert (found["contenders"]["sdpa"]["turns"], found["is_quiet"]) == (5, True)


def test_a_target_says_how_many_seconds_would_meet_it() -> None:
    (target,) = derived(TIMED)["targets"]
    assert target["seconds"] == pytest.approx(0.75 * 2.2)
    assert (target["title"], target["met"], target["text"]) == ("PyTorch's SDPA", True, "≤ 0.75 met")


@pytest.mark.parametrize("against", ["flex", "memory"])
def test_a_target_against_what_was_not_timed_has_no_seconds(against: str) -> None:
    target = Outcome(against=against, limit=64, reached=None)
    (found,) = derived(dataclasses.replace(TIMED, targets=(target,)))["targets"]
    assert (found["seconds"], found["met"]) == (None, None)


def test_growth_has_its_line() -> None:
    growth = derived(row(sweep=Turns(SQUARE, "16")))["growth"]
    assert growth["exponent"] == pytest.approx(2.0)
    assert [point["length"] for point in growth["points"]] == [16, 32, 64]
    assert growth["fitted"] == [pytest.approx([16, 2.0]), pytest.approx([64, 32.0])]


def test_the_line_runs_through_the_middle_of_points_that_are_on_none() -> None:
    bent = {"1": (1.0,) * 5, "2": (4.0,) * 5, "4": (4.0,) * 5}
    (_, first), (_, last) = derived(row(sweep=Turns(bent, "1")))["growth"]["fitted"]
    assert (first * last) ** 0.5 == pytest.approx(16 ** (1 / 3))  # its middle is the mean of logarithms


def test_what_was_not_run_is_said_and_not_left_away() -> None:
    notes = ("not run at 65536 keys: needs 9 GiB", "not timed from 131072 keys on: one run takes 9 s", "something else")
    found = derived(row(notes=notes))
    assert [missed["length"] for missed in found["missed"]] == [65536, 131072]
    assert found["missed"][0]["why"] == notes[0]
    assert (found["contenders"], found["is_quiet"], found["growth"]) == ({}, None, None)


def test_a_length_that_the_benchmark_leaves_out_is_among_the_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyhead import bench
    from polyhead.bench import work
    from polyhead.bench.cases import case

    monkeypatch.setattr(work, "no_room", lambda one, _: "too large" if one.length == 64 else None)
    sized = dataclasses.replace(case("window").at(32), lengths=(16, 32, 64), peers=(), targets=())
    (found,) = bench.run([sized], seconds=1.0, threads=1).rows
    assert [missed["length"] for missed in derived(found)["missed"]] == [64]


def test_the_page_has_all_of_a_record() -> None:
    ceilings = Ceilings(dtype="float32", flops=2e9, read_bytes=1e9, threads=2)
    record = Record(machine="a", dtype="float32", command="b", ceilings=ceilings, load=3.0, rows=(TIMED,))
    page = json.loads(json.dumps(to_page(record)))
    kept = json.loads(record.to_json())
    (own,) = page["rows"]
    del own["derived"]
    assert {name: page[name] for name in kept} == kept
    assert page["notes"] == record.notes()
    assert page["ceilings_text"] == str(ceilings)
