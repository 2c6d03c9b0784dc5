"""A run from cases to rows: what is checked before anything is timed, what is left out, and what is said of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import polyhead as ph
from polyhead import bench
from polyhead.bench import checks, harness, peers, work
from polyhead.bench.case import Case, Target
from polyhead.bench.cases import CASES, case
from polyhead.bench.contender import Contender, Peer
from polyhead.bench.records import Record
from polyhead.errors import ShapeError, UnknownNameError, UnsupportedError
from polyhead.kernels import common, select
from polyhead.kernels.common import Call
from tests.bench.conftest import GROWING, SECONDS, sized

pytestmark = pytest.mark.usefixtures("short_ceilings")

# --- a run ---------------------------------------------------------------------------------------


def test_a_row_holds_every_turn_of_ours_and_the_peer(record: Record) -> None:
    row = record.rows[0]
    assert row.turns is not None
    assert set(row.turns.seconds) == {"ours", "sdpa"}
    assert len(row.turns.seconds["ours"]) == len(row.turns.seconds["sdpa"]) >= 5
    assert (row.case, row.base, row.q_len, row.kv_len) == ("full", "sdpa", 32, 32)
    assert row.kernel == ph.explain(case("full").attention, q_len=32, kv_len=32).kernel
    assert (row.pairs, row.operations) == (8 * 32 * 32, 8 * 32 * 32 * 256)


def test_the_share_is_of_the_ceiling_measured(record: Record) -> None:
    row = record.rows[0]
    assert row.turns is not None
    assert row.share == row.operations / row.turns.median("ours") / record.ceilings.flops


def test_targets_are_met_or_not(record: Record) -> None:
    missed, reached = (row.targets[0] for row in record.rows)
    assert (missed.against, missed.met) == ("sdpa", False)
    assert (reached.against, reached.met, reached.reached) == ("exponent", True, record.rows[1].exponent)


def test_growth_is_fitted_to_all_lengths(record: Record) -> None:
    row = record.rows[1]
    assert list(row.seconds_by_length) == [16, 32, 64]
    assert row.exponent is not None


def test_the_machine_is_described(record: Record) -> None:
    assert (record.ceilings.threads, record.ceilings.dtype) == (1, "float32")
    assert f"torch {torch.__version__}, 1 thread, 20" in record.machine


def test_of_two_measurements_of_the_ceilings_the_higher_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench.Ceilings(dtype="float32", flops=2.0, read_bytes=3.0, threads=1)
    both = iter([found, dataclasses.replace(found, flops=4.0, read_bytes=1.0)])
    monkeypatch.setattr(harness, "measure_ceilings", lambda dtype: next(both))
    record = bench.run([sized("full")], seconds=SECONDS)
    assert (record.ceilings.flops, record.ceilings.read_bytes) == (4.0, 3.0)


@pytest.mark.parametrize("training", [False, True])
def test_the_kernel_named_is_the_one_for_the_direction(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    one = sized("causal-cached", training=training)
    expected = common.Case(spec=one.attention, q_len=4, kv_len=32, dtype=torch.bfloat16, needs_grad=training)
    taken = tuple(k._replace(refuse=lambda asked: None if asked == expected else "no") for k in select.KERNELS[-1:])
    monkeypatch.setattr(select, "KERNELS", taken)
    assert work.kernel_of(one, torch.bfloat16) == "plain"


def test_threads_are_put_back() -> None:
    torch.set_num_threads(2)
    bench.run([sized("full")], seconds=SECONDS, threads=1)
    assert torch.get_num_threads() == 2


def test_progress_is_a_line_for_each_case() -> None:
    lines: list[str] = []
    bench.run([sized("full"), sized("causal")], seconds=SECONDS, progress=lines.append)
    assert [line.split(":")[0] for line in lines[1:]] == ["1/2 full", "2/2 causal"]


def test_without_peers_the_base_is_left() -> None:
    row = bench.run([sized("alibi")], seconds=SECONDS, peers=False).rows[0]
    assert row.turns is not None
    assert set(row.turns.seconds) == {"ours", "sdpa"}
    assert row.left_out == {"sdpa-mask": "only the base was asked for"}


def test_a_peer_that_fails_when_it_runs_is_left_out_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[Tensor, ...]:
        raise RuntimeError("no such instruction\nin detail")

    failing = Peer("PyTorch's SDPA", lambda made: Contender(run, same=True))
    monkeypatch.setattr(peers, "PEERS", {**peers.PEERS, "sdpa": failing})
    row = bench.run([sized("alibi")], seconds=SECONDS).rows[0]
    assert row.left_out == {"sdpa": "it fails here: no such instruction"}
    assert row.base == "sdpa-mask"


def test_targets_are_for_float32() -> None:
    row = bench.run([sized("full", targets=case("full").targets)], seconds=SECONDS, dtype="bfloat16").rows[0]
    assert row.targets == ()


def test_a_share_of_pairs_is_the_unit_where_the_case_says_so() -> None:
    target = Target(against="sdpa", at_most=2.0, share_of_pairs=True)
    row = bench.run([dataclasses.replace(sized("causal-cached"), targets=(target,))], seconds=SECONDS).rows[0]
    queries = row.q_len
    seen = sum(32 - later for later in range(queries))
    assert row.targets[0].limit == pytest.approx(2.0 * seen / (32 * 33 / 2))


def test_a_case_without_room_is_no_row_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "free_memory", lambda: 2.0**19)
    one = sized("alibi")
    record = bench.run([one], seconds=SECONDS)
    assert record.rows[0].turns is None
    assert record.lines()[0].ours == "not run"
    kernel = work.kernel_of(one, torch.float32)
    assert dataclasses.replace(record, load=None).notes() == [
        f"alibi: not run: needs 0.1 GiB on kernel {kernel}, and 0.0 GiB are free"
    ]


def test_a_length_without_room_is_left_out_of_the_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.bench.harness.seconds_of", lambda run: 0.0)
    monkeypatch.setattr(
        "polyhead.bench.work.no_room", lambda case, dtype: "needs more than there is" if case.length == 64 else None
    )
    row = bench.run([GROWING], seconds=SECONDS).rows[0]
    assert list(row.seconds_by_length) == [16, 32]
    assert row.notes == ("not run at 64 keys: needs more than there is",)


def test_growth_ends_where_one_run_takes_longer_than_a_case_may(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([0.001, 0.002, 3.0])
    monkeypatch.setattr("polyhead.bench.harness.seconds_of", lambda run: next(taken))
    row = bench.run([GROWING], seconds=SECONDS).rows[0]
    assert list(row.seconds_by_length) == [16, 32]
    assert row.notes == ("not timed from 64 keys on: one run takes 3 s, and all that a case may take is 0.01 s",)


def needed(name: str, length: int, kernel: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> float:
    """Return what a case takes beside its tensors, on a kernel."""
    monkeypatch.setattr(select, "KERNELS", tuple(one for one in select.KERNELS if one.name == kernel))
    one = sized(name, length, **changes)
    return work.needed_bytes(one, torch.float32) - work._tensor_bytes(one, torch.float32) - work.BESIDES


@pytest.mark.parametrize(
    ("kernel", "name"), [("tiled", "window"), ("blockwise", "window"), ("linear", "linear"), ("dense", "causal")]
)
def test_a_kernel_without_a_matrix_needs_room_for_its_tensors_alone(
    monkeypatch: pytest.MonkeyPatch, kernel: str, name: str
) -> None:
    monkeypatch.setattr(select, "KERNELS", tuple(k._replace(pass_over=lambda case: None) for k in select.KERNELS))
    assert needed(name, 16384, kernel, monkeypatch) == 0


@pytest.mark.parametrize(
    ("kernel", "name", "matrices"),
    [
        ("plain", "alibi", 6 * 8),
        ("plain", "differential", 6 * 16),
        ("absorbed", "mla", 6 * 16),
        ("dense", "mla", 3 * 16),
    ],
)
def test_a_kernel_of_matrices_needs_room_for_them(
    monkeypatch: pytest.MonkeyPatch, kernel: str, name: str, matrices: int
) -> None:
    monkeypatch.setattr(select, "KERNELS", tuple(k._replace(pass_over=lambda case: None) for k in select.KERNELS))
    assert needed(name, 2048, kernel, monkeypatch) == matrices * 2048**2 * 4


@pytest.mark.parametrize(("name", "queries"), [("window", 2048), ("causal-cached", 256)])
def test_sdpa_needs_room_for_its_mask(monkeypatch: pytest.MonkeyPatch, name: str, queries: int) -> None:
    monkeypatch.setattr(select, "KERNELS", tuple(k._replace(pass_over=lambda case: None) for k in select.KERNELS))
    assert needed(name, 2048, "dense", monkeypatch) == 6 * queries * 2048


def test_tensors_are_counted_with_a_layers_own_and_with_gradients() -> None:
    attended = 4 * 8 * 64 * 32 * 4  # q, k, v and output of 8 heads of 64, 32 tokens, float32
    assert work._tensor_bytes(sized("full"), torch.float32) == attended
    assert work._tensor_bytes(sized("full", training=True), torch.float32) == 2 * attended
    assert work._tensor_bytes(sized("t5-layer"), torch.float32) == attended + 2 * 512 * 32 * 4
    assert work._tensor_bytes(sized("causal-cached"), torch.float32) == (2 * 32 + 2 * 4) * 512 * 4


# --- what must hold before a time counts ---------------------------------------------------------


Run = Callable[[Call], tuple[Tensor, Tensor | None]]


def break_kernel(monkeypatch: pytest.MonkeyPatch, one: Case, broken: Callable[[Run], Run]) -> str:
    """Put another way to compute in place of the kernel that a case runs on, and return that kernel's name."""
    name = work.kernel_of(one, torch.float32)
    kernels = tuple(k._replace(run=broken(k.run)) if k.name == name else k for k in select.KERNELS)
    monkeypatch.setattr(select, "KERNELS", kernels)
    return name


