"""What holds for every command: help, exit codes, streams, colours, and what is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from polyhead.cli import main as module
from polyhead.cli.main import COMMANDS
from polyhead.errors import PolyheadError
from tests.cli.conftest import START, Polyhead, environment, spawn, spawn_on_terminal, start

ESCAPE = "\x1b"

# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_begins_with_examples_and_names_the_commands(call: Polyhead, option: str) -> None:
    done = call(option)
    assert (done.code, done.err) == (0, "")
    assert done.out.index("Examples:") < done.out.index("polyhead compare --model smollm2") < done.out.index("Options:")
    for name in COMMANDS:
        assert f"\n  {name} " in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_begins_with_examples(call: Polyhead, command: str) -> None:
    done = call(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.index(f"\n    polyhead {command}") < done.out.index("Options:")


def test_no_command_is_wrong_usage(call: Polyhead) -> None:
    done = call()
    assert (done.code, done.out) == (2, "")
    assert "Examples:" in done.err


@pytest.mark.parametrize("arguments", [["lst"], ["list", "--jsno"], ["--verson"], ["show"], ["completion", "tcsh"]])
def test_wrong_usage_says_what_to_type(call: Polyhead, arguments: list[str]) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "--help' for help." in done.err
    assert "Error: " in done.err


# --- exit codes -----------------------------------------------------------------------------------


def test_errors_of_ours_are_one_line_and_wrong_input(call: Polyhead, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PolyheadError("this is too much; give less")

    monkeypatch.setattr("polyhead.catalog.mechanisms", fail)
    assert call("list") == (2, "", "polyhead: this is too much; give less\n")


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("torch", ["explain", "gqa"], "torch"),
        ("torch", ["compare", "--engine", "torch"], "torch"),
        ("matplotlib", ["compare", "--plot", "a.png"], "plot"),
    ],
)
def test_a_missing_extra(
    call: Polyhead, monkeypatch: pytest.MonkeyPatch, package: str, arguments: list[str], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = call(*arguments)
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("polyhead: ")
    assert done.err.endswith(f"needs {package}, which is not installed; type: pip install 'polyhead[{extra}]'\n")


def test_interrupted(tmp_path: Path) -> None:
    """The command waits for a file that never comes; the pipe opens here when it is read there."""
    pipe = tmp_path / "qkv.npz"
    os.mkfifo(pipe)
    process = start("compare", "--tensors", str(pipe))
    with pipe.open("wb"):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err.strip()) == (130, "", "polyhead: interrupted")


@pytest.mark.parametrize(
    "arguments", [["list"], ["show", "gqa"], ["compare", "--json"], ["compare", "--csv", "-"], ["--help"]]
)
def test_a_reader_that_has_seen_enough_is_no_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = spawn(*arguments, stdout=writer)
    os.close(writer)
    assert done == (0, "", "")


def test_head_of_a_pipe_is_silent() -> None:
    line = f'"{START[0]}" -c "{START[2]}" list | head -1'
    done = subprocess.run(["bash", "-c", line], check=True, env=environment(), capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split()[:2] == ["#", "name"]


# --- colours and streams --------------------------------------------------------------------------

COLOURED = [["list"], ["show", "gqa"], ["compare"]]


@pytest.mark.parametrize("arguments", COLOURED, ids=" ".join)
def test_a_terminal_has_styles_and_a_pipe_has_none(arguments: list[str]) -> None:
    done, shown = spawn_on_terminal(*arguments)
    assert (done.code, done.err) == (0, "")
    assert ESCAPE in shown
    assert ESCAPE not in spawn(*arguments).out


@pytest.mark.parametrize("arguments", COLOURED, ids=" ".join)
def test_no_color_leaves_the_text(arguments: list[str]) -> None:
    _, plain = spawn_on_terminal(*arguments, NO_COLOR="1")
    assert ESCAPE not in plain
    assert "gqa" in plain


def test_an_empty_no_color_says_nothing() -> None:
    _, shown = spawn_on_terminal("list", NO_COLOR="")
    assert ESCAPE in shown


def test_progress_goes_to_stderr_and_only_where_that_is_a_terminal(
    call: Polyhead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes no terminal of what is none
    piped = call("explain", "gqa")
    watched, shown = spawn_on_terminal("explain", "gqa", stream="stderr")
    assert (piped.code, piped.err) == (0, "")
    assert (watched.code, watched.out) == (0, piped.out)
    assert "Importing torch" in shown


# --- what is imported -----------------------------------------------------------------------------


def imported(*arguments: str) -> set[str]:
    """Run a command and return the modules that it imported."""
    program = (
        "import sys\nfrom polyhead.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.stdout
    return set(done.stderr.split())


def test_help_imports_no_more_than_click() -> None:
    assert not imported("--help") & {"numpy", "rich", "torch", "polyhead.spec", "polyhead.catalog"}


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["show", "gqa"], ["compare"], ["compare", "--help"]]
)
def test_what_needs_no_torch_imports_none(arguments: list[str]) -> None:
    found = imported(*arguments)
    assert not found & {"torch", "transformers", "matplotlib", "safetensors", "tokenizers", "jaxtyping", "gguf"}
    assert "polyhead.cli" in found


def test_list_imports_no_numpy() -> None:
    assert "numpy" not in imported("list")


# --- version --------------------------------------------------------------------------------------


def test_version_lists_the_extras_that_are_there(call: Polyhead, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"polyhead": "1.2.3", "torch": "2.9", "matplotlib": "3.10", "transformers": "5.0", "gguf": "0.1"}

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(module.metadata, "version", version)
    done = call("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "polyhead 1.2.3",
        "  torch  torch 2.9",
        "  hf     no, accelerate is missing: pip install 'polyhead[hf]'",
        "  numba  no, numba is missing: pip install 'polyhead[numba]'",
        "  plot   matplotlib 3.10",
        "  serve  no, starlette is missing: pip install 'polyhead[serve]'",
        "  bench  no, x-transformers is missing: pip install 'polyhead[bench]'",
    ]


def test_version_of_a_source_that_is_not_installed(call: Polyhead, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "version", version)
    assert call("--version").out.startswith("polyhead, not installed: run from its source\n")
