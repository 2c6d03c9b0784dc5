"""Completion: a script for each shell, and what the program answers to it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Polyhead, spawn


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_polyhead(call: Polyhead, shell: str) -> None:
    done = call("completion", shell)
    assert (done.code, done.err) == (0, "")
    assert f"_POLYHEAD_COMPLETE={shell}_complete" in done.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_can_read_the_script(call: Polyhead, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "polyhead"
    script.write_text(call("completion", shell).out, encoding="utf-8")
    done = subprocess.run([shell, "-n", str(script)], check=True, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("polyhead com", {"compare", "completion"}),
        ("polyhead compare --eng", {"--engine"}),
        ("polyhead compare --engine ", {"numpy", "torch"}),
        ("polyhead completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_what_is_completed(words: str, answer: set[str]) -> None:
    index = str(words.count(" "))
    done = spawn(env={"_POLYHEAD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": index})
    assert (done.code, done.err) == (0, "")
    assert {line.split(",")[1] for line in done.out.splitlines()} == answer


def test_a_shell_that_is_not_there() -> None:
    done = spawn("completion", "tcsh")
    assert (done.code, done.out) == (2, "")
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.err