def scaled(run: Run) -> Run:
    return lambda call: (run(call)[0] * 1.01, None)


def test_a_wrong_kernel_is_a_failure_and_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = break_kernel(monkeypatch, sized("causal"), scaled)
    record = bench.run([sized("causal"), sized("linear")], seconds=SECONDS)
    assert [row.case for row in record.rows] == ["linear"]
    assert record.failures["causal"].startswith(
        f"causal: the output of kernel {kernel} at 32 queries and 32 keys is not"
    )
    assert "**causal failed:**" in record.to_markdown()


def test_a_kernel_that_raises_costs_its_own_case_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(call: Call) -> tuple[Tensor, None]:
        raise RuntimeError("can't allocate memory")

    break_kernel(monkeypatch, sized("causal"), lambda _: run)
    record = bench.run([sized("causal"), sized("linear")], seconds=SECONDS)
    assert ([row.case for row in record.rows], record.failures) == (["linear"], {"causal": "can't allocate memory"})


def test_a_wrong_gradient_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    class Skewed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 1.01 * gradient

    one = sized("full", training=True)
    kernel = break_kernel(monkeypatch, one, lambda run: lambda call: (Skewed.apply(run(call)[0]), None))
    record = bench.run([one], seconds=SECONDS)
    assert f"full: the gradient of query of kernel {kernel}" in record.failures["full"]


