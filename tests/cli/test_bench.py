"""`polyhead bench`: every form of output, and what is refused before anything is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyhead.bench import cases as module
from polyhead.bench.cases import CASES, Case, Target
from polyhead.bench.records import Record
from tests.cli.conftest import Polyhead
from tests.cli.test_main import imported

torch = pytest.importorskip("torch", reason="what is timed runs in torch")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the documented set two tiny cases, one of which grows."""
    import dataclasses

    full = dataclasses.replace(module.case("full").at(16), targets=(Target(against="sdpa", at_most=1e9),))
    window = dataclasses.replace(module.case("window").at(32), lengths=(16, 32), peers=("sdpa",), quick=64)
    monkeypatch.setattr(module, "CASES", (full, window))
    monkeypatch.setattr("polyhead.bench.harness.CASES", (full, window))


SHORT = ("--threads", "1", "--seconds", "0.5")  # which one tiny run surely does not take


@pytest.mark.usefixtures("tiny")
def test_the_table_goes_to_stdout_and_progress_to_stderr(call: Polyhead) -> None:
    done = call("bench", *SHORT)
    assert done.code == 0
    head, *rest = done.out.splitlines()
    assert f"torch {torch.__version__}, 1 thread" in head
    assert rest[0].startswith("matrix products: float32 ")
    assert [line.split()[0] for line in rest[2:5]] == ["case", "full", "window"]
    assert "≤ 1e+09 met" in done.out
    assert "growth, 16–32 keys" in done.out
    assert done.err.splitlines() == [
        "ceilings of the machine",
        "1/2 full: full, forward, 16 keys",
        "2/2 window: causal window of 512, forward, 32 keys",
    ]


@pytest.mark.usefixtures("tiny")
def test_json_and_a_plot_in_files_beside_the_table(call: Polyhead, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib")
    written, drawn = tmp_path / "new" / "a.json", tmp_path / "a.png"
    done = call("bench", "window", *SHORT, "--json", written, "--plot", drawn)
    record = Record.from_json(written.read_text(encoding="utf-8"))
    assert (done.code, [row.case for row in record.rows]) == (0, ["window"])
    assert record.command == "polyhead bench window --threads 1 --seconds 0.5"
    assert done.out.startswith(record.machine)
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("tiny")
def test_json_on_stdout_is_all_there_is(call: Polyhead) -> None:
    done = call("bench", "full", *SHORT, "--json", "-", "--dtype", "float64", "--no-peers")
    data = json.loads(done.out)
    assert (data["schema"], data["dtype"], data["rows"][0]["case"]) == (1, "float64", "full")


@pytest.mark.usefixtures("tiny")
def test_the_quick_table_has_what_is_in_it(call: Polyhead) -> None:
    done = call("bench", "window", "--quick", *SHORT, "--json", "-")
    row = json.loads(done.out)["rows"][0]
    assert (row["kv_len"], list(row["sweep"]["seconds"])) == (64, ["32", "64"])
    assert row["command"] == "polyhead bench window --threads 1 --quick --seconds 0.5"


@pytest.mark.usefixtures("tiny")
def test_what_fails_its_check_is_a_negative_answer(call: Polyhead, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyhead.bench import checks

    monkeypatch.setattr(checks, "ALLOWED", dict.fromkeys(checks.ALLOWED, -1.0))
    done = call("bench", "full", *SHORT)
    assert done.code == 1
    assert "polyhead: full failed: full: the output of kernel " in done.err


@pytest.mark.parametrize("quick", [False, True])
def test_the_list_names_the_cases_and_their_peers(call: Polyhead, quick: bool) -> None:
    done = call("bench", "--list", *(["--quick"] if quick else []))
    assert (done.code, done.err) == (0, "")
    names = [one.name for one in CASES if one.quick or not quick]
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == names
    assert "sdpa, flex, sdpa-mask" in done.out


def test_the_list_and_the_help_import_no_torch() -> None:
    for arguments in (["--list"], ["--help"]):
        assert not imported("bench", *arguments) & {"torch", "transformers", "matplotlib"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["windov"], "no case is called 'windov'; did you mean window"),
        (["mla-layer", "--quick"], "mla-layer not in the quick table, which has full, causal"),
        (["full", "--plot", "a.png"], "--plot draws cases that are timed at several lengths; add one of window"),
        (["window", "--plot", "a.pdf"], "a plot is written as .png or .svg, not as 'a.pdf'"),
        (["--dtype", "int8"], "'int8' is not one of"),
        (["--threads", "0"], "0 is not in the range x>=1"),
        (["--seconds", "0"], "0.0 is not in the range x>0"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_timed(call: Polyhead, arguments: list[str], message: str) -> None:
    done = call("bench", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "ceilings" not in done.err


@pytest.mark.usefixtures("tiny")
def test_a_file_that_cannot_be_written_is_named(call: Polyhead, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = call("bench", "full", *SHORT, "--json", tmp_path / "file" / "a.json")
    assert done.code == 2
    assert "--json" in done.err


def test_a_case_is_data() -> None:
    assert all(isinstance(one, Case) for one in CASES)
