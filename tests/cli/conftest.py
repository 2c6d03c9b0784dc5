"""The command line in this process, where it is quick, and in one of its own, where the process matters."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import polyhead
from polyhead.cli.main import main
from tests.hf.conftest import cache as cache, checkpoint as checkpoint, smollm2 as smollm2

START = (sys.executable, "-c", "from polyhead.cli.main import main; main()")


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


Polyhead = Callable[..., Done]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Polyhead:
    """Return a function that runs a command here."""

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()  # what a fixture wrote is not the command's
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return Done(int(stop.value.code or 0), *capsys.readouterr())

    return run


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment, in which polyhead is found and nothing is said of colours or completion."""
    dropped = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "_POLYHEAD_COMPLETE"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    source = str(Path(polyhead.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    return kept | {"PYTHONPATH": path, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | changes


def spawn(*arguments: str, env: Mapping[str, str] | None = None, **options: Any) -> Done:
    """Run a command in a process of its own, whose output is no terminal."""
    process = start(*arguments, env=env, **options)
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out or "", err or "")


def start(*arguments: str, env: Mapping[str, str] | None = None, **streams: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own; streams that are not given are pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([*START, *arguments], env=environment(**(env or {})), text=True, encoding="utf-8", **pipes)


def spawn_on_terminal(*arguments: str, stream: str = "stdout", columns: int = 80, **env: str) -> tuple[Done, str]:
    """Run a command one of whose streams is a terminal; return the end of the process and what the terminal got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = start(*arguments, env=env, **{stream: theirs})
    os.close(theirs)
    pieces = []
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while piece := os.read(ours, 65536):
            pieces.append(piece)
    os.close(ours)
    out, err = process.communicate(timeout=120)
    return Done(process.returncode, out or "", err or ""), b"".join(pieces).decode().replace("\r\n", "\n")