def test_a_kernel_wrong_at_the_timed_length_alone_is_found_by_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    def long_alone(run: Run) -> Run:
        return lambda call: scaled(run)(call) if call.case.kv_len > checks.CHECKED_LENGTH else run(call)

    one = sized("full", checks.CHECKED_LENGTH + 20)
    break_kernel(monkeypatch, one, long_alone)
    record = bench.run([one], seconds=SECONDS)
    assert "full at 720 keys: the output is not sdpa's" in record.failures["full"]


@pytest.mark.parametrize("name", [one.name for one in CASES])
def test_every_case_agrees_with_the_oracle(name: str) -> None:
    small = sized(name, 80)
    checks.check_against_oracle(small, work.kernel_of(small, torch.float32), torch.float32)


def test_numbers_that_are_not_finite_agree_with_nothing() -> None:
    with pytest.raises(checks.DisagreementError, match="nan apart"):
        checks.check_close(torch.tensor([torch.nan]), torch.ones(1), torch.float32, "this", "that")


# --- ends before all is done ---------------------------------------------------------------------


def test_an_interrupt_keeps_the_rows_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sized("full"), sized("causal")

    def interrupted(case: Case, options: harness.Options) -> Any:
        if case is second:
            raise KeyboardInterrupt
        return timed(case, options)

    timed = harness.timed
    monkeypatch.setattr(harness, "timed", interrupted)
    with pytest.raises(bench.Interrupted) as stop:
        bench.run([first, second], seconds=SECONDS)
    (row,) = stop.value.record.rows
    assert row.case == "full"
    assert row.share is not None


