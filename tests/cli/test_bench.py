"""`polyhead bench`: every form of output, and what is refused before anything is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from polyhead.bench import cases as module
from polyhead.bench.case import Case, Target
from polyhead.bench.cases import CASES
from polyhead.bench.records import Record, Row
from tests.cli.conftest import Polyhead
from tests.cli.test_main import imported

pytestmark = pytest.mark.usefixtures("short_ceilings")

torch = pytest.importorskip("torch", reason="what is timed runs in torch")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the documented set two tiny cases, one of which grows."""
    import dataclasses

    full = dataclasses.replace(module.case("full").at(16), targets=(Target(against="sdpa", at_most=1e9),))
    window = dataclasses.replace(module.case("window").at(32), lengths=(16, 32), peers=("sdpa",), quick=64)
    monkeypatch.setattr(module, "CASES", (full, window))
    monkeypatch.setattr("polyhead.bench.harness.CASES", (full, window))
    monkeypatch.setattr(module, "EVERY", (full, window))


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


@pytest.mark.parametrize(("option", "name"), [("--json", "a.json"), ("--plot", "a.png")])
def test_a_file_that_cannot_be_written_is_named_before_anything_is_timed(
    call: Polyhead, tmp_path: Path, option: str, name: str
) -> None:
    pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib")
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = call("bench", "window", option, tmp_path / "file" / name)
    assert (done.code, done.out) == (2, "")
    assert f"Invalid value for {option}: cannot write {tmp_path / 'file' / name}: " in done.err
    assert "ceilings" not in done.err


@pytest.mark.usefixtures("tiny")
def test_a_plot_without_growth_is_not_written_and_the_table_is_there(
    call: Polyhead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib")
    monkeypatch.setattr("polyhead.bench.harness.seconds_of", lambda run: 3.0)
    done = call("bench", "window", *SHORT, "--plot", tmp_path / "a.png")
    assert done.code == 0
    assert "window: not timed from 16 keys on: one run takes 3 s" in done.out
    assert f"polyhead: {tmp_path / 'a.png'} is not written: no case was timed at two lengths" in done.err
    assert not (tmp_path / "a.png").exists()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("path", ["a.json", "-"])
def test_an_interrupt_shows_what_was_timed_and_writes_no_file(
    call: Polyhead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    from polyhead.bench import harness

    timed = harness.timed

    def until_window(case: Case, options: harness.Options) -> Row:
        if case.name == "window":
            raise KeyboardInterrupt
        return timed(case, options)

    monkeypatch.setattr(harness, "timed", until_window)
    monkeypatch.chdir(tmp_path)
    done = call("bench", *SHORT, "--json", path)
    assert done.code == 130
    assert ("PyTorch's SDPA" in done.out) == (path != "-")
    said = [line for line in done.err.splitlines() if line.startswith("polyhead:")]
    assert said == ["polyhead: 1 of 2 cases were timed; no file is written", "polyhead: interrupted"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("columns", [80, 100])
def test_a_narrow_terminal_gets_a_line_for_each_case_and_its_peers_below(
    call: Polyhead, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("polyhead.cli.common.PIPE_WIDTH", columns)
    lines = call("bench", *SHORT).out.splitlines()
    assert max(map(len, lines)) <= columns
    first = next(number for number, line in enumerate(lines) if line.startswith("full, 16 keys, on "))
    full, head, ours = (line.rstrip() for line in lines[first : first + 3])
    assert full.endswith(" % of the ceiling")
    assert head.split() == ["ours", "ms", "against", "its", "ms", "ours", "/", "it", "target"]
    assert "PyTorch's" in ours
    assert any(line.startswith("window, 32 keys, on ") for line in lines)


def test_a_narrow_list_keeps_names_whole(call: Polyhead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.cli.common.PIPE_WIDTH", 80)
    done = call("bench", "--list")
    assert {line.split(" ")[0] for line in done.out.splitlines()[1:]} - {""} >= {one.name for one in CASES}


@pytest.mark.parametrize("name", ["torch", "jaxtyping"])
def test_without_torch_it_says_what_to_type(call: Polyhead, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    done = call("bench", "full")
    assert (done.code, done.out) == (3, "")
    assert done.err == (
        f"polyhead: a benchmark needs {name}, which is not installed; type: pip install 'polyhead[torch]'\n"
    )


def test_a_case_is_data() -> None:
    assert all(isinstance(one, Case) for one in CASES)
