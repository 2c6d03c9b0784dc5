"""Patterns as pictures: a row for each query, a column for each key, ``#`` where they may meet."""

from __future__ import annotations

import textwrap

import numpy as np
from numpy.typing import NDArray

from polyhead.spec import Pattern


def grid(pattern: Pattern, q_len: int, kv_len: int, *, head: int = 0) -> NDArray[np.bool_]:
    """Return which pairs may meet, both sides counted from 0."""
    return pattern.allowed(np.arange(q_len), np.arange(kv_len), kv_len=kv_len, head=head)


def drawn(pattern: Pattern, q_len: int, kv_len: int, *, head: int = 0) -> list[str]:
    """Draw a pattern, a string for each query."""
    return ["".join(".#"[int(seen)] for seen in row) for row in grid(pattern, q_len, kv_len, head=head)]


def lines(picture: str) -> list[str]:
    """Return the lines of a picture typed in a test."""
    return textwrap.dedent(picture).strip().splitlines()