def test_an_interrupt_before_any_row_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(case: Case, options: harness.Options) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "timed", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        bench.run([sized("full")], seconds=SECONDS)
    assert not isinstance(stop.value, bench.Interrupted)


@pytest.mark.parametrize(("seconds", "runs"), [(None, False), (SECONDS, True)])
def test_the_quick_table_ends_in_time_unless_it_is_given_seconds(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, runs: bool
) -> None:
    monkeypatch.setattr(harness, "QUICK_DEADLINE", -1.0)
    (row,) = bench.run([sized("full", 64, quick=32)], quick=True, seconds=seconds, threads=1).rows
    assert (row.turns is not None) == runs
    assert row.notes == (
        () if runs else ("not run: the quick table's time was up; type: polyhead bench full --threads 1 --quick",)
    )


# --- asking for it -------------------------------------------------------------------------------


def test_the_quick_table_has_cases_of_every_kind_and_no_targets() -> None:
    from polyhead.bench.harness import selected

    quick = selected(quick=True)
    assert {one.direction for one in quick} == {"forward", "training"}
    assert all(one.length < case(one.name).length and not one.targets for one in quick)
    assert any(one.lengths for one in quick)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"cases": ["windov"]}, UnknownNameError, "no case is called 'windov'; did you mean window"),
        ({"cases": ["alibi"], "quick": True}, UnsupportedError, "alibi not in the quick table, which has full"),
        ({"dtype": "int8"}, UnsupportedError, "dtype='int8' is not timed; use float32"),
        ({"seconds": 0.0}, ShapeError, "seconds=0.0 and threads=None must be positive"),
        ({"threads": 0}, ShapeError, "threads=0 must be positive"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        bench.run(**arguments)


def test_a_case_too_short_is_refused() -> None:
    with pytest.raises(ShapeError, match="length=8 is too short for a case; give at least 16"):
        case("full").at(8)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_every_mechanism_has_a_bound_on_memory_and_no_layer_has(one: Case) -> None:
    bounds = [target.at_most for target in one.targets if target.against == "memory"]
    assert bounds == ([] if one.layer else [64])


def test_names_are_told_apart_and_peers_and_targets_exist() -> None:
    from polyhead.bench.peers import PEERS

    assert len({one.name for one in CASES}) == len(CASES)
    for one in CASES:
        assert set(one.peers) <= set(PEERS)
        assert {target.against for target in one.targets} <= {*one.peers, "exponent", "memory"}
        assert not one.lengths or one.length in one.lengths
