"""Writing a file so that whoever finds it finds it whole; pictures among them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyhead.errors import UnsupportedError, require_extra


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a file beside another, and move it there when the block is done; its folder is made if need be.

    Args:
        path: The file to make or replace. A link is followed.

    Yields:
        Where to write. If the block raises, that file is removed and the other is as it was.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")  # so that two writers do not meet
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Say before long work whether a file can be written: its folder is made, and a file in it made and removed.

    Args:
        path: The file, which is left as it is.

    Raises:
        OSError: If it cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        return
    path = path.resolve()
    nearest = next(folder for folder in path.parents if folder.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is no folder", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place and move it there, or leave nothing; its folder is made if need be.

    Args:
        path: The file. A link is followed; what is no regular file, such as ``/dev/stdout``, is written to as it is.
        data: What it will hold.

    Raises:
        OSError: If it cannot be written.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with replacing(path) as beside:
        beside.write_bytes(data)


def check_plot(path: str | os.PathLike[str] | None = None) -> None:
    """Say before anything is computed whether a plot can be drawn, and written to a path.

    Args:
        path: Where it will be written. None: nowhere.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        UnsupportedError: If the file's ending is neither ``.png`` nor ``.svg``.
    """
    if path is not None and Path(path).suffix.lower() not in {".png", ".svg"}:
        raise UnsupportedError(f"a plot is written as .png or .svg, not as {Path(path).name!r}")
    require_extra("matplotlib", "plot", "a plot")


def rendered(figure: Any, kind: str) -> bytes:
    """Return a matplotlib figure as a file of a kind, ``"png"`` or ``"svg"``."""
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=150)
    return data.getvalue()


def write_plot(figure: Any, path: Path) -> None:
    """Write a matplotlib figure whole or not at all, as its path's ending says."""
    write_whole(path, rendered(figure, path.suffix.lower()[1:]))
