"""What numba compiles: whether it can here, and where it is kept on disk. numba is imported by what has loops alone."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE = 1.5
"""Seconds after which a line says that something is being compiled; reading what is on disk takes less."""


@functools.cache
def unavailable() -> str | None:
    """Return why nothing can be compiled here, or None; numba is not imported for it."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install 'polyhead[numba]'"
    if not any(map(_is_writable, _cache_directories())):
        return "numba has no directory to keep what it compiles; set NUMBA_CACHE_DIR to one that can be written to"
    return None


def _cache_directories() -> Iterator[Path]:
    """Yield where numba keeps what it compiles, the preferred first."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given)
        return
    yield Path(__file__).parent / "__pycache__"
    yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _is_writable(directory: Path) -> bool:
    """Whether a directory can be written to, or made."""
    there = next(one for one in (directory, *directory.absolute().parents) if one.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def ready(worker: Callable[..., Any], what: str) -> Any:
    """Return loops compiled: from disk, or now, with a line on stderr if that takes a while.

    Args:
        worker: Compiles them; told by ``kept`` whether to look on disk, and to keep them there.
        what: What they do, for that line.

    Returns:
        What ``worker`` returns.

    Warns:
        RuntimeWarning: If what was kept on disk cannot be read, or nothing can be kept; it is compiled all the same.
    """
    with _announced(what):
        try:
            return worker(kept=True)
        except Exception as error:  # noqa: BLE001  # pickle, zlib, OSError, ...: a broken file can raise anything
            where = next(_cache_directories())
            warnings.warn(
                f"numba cannot keep compiled {what} in {where} ({error}), so each process compiles it anew; "
                "empty that directory, or set NUMBA_CACHE_DIR to another",
                RuntimeWarning,
                stacklevel=3,
            )
            return worker(kept=False)


@contextlib.contextmanager
def _announced(what: str) -> Iterator[None]:
    """Say on stderr that something is being compiled, if that takes a while."""
    text = f"polyhead: compiling {what} with numba, once for this machine ...\n"
    timer = threading.Timer(PATIENCE, sys.stderr.write, args=(text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
